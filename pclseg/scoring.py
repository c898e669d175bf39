"""Scores of a trained state: pooled Dice while training, rows per case at the end."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pclseg import processes
from pclseg.data import make_pipeline
from pclseg.data.geometry import orient
from pclseg.data.plan import Plan
from pclseg.data.slices import slice_table
from pclseg.data.tfds_store import CaseInfo, Store
from pclseg.data.volume import label_dtype, restore_label
from pclseg.data.volume_file import write_volume
from pclseg.errors import UserError
from pclseg.evaluation import components
from pclseg.evaluation.cases import Row, case_rows
from pclseg.evaluation.inference import (
    MULTIPLE,
    Predictor,
    in_blocks,
    predict_volume,
)
from pclseg.evaluation.overlap import counts, dice_from_counts
from pclseg.methods.base import Method
from pclseg.state import TrainState
from pclseg.train.stop import StopFlag

log = logging.getLogger(__name__)

LEAST_TILE = 4 * MULTIPLE  # pixels; smaller ones see too little of the image


def pooled_validation(
    method: Method,
    store: Store,
    rows: Sequence[int],
    *,
    pipeline: str,
    crop_size: tuple[int, int],
    batch_size: int,
    stop: StopFlag,
) -> Callable[[TrainState], dict[str, float]]:
    """The authors' validation: Dice pooled over all centre-cropped slices of a fold.

    Args:
        method: with `predict`; what it predicts besides is scored from the same slices.
        store: the prepared volumes.
        rows: of the validation volumes, all labelled.
        pipeline: "tf" or "numpy".
        crop_size: of the centre crop.
        batch_size: slices a forward pass.
        stop: polled between batches.

    Returns:
        state -> {"dice_pooled": mean over foreground classes, "dice_pooled_<class>":
        each}, and the same with "dice_pooled_<other>" in front for every other network
        of the method. It raises Stopped when the process was asked to end.
    """
    plan = Plan(
        table=slice_table(store.infos, rows),
        seed=0,
        batch_size=batch_size,
        crop_size=crop_size,
        random_crop=False,
        shuffle=False,
        sampling="slices",
        last_batch="fill",
    )
    networks = {"dice_pooled": _logits(method)} | {
        f"dice_pooled_{name}": other for name, other in method.also_predict.items()
    }
    predict = jax.jit(
        lambda state, x: {
            name: jnp.argmax(network(state, x), axis=-1)
            for name, network in networks.items()
        }
    )
    num_classes = len(store.class_names)
    number_of_batches = plan.steps_per_epoch

    @functools.cache
    def batches() -> dict[int, dict[str, np.ndarray]]:
        """Those of this process, by their number; labels as small as can be."""
        mine = {*processes.turns(number_of_batches)}
        dtype = label_dtype(range(num_classes))
        every = make_pipeline(
            pipeline,
            store=store,
            plan=plan,
            keys=frozenset({"image", "label"}),
            first_step=0,
            num_steps=number_of_batches,
            prefetch=1,
        )
        return {
            number: batch | {"label": batch["label"].astype(dtype)}
            for number, batch in enumerate(every)
            if number in mine
        }

    def validate(state: TrainState) -> dict[str, float]:
        own_batches = batches()
        totals = {name: np.zeros((num_classes, 3), np.int64) for name in networks}
        for number in processes.turns(number_of_batches):
            stop.check()
            if number is None:
                continue
            batch = own_batches[number]
            predictions = jax.device_get(predict(state, batch["image"]))
            # the last batch is filled with repeats
            real = min(plan.num_slices - number * batch_size, batch_size)
            for name, labels in predictions.items():
                totals[name] += counts(
                    labels[:real], batch["label"][:real], num_classes
                )
        scores: dict[str, float] = {}
        for name, own in totals.items():
            scores |= _named_dice(name, processes.total(own), store.class_names)
        return scores

    return validate


def _named_dice(
    name: str, total: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """{name: mean over foreground classes, name_<class>: each} from pooled counts."""
    dice = dice_from_counts(total)
    names = [f"{name}_{class_name}" for class_name in class_names[1:]]
    return {name: float(dice.mean()), **dict(zip(names, dice.tolist(), strict=True))}


def volume_predictor(
    method: Method,
    state: TrainState,
    *,
    crop_size: tuple[int, int],
    batch_size: int,
    tile: int | None = None,
) -> Predictor:
    """A function from a prepared image [Z, H, W, C] to probabilities [Z, H, W, K].

    Slices are padded as in training; one compilation a padded shape. Where the device
    is out of memory, fewer slices at a time are tried, then smaller tiles; this is
    said, and kept for the volumes to come.

    Args:
        method: with `predict`.
        state: trained.
        crop_size: (H, W) of the training crop.
        batch_size: slices, or tiles, a forward pass.
        tile: side of tiles; None for whole slices.

    Raises:
        UserError: when called, where not even a small tile fits.
    """
    predict = jax.jit(_logits(method))

    def predict_slices(images: np.ndarray) -> np.ndarray:
        return np.asarray(predict(state, images))

    def predict_or_halve(image: np.ndarray) -> np.ndarray:
        nonlocal batch_size, tile
        while True:
            try:
                return predict_volume(
                    predict_slices,
                    image,
                    min_shape=crop_size,
                    batch_size=batch_size,
                    tile=tile,
                )
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                batch_size, tile = _halved(batch_size, tile, max(image.shape[1:3]))
                shown = f" in tiles of {tile} x {tile}" if tile else ""
                log.warning(
                    "the device is out of memory; going on with %d at a time%s",
                    batch_size,
                    shown,
                )

    return predict_or_halve


def _halved(batch_size: int, tile: int | None, side: int) -> tuple[int, int | None]:
    """What to try next where batches of `batch_size` tiles are too large."""
    if batch_size > 1:
        return batch_size // 2, tile
    half = (tile or side) // 2 // MULTIPLE * MULTIPLE
    if half < LEAST_TILE:
        raise UserError(
            f"the device is out of memory for a single tile of {tile or side} pixels;"
            " free its memory, or predict on a CPU by JAX_PLATFORMS=cpu."
        )
    return 1, half


def score_cases(
    predict: Predictor,
    store: Store,
    rows: Sequence[int],
    folder: Path | None,
    *,
    native_label: Callable[[CaseInfo], np.ndarray] | None,
    block: int,
    tolerance_mm: float,
    stop: StopFlag,
) -> tuple[list[Row], list[list[list[float]]]]:
    """Predicts volumes of the store and scores them.

    Args:
        predict: image [Z, H, W, C] -> probabilities [Z, H, W, K].
        store: the prepared volumes.
        rows: labelled volumes of the store.
        folder: where `<case>.nii.gz` go, on the grid of the input, with its values; or
            None to keep no prediction.
        native_label: the class ids [Z, H, W] of a volume on the grid of its file, where
            what goes to `folder` is scored; None to score on the prepared grid.
        block: slices whose probabilities are in memory at a time.
        tolerance_mm: of the normalised surface distance.
        stop: polled between volumes.

    Several processes share the volumes and all get the scores of all.

    Returns:
        One row per case and class; of every case what `components.compare` says.
    """
    scored: dict[int, tuple[list[Row], list[list[float]]]] = {}
    for number in processes.turns(len(rows)):
        stop.check()
        if number is None:
            continue
        volume = store.volume(rows[number])
        info, label, geometry = volume.info, volume.label, volume.info.geometry
        if label is None:
            raise ValueError(f"{info.name} has no label; it cannot be scored.")
        ids = np.empty_like(label)
        slices = _noted(in_blocks(predict, volume.image, block), ids)
        classes = range(len(store.label_values))
        native = restore_label(slices, geometry, label_values=classes)
        if folder is not None:
            _write_native(folder, info, native, store.label_values)
        # Where preparation did not resample, both grids are one.
        if native_label and geometry.shape != geometry.native_shape:
            ids, label = orient(native, geometry), native_label(info)
            info = dataclasses.replace(info, spacing=geometry.native_spacing)
        names = store.class_names
        rows_of_case = case_rows(info, ids, label, names, tolerance_mm=tolerance_mm)
        scored[number] = rows_of_case, components.compare(ids, label, len(names))
        log.info("evaluate %d/%d %s", number + 1, len(rows), info.name)
    everyone = [pair for own in processes.gather(list(scored.items())) for pair in own]
    cases = [scores for _, scores in sorted(everyone, key=lambda pair: pair[0])]
    return [row for own, _ in cases for row in own], [parts for _, parts in cases]


def _noted(blocks: Iterable[np.ndarray], ids: np.ndarray) -> Iterator[np.ndarray]:
    """The slices of blocks of probabilities; their likeliest classes go to `ids`."""
    slices = itertools.chain.from_iterable(blocks)
    for of_slice, probs in zip(ids, slices, strict=True):
        of_slice[...] = probs.argmax(axis=-1)
        yield probs


def _write_native(
    folder: Path, info: CaseInfo, ids: np.ndarray, label_values: Sequence[int]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = np.asarray(label_values, label_dtype(label_values))
    path = folder / f"{info.name}.nii.gz"
    write_volume(path, values[ids], like=Path(info.image_path))


def _logits(method: Method) -> Callable[[TrainState, jax.Array], jax.Array]:
    if method.predict is None:
        raise ValueError(
            "the method has no predict; only segmentation stages are scored."
        )
    return method.predict
