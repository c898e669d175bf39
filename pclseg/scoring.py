"""Scores of a trained state: pooled Dice while training, rows per case at the end."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pclseg.data import make_pipeline
from pclseg.data.plan import Plan
from pclseg.data.slices import slice_table
from pclseg.data.tfds_store import Store
from pclseg.data.volume import restore_label
from pclseg.data.volume_file import write_label
from pclseg.evaluation.cases import case_rows
from pclseg.evaluation.inference import predict_volume
from pclseg.evaluation.overlap import counts, dice_from_counts
from pclseg.methods.base import Method
from pclseg.state import TrainState
from pclseg.train.stop import StopFlag

log = logging.getLogger(__name__)


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
        method: with `predict`.
        store: the prepared volumes.
        rows: of the validation volumes, all labelled.
        pipeline: "tf" or "numpy".
        crop_size: of the centre crop.
        batch_size: slices a forward pass.
        stop: polled between batches.

    Returns:
        state -> {"dice_pooled": mean over foreground classes, "dice_pooled_<class>":
        each}. It raises Stopped when the process was asked to end.
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
    predict = jax.jit(lambda state, x: jnp.argmax(_logits(method)(state, x), axis=-1))
    num_classes = len(store.class_names)
    batches: list[dict[str, np.ndarray]] = []  # cut once; small beside the volumes

    def validate(state: TrainState) -> dict[str, float]:
        if not batches:
            batches.extend(
                make_pipeline(
                    pipeline,
                    store=store,
                    plan=plan,
                    keys=frozenset({"image", "label"}),
                    first_step=0,
                    num_steps=plan.steps_per_epoch,
                    prefetch=1,
                )
            )
        total = np.zeros((num_classes, 3), np.int64)
        left = plan.num_slices
        for batch in batches:
            stop.check()
            prediction = np.asarray(predict(state, batch["image"]))
            real = min(left, batch_size)  # the last batch is filled with repeats
            total += counts(prediction[:real], batch["label"][:real], num_classes)
            left -= real
        dice = dice_from_counts(total)
        names = [f"dice_pooled_{name}" for name in store.class_names[1:]]
        return {
            "dice_pooled": float(dice.mean()),
            **dict(zip(names, dice.tolist(), strict=True)),
        }

    return validate


def volume_predictor(
    method: Method, state: TrainState, *, crop_size: tuple[int, int], batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a prepared image [Z, H, W] to class probabilities [Z, H, W, K].

    Slices are predicted whole, padded as in training; one compilation a padded shape.
    """
    predict = jax.jit(_logits(method))

    def predict_slices(images: np.ndarray) -> np.ndarray:
        return np.asarray(predict(state, images))

    return lambda image: predict_volume(
        predict_slices, image, min_shape=crop_size, batch_size=batch_size
    )


def score_cases(
    predict: Callable[[np.ndarray], np.ndarray],
    store: Store,
    rows: Sequence[int],
    folder: Path,
    *,
    tolerance_mm: float,
    stop: StopFlag,
) -> list[dict[str, Any]]:
    """Predicts volumes of the store; one row per case and class.

    Args:
        predict: image [Z, H, W] -> probabilities [Z, H, W, K].
        store: the prepared volumes.
        rows: labelled volumes of the store.
        folder: where `<case>.nii.gz` go, on the grid of the input, with its values.
        tolerance_mm: of the normalised surface distance.
        stop: polled between volumes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scored: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        stop.check()
        volume = store.volume(row)
        if volume.label is None:
            raise ValueError(f"{volume.info.name} has no label; it cannot be scored.")
        probs = predict(volume.image)
        scored += case_rows(
            volume.info,
            probs.argmax(axis=-1),
            volume.label,
            store.class_names,
            tolerance_mm=tolerance_mm,
        )
        native = restore_label(
            probs, volume.info.geometry, label_values=store.label_values
        )
        write_label(
            folder / f"{volume.info.name}.nii.gz",
            native,
            like=Path(volume.info.image_path),
        )
        log.info("evaluate %d/%d %s", number, len(rows), volume.info.name)
    return scored


def _logits(method: Method) -> Callable[[TrainState, jax.Array], jax.Array]:
    if method.predict is None:
        raise ValueError(
            "the method has no predict; only segmentation stages are scored."
        )
    return method.predict
