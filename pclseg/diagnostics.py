"""What a finished run learned: embeddings of held-out slices, and cases to look at."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from pclseg import scoring
from pclseg.building import Stage
from pclseg.data import make_pipeline
from pclseg.data.plan import Plan
from pclseg.data.slices import position, slice_table
from pclseg.errors import UserError
from pclseg.evaluation import embeddings
from pclseg.evaluation.cases import read_cases, worst_median_best
from pclseg.reports.figures import Overlay
from pclseg.runner import Run, segmentation_stage, trained_state
from pclseg.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embeddings of the slices of held-out patients, before and after a stage.

    Attributes:
        before: [N, D] of the random weights the stage started from.
        after: [N, D] of its last checkpoint.
        position: [N] float64, (index + 1) / count.
        patient: [N] names.
    """

    before: np.ndarray
    after: np.ndarray
    position: np.ndarray
    patient: np.ndarray


def embed_held_out(run: Run, stage: Stage) -> Embedded:
    """Embeds the centre crops of all slices that the final evaluation is about.

    Raises:
        ValueError: the stage's method has no `embed`.
    """
    if stage.method.embed is None:
        raise ValueError(f"{stage.name}: its method embeds no slices.")
    plan = Plan(
        table=slice_table(run.store.infos, run.rows(run.scored_subset())),
        seed=0,
        batch_size=stage.plan.batch_size,
        crop_size=stage.plan.crop_size,
        random_crop=False,
        shuffle=False,
        sampling="slices",
        last_batch="fill",
    )
    batches = list(
        make_pipeline(
            run.config.data.pipeline,
            store=run.store,
            plan=plan,
            keys=frozenset({"image", "volume", "index", "count"}),
            first_step=0,
            num_steps=plan.steps_per_epoch,
            prefetch=1,
        )
    )
    embed = jax.jit(stage.method.embed)

    def all_slices(state: TrainState) -> np.ndarray:
        parts = [np.asarray(embed(state, batch["image"])) for batch in batches]
        return np.concatenate(parts)[: plan.num_slices]

    about = {
        key: np.concatenate([batch[key] for batch in batches])[: plan.num_slices]
        for key in ("volume", "index", "count")
    }
    return Embedded(
        before=all_slices(stage.init()),
        after=all_slices(trained_state(stage, run.workdir / stage.name)),
        position=position(about["index"], about["count"]),
        patient=np.array([run.store.infos[row].patient for row in about["volume"]]),
    )


def measures(embedding: np.ndarray, about: Embedded) -> dict[str, float]:
    """Numbers that say how an embedding is spread and whether it knows position.

    Returns:
        std, 1 / sqrt(D) where evenly spread and 0 where collapsed; alignment, of slices
        of different patients within 0.1 of position; uniformity; position_r2, of a
        ridge probe tested on other patients.
    """
    r2 = embeddings.position_r2(
        embedding, about.position, about.patient, penalty=1.0, folds=5
    )
    return {
        "std": embeddings.embedding_std(embedding),
        "alignment": embeddings.alignment(
            embedding, about.position, about.patient, threshold=0.1
        ),
        "uniformity": embeddings.uniformity(embedding),
        "position_r2": r2,
    }


def cases_to_show(run: Run) -> list[Overlay]:
    """Worst, median and best case by mean Dice, predicted on the prepared grid."""
    stage = segmentation_stage(run.stages)
    if stage is None:
        return []
    rows = read_cases(run.workdir / "cases.csv")
    predict = scoring.volume_predictor(
        stage.method,
        trained_state(stage, run.workdir / stage.name),
        crop_size=stage.plan.crop_size,
        batch_size=run.config.evaluate.batch_size,
    )
    number = {info.name: row for row, info in enumerate(run.store.infos)}
    shown = []
    for role, case in worst_median_best(rows).items():
        volume = run.store.volume(number[case])
        if volume.label is None:
            raise UserError(
                f"{run.workdir}/cases.csv scores {case}, which has no label."
            )
        dice = [row["dice"] for row in rows if row["case"] == case]
        shown.append(
            Overlay(
                role=role,
                case=case,
                dice=float(np.nanmean(dice)),
                image=volume.image,
                label=volume.label,
                prediction=predict(volume.image).argmax(axis=-1),
                spacing=volume.info.spacing,
            )
        )
    return shown


def curve_files(run: Run, name: str) -> dict[str, list[Path]]:
    """{stage: its CSV file `name`} of the stages that have one."""
    files = {stage: run.workdir / stage / name for stage in run.stages}
    return {stage: [path] for stage, path in files.items() if path.exists()}
