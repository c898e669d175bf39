"""What to set for a dataset, and why: the first config of somebody's own volumes.

Rules of thumb, each with its reason. They come from the settings of the papers, from
the configs that were tuned here, and from what a device holds.
"""

import dataclasses
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pclseg.data.check import Checked
from pclseg.data.examine import Facts
from pclseg.data.fitness import (
    SPECK,
    has_specks,
    is_flat,
    positives_per_anchor,
)
from pclseg.data.geometry import one_is_thick
from pclseg.evaluation.inference import MULTIPLE

WAYS = ("left to right", "back to front", "bottom to top")  # of axes 0, 1, 2
_SHOWN = 0.6  # of the side of a slice, that a crop should show
_SAME_PIXELS = 1.25  # largest pixel by smallest, up to which none are resampled
# Kept for the gradient by a view, for a pixel and channel of the first level: 18.8 GiB
# for 64 views of 352 x 352 pixels at width 48, by dry run.
_BYTES_KEPT = 53
_HEIGHT = 3.5  # slices up and down that count as alike, within the limits
_LEAST_THRESHOLD, _MOST_THRESHOLD = 0.1, 0.35  # of the authors: CT, and heart MRI
_FOLDS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What a kind of device has time for."""

    crop: int  # at most
    width: int  # of a crop of at most 64 pixels
    wide_width: int  # of a larger one
    pretrain_steps: int  # at most
    pretrain_epochs: int  # at most
    finetune_steps: int
    rate: float  # of fine-tuning


SIZES = {
    "cpu": Size(
        crop=96,
        width=16,
        wide_width=8,
        pretrain_steps=1000,
        pretrain_epochs=300,
        finetune_steps=1500,
        rate=3e-3,
    ),
    "gpu": Size(
        crop=352,
        width=32,
        wide_width=32,
        pretrain_steps=30_000,
        pretrain_epochs=300,
        finetune_steps=5000,
        rate=1e-3,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A value of the config and the reason for it, in words that end no sentence."""

    value: Any
    why: str


def choose(checked: Checked, *, size: str, memory: int) -> dict[str, Choice]:
    """The choices by name.

    Args:
        checked: without errors.
        size: a key of SIZES.
        memory: bytes of the device.
    """
    volumes, limits = checked.volumes, SIZES[size]
    axis = slice_axis(checked)
    planes = [_plane(volume, axis.value) for volume in volumes]
    spacing = _spacing(planes, limits)
    crop = _crop(planes, spacing.value, limits)
    slices = [count(volume, axis.value) for volume in volumes]
    threshold = _threshold(slices)
    width = limits.width if crop.value <= 64 else limits.wide_width
    labelled = {volume.patient for volume in with_classes(checked)}
    folds = _folds(len(labelled))
    training = _training_slices(volumes, slices, labelled, folds.value)
    batch = _batch_size(crop.value, width, memory, training)
    positives = positives_per_anchor(
        slices, threshold=threshold.value, batch_size=batch.value
    )
    threshold = dataclasses.replace(
        threshold,
        why=f"{threshold.why}; about {positives:.0f} of {2 * batch.value - 1} keys are"
        " then positives",
    )
    return {
        "slice_axis": axis,
        "spacing": spacing,
        "clip_percentiles": _clipping(volumes),
        "crop": crop,
        "width": Choice(
            value=width,
            why=f"channels of the first level, what a {size} has time for; the authors"
            " have 32 and 48",
        ),
        "batch_size": batch,
        "threshold": threshold,
        "folds": folds,
        **_budgets(training, batch.value, limits, size),
        "tolerance_mm": Choice(
            value=1.0 if max(spacing_of(planes, spacing.value)) <= 1 else 2.0,
            why="of the surface Dice: what you would not correct by hand",
        ),
    }


def with_classes(checked: Checked) -> list[Facts]:
    """The volumes whose label has more than the background."""
    values = set(checked.dataset.label_values[1:])
    return [volume for volume in checked.volumes if values & set(volume.label_voxels)]


def training_patients(labelled: int, folds: int) -> int:
    """Labelled patients of the smallest training part."""
    return labelled - -(-labelled // folds)


def _training_slices(
    volumes: Sequence[Facts],
    slices: Sequence[int],
    labelled: Collection[str],
    folds: int,
) -> int:
    """Slices that pre-training surely has: with the largest patients held out."""
    of_patient: Counter[str] = Counter()
    for volume, number in zip(volumes, slices, strict=True):
        of_patient[volume.patient] += number
    held = sorted((of_patient[patient] for patient in labelled), reverse=True)
    out = len(labelled) - training_patients(len(labelled), folds)
    return max(1, sum(slices) - sum(held[:out]))


def slice_axis(checked: Checked) -> Choice:
    """The canonical axis to slice along."""
    volumes, values = checked.volumes, checked.dataset.label_values[1:]
    thick = [volume for volume in volumes if is_thick(volume)]
    if thick:
        axis = statistics.mode(volume.slice_axis for volume in thick)
        return Choice(value=axis, why=f"{WAYS[axis]}: the thickest slices")
    shared = {axis: _overlap(volumes, values, axis) for axis in range(3)}
    known = {axis: share for axis, share in shared.items() if share is not None}
    if not known or max(known.values()) - min(known.values()) < 0.2:
        axis = statistics.mode(volume.slice_axis for volume in volumes)
        return Choice(
            value=axis,
            why=f"{WAYS[axis]}: spacing and labels prefer no axis; take the one"
            " along which anatomy changes most",
        )
    axis = min(known, key=lambda axis: known[axis])
    listed = ", ".join(f"{WAYS[a]} {known[a]:.0%}" for a in sorted(known))
    return Choice(
        value=axis,
        why=f"{WAYS[axis]}: along it the classes share the fewest slices ({listed})",
    )


def is_thick(volume: Facts) -> bool:
    """Whether its spacing says which axis it is cut along."""
    return one_is_thick((volume.slice_spacing, *volume.plane_spacing))


def _overlap(
    volumes: Sequence[Facts], values: Sequence[int], axis: int
) -> float | None:
    """How far two classes share slices, from 0 to 1: mean over pairs and volumes."""
    shares = []
    for volume in volumes:
        profiles = volume.axis_profiles.get(axis, {})
        areas = [np.array(profiles[value]) for value in values if value in profiles]
        areas = [area for area in areas if area.any()]
        for first, second in itertools.combinations([a / a.sum() for a in areas], 2):
            shares.append(np.minimum(first, second).sum())
    return float(np.mean(shares)) if shares else None


def _lengths(volume: Facts) -> dict[int, tuple[int, float]]:
    """{canonical axis: (voxels, mm)} of a volume."""
    rows, columns = sorted({0, 1, 2} - {volume.slice_axis}, reverse=True)
    return {
        volume.slice_axis: (volume.slices, volume.slice_spacing),
        rows: (volume.plane[0], volume.plane_spacing[0]),
        columns: (volume.plane[1], volume.plane_spacing[1]),
    }


def count(volume: Facts, axis: int) -> int:
    """Slices of a volume along a canonical axis."""
    return _lengths(volume)[axis][0]


Plane = tuple[tuple[int, float], tuple[int, float]]  # (pixels, mm) of rows, columns


def _plane(volume: Facts, axis: int) -> Plane:
    lengths = _lengths(volume)
    rows, columns = sorted({0, 1, 2} - {axis}, reverse=True)
    return lengths[rows], lengths[columns]


def spacing_of(planes: Sequence[Plane], spacing: Sequence[float]) -> tuple[float, ...]:
    """Size of the prepared pixels in mm, the medians where they stay as they are."""
    if any(spacing):
        return tuple(spacing)
    return tuple(statistics.median(plane[i][1] for plane in planes) for i in range(2))


def _spacing(planes: Sequence[Plane], limits: Size) -> Choice:
    sizes = [mm for plane in planes for _, mm in plane]
    side = statistics.median(n * mm for plane in planes for n, mm in plane)
    coarse = _SHOWN * side / limits.crop
    middle = statistics.median(sizes)
    if coarse > middle:
        value = _two_digits(coarse)
        return Choice(
            value=(value, value),
            why=f"in mm; of finer pixels a crop of {limits.crop} would show less than"
            f" {_SHOWN:.0%} of the {side:.0f} mm of a slice",
        )
    if max(sizes) > _SAME_PIXELS * min(sizes):
        value = _two_digits(middle)
        return Choice(
            value=(value, value),
            why=f"in mm, the median of {min(sizes):.3g} to {max(sizes):.3g}",
        )
    return Choice(value=(0.0, 0.0), why="keeps the pixels of the files, which agree")


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _crop(planes: Sequence[Plane], spacing: Sequence[float], limits: Size) -> Choice:
    sides = [
        n * mm / (new or mm)
        for plane in planes
        for (n, mm), new in zip(plane, spacing, strict=True)
    ]
    most = float(np.percentile(sides, 95))
    whole = MULTIPLE * math.ceil(most / MULTIPLE)
    if whole <= limits.crop:
        return Choice(
            value=whole, why="pixels, a multiple of 16 that holds nearly all slices"
        )
    shown = limits.crop / statistics.median(sides)
    return Choice(
        value=limits.crop,
        why=f"pixels, drawn at random; {min(1.0, shown):.0%} of the side of a slice",
    )


def _threshold(slices: Sequence[int]) -> Choice:
    middle = statistics.median(slices)
    value = min(max(_HEIGHT / middle, _LEAST_THRESHOLD), _MOST_THRESHOLD)
    value = round(value, 2)
    return Choice(
        value=value,
        why=f"of a volume's height: {value * middle:.0f} slices up and down of"
        f" {middle:.0f}; the authors have 0.1 for CT and 0.35 for about ten slices",
    )


def _batch_size(crop: int, width: int, memory: int, slices: int) -> Choice:
    size = 32
    while size > slices and size > 1:
        size //= 2
    few = f" of the {slices} to train on" if size < 32 else ""
    while size > 4 and kept_bytes(crop, width, size) > memory / 2:
        size //= 2
    gib = kept_bytes(crop, width, size) / 2**30
    return Choice(
        value=size,
        why=f"slices{few}, in two views each; about {gib:.1f} GiB are kept for the"
        f" gradient of {memory / 2**30:.0f} GiB",
    )


def kept_bytes(crop: int, width: int, batch_size: int) -> int:
    """What a pre-training step keeps for the gradient, roughly, in float32."""
    return _BYTES_KEPT * 2 * batch_size * crop**2 * width


def _clipping(volumes: Sequence[Facts]) -> Choice:
    clips = (1.0, 99.0)
    flat = sum(is_flat(volume, clips) for volume in volumes)
    specks = sum(map(has_specks, volumes))
    if flat:
        return Choice(
            value=(0.0, 100.0),
            why=f"clips nothing: {flat} of {len(volumes)} volumes are of one grey value"
            " but for a hundredth of the voxels",
        )
    if specks:
        return Choice(
            value=clips,
            why=f"{specks} of {len(volumes)} volumes have specks of {SPECK:.0f} times"
            " the usual range",
        )
    return Choice(value=(0.0, 100.0), why="clips nothing: no volume has bright specks")


def _folds(labelled: int) -> Choice:
    folds = max(2, min(_FOLDS, labelled // 2))
    return Choice(
        value=folds,
        why=f"each holds out one part of the {labelled} labelled patients in turn",
    )


def _budgets(
    slices: int, batch_size: int, limits: Size, size: str
) -> Mapping[str, Choice]:
    an_epoch = max(1, slices // batch_size)
    steps = min(limits.pretrain_steps, limits.pretrain_epochs * an_epoch)
    return {
        "pretrain_steps": Choice(
            value=steps,
            why=f"{max(1, round(steps / an_epoch))} times through {slices:,} slices,"
            f" what a {size} has time for; the authors go 300 times through",
        ),
        "finetune_steps": Choice(
            value=limits.finetune_steps, why="of ten slices, whatever their number"
        ),
        "rate": Choice(
            value=limits.rate,
            why="the best of three for few labels"
            + (" in so few steps" if size == "cpu" else ""),
        ),
    }
