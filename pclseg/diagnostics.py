"""What a stage learned: embeddings of held-out slices, as numbers in a file."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pclseg.building import Stage
from pclseg.data import make_pipeline
from pclseg.data.plan import Plan
from pclseg.data.slices import position, slice_table
from pclseg.data.tfds_store import Store
from pclseg.evaluation import embeddings
from pclseg.files import write_json
from pclseg.state import TrainState
from pclseg.train.stop import StopFlag

FILE = "diagnostics.json"
BINS = 10  # of the similarity against distance
NEAR = 0.1  # difference of position below which slices of two patients should agree
PENALTY, FOLDS = 1.0, 5  # of the ridge probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embeddings of the slices of held-out patients.

    Attributes:
        embedding: {name of a state: [N, D]}.
        position: [N] float64, (index + 1) / count.
        patient: [N] names.
    """

    embedding: Mapping[str, np.ndarray]
    position: np.ndarray
    patient: np.ndarray


def write_diagnostics(
    path: Path,
    stage: Stage,
    trained: TrainState,
    *,
    store: Store,
    rows: Sequence[int],
    pipeline: str,
    stop: StopFlag,
) -> None:
    """Writes what a stage knew of position before, with random weights, and after.

    The file holds "measures" {"before", "after": as `measures`}; "similarity"
    {"before", "after": {"distance", "mean", "pairs"}}, lists over bins of distance;
    "map" {"before", "after": [N][2] principal components, "share": {"before", "after":
    [2] shares of the variance}, "position": [N], "patient": [N] names}. Where there is
    no number stands null.

    Args:
        path: of the file.
        stage: whose method has `embed`.
        trained: its last state.
        store: the prepared volumes.
        rows: of the volumes to embed, which only a transductive stage has seen.
        pipeline: "tf" or "numpy".
        stop: polled between batches.
    """
    states = {"before": stage.init(), "after": trained}
    found = embed_slices(
        stage, states, store=store, rows=rows, pipeline=pipeline, stop=stop
    )
    write_json(path, summary(found))


def embed_slices(
    stage: Stage,
    states: Mapping[str, TrainState],
    *,
    store: Store,
    rows: Sequence[int],
    pipeline: str,
    stop: StopFlag,
) -> Embedded:
    """Embeds the centre crops of all slices of some volumes, with every state.

    Raises:
        ValueError: the stage's method has no `embed`.
    """
    if stage.method.embed is None:
        raise ValueError(f"{stage.name}: its method embeds no slices.")
    plan = Plan(
        table=slice_table(store.infos, rows),
        seed=0,
        batch_size=stage.plan.batch_size,
        crop_size=stage.plan.crop_size,
        random_crop=False,
        shuffle=False,
        sampling="slices",
        last_batch="fill",
    )
    batches = make_pipeline(
        pipeline,
        store=store,
        plan=plan,
        keys=frozenset({"image", "volume", "index", "count"}),
        first_step=0,
        num_steps=plan.steps_per_epoch,
        prefetch=1,
    )
    embed = jax.jit(stage.method.embed)
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        stop.check()
        for name, state in states.items():
            part = np.asarray(embed(state, batch["image"]))
            parts.setdefault(name, []).append(part)
        for key in ("volume", "index", "count"):
            parts.setdefault(key, []).append(batch[key])
    # The last batch is filled with repeats.
    whole = {key: np.concatenate(p)[: plan.num_slices] for key, p in parts.items()}
    return Embedded(
        embedding={name: whole[name] for name in states},
        position=position(whole["index"], whole["count"]),
        patient=np.array([store.infos[row].patient for row in whole["volume"]]),
    )


def summary(found: Embedded) -> dict[str, Any]:
    """What `write_diagnostics` writes, fit for JSON."""
    about = (found.position, found.patient)
    curves, maps = {}, {}
    for name, z in found.embedding.items():
        distance, mean, pairs = embeddings.similarity_curve(z, *about, bins=BINS)
        curves[name] = {
            "distance": distance.tolist(),
            "mean": _numbers(mean),
            "pairs": pairs.tolist(),
        }
        maps[name] = embeddings.principal_components(z, 2)
    return {
        "measures": {name: measures(z, *about) for name, z in found.embedding.items()},
        "similarity": curves,
        "map": {
            # Six decimals of a number between -1 and 1 are plenty for a picture.
            **{name: points.round(6).tolist() for name, (points, _) in maps.items()},
            "share": {name: share.tolist() for name, (_, share) in maps.items()},
            "position": found.position.tolist(),
            "patient": found.patient.tolist(),
        },
    }


def measures(
    embedding: np.ndarray, position: np.ndarray, patient: np.ndarray
) -> dict[str, float | None]:
    """Numbers that say how an embedding is spread and whether it knows position.

    Returns:
        std, 1 / sqrt(D) where evenly spread and 0 where collapsed; alignment, of slices
        of different patients within 0.1 of position; uniformity; position_r2, of a
        ridge probe tested on other patients; neighbour_error, of position, and
        neighbour_error_chance, what a random neighbour gives. Definitions and sources:
        `evaluation.embeddings`. None where there is no number.
    """
    about = (position, patient)
    error, chance = embeddings.neighbour_position_error(embedding, *about)
    found = {
        "std": embeddings.embedding_std(embedding),
        "alignment": embeddings.alignment(embedding, *about, threshold=NEAR),
        "uniformity": embeddings.uniformity(embedding),
        "position_r2": embeddings.position_r2(
            embedding, *about, penalty=PENALTY, folds=FOLDS
        ),
        "neighbour_error": error,
        "neighbour_error_chance": chance,
    }
    return dict(zip(found, _numbers(found.values()), strict=True))


def _numbers(values: Iterable[float]) -> list[float | None]:
    """None for NaN, which JSON has not."""
    return [None if math.isnan(value) else float(value) for value in values]
