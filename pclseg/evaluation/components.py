"""The largest connected part of a class: kept alone where that was found to help."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from pclseg.data import scratch
from pclseg.evaluation.overlap import case_dice_from_counts, counts

FILE = "largest_part.json"  # of a run: `summarise_gains` of its held-out cases
_COUNTED = 2**24  # voxels at a time
_TOUCHING = np.ones((3, 3, 3), bool)  # also at edges and corners


def keep_largest(
    ids: np.ndarray,
    classes: Collection[int],
    *,
    background: int = 0,
    on_disk: Path | None = None,
) -> np.ndarray:
    """Turns all but the largest part of some classes into background.

    Args:
        ids: 3-D, class ids or label values.
        classes: those of the classes, each by itself; parts touch at faces, edges or
            corners. Of equally large parts the one with the first voxel stays.
        background: what the rest becomes.
        on_disk: folder for what memory cannot hold.

    Returns:
        An array like `ids`; without `classes` the same one.
    """
    if not classes:
        return ids
    # As it lies in memory or file, so that what is read at a time lies together.
    order = np.argsort([-abs(stride) for stride in ids.strides], kind="stable")
    back = np.argsort(order)
    ids = ids.transpose(order)
    kept = scratch.empty(ids.shape, ids.dtype, on_disk)
    kept[...] = ids
    inside = scratch.empty(ids.shape, np.bool_, on_disk)
    parts = scratch.empty(ids.shape, np.int32, on_disk)
    for class_id in classes:
        np.equal(ids, class_id, out=inside)
        number = ndimage.label(inside, _TOUCHING, output=parts)
        if number > 1:
            sizes = _sizes(parts, number)
            largest = 1 + np.flatnonzero(sizes == sizes.max())
            stays = _first_of(largest, parts.transpose(back))
            for plane, of_plane in zip(kept, parts, strict=True):
                plane[(of_plane > 0) & (of_plane != stays)] = background
    return kept.transpose(back)


def _sizes(parts: np.ndarray, number: int) -> np.ndarray:
    """Voxels of part 1, 2, ... `number`."""
    flat = parts.ravel()
    counts = np.zeros(number + 1, np.int64)
    for first in range(0, len(flat), _COUNTED):
        counts += np.bincount(flat[first : first + _COUNTED], minlength=number + 1)
    return counts[1:]


def _first_of(some: np.ndarray, parts: np.ndarray) -> int:
    """That of `some` parts whose first voxel comes first."""
    if len(some) > 1:
        for plane in parts:
            found = plane[np.isin(plane, some)]
            if len(found):
                return int(found[0])
    return int(some[0])


def compare(
    prediction: np.ndarray, label: np.ndarray, num_classes: int
) -> list[list[float]]:
    """Dice of a case as predicted, and with the largest part of each class alone.

    Args:
        prediction: [Z, H, W] class ids.
        label: likewise.
        num_classes: K, background included.

    Returns:
        [K - 1][2], NaN where a class is neither predicted nor there.
    """
    alone = keep_largest(prediction, range(1, num_classes))
    dice = [
        case_dice_from_counts(counts(ids, label, num_classes))
        for ids in (prediction, alone)
    ]
    return np.stack(dice, axis=-1).tolist()


def summarise_gains(
    compared: Sequence[Sequence[Sequence[float]]], class_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What keeping the largest part alone does to the mean Dice of each class.

    Args:
        compared: of every case, from `compare`.
        class_names: K names, background first.

    Returns:
        {class: {"dice", "dice_largest", "n", "better", "worse"}}; fit for JSON, means
        are None where no case has the class.
    """
    found = {}
    for number, name in enumerate(class_names[1:]):
        pairs = np.array([case[number] for case in compared]).reshape(-1, 2)
        pairs = pairs[~np.isnan(pairs).any(axis=1)]
        change = pairs[:, 1] - pairs[:, 0]
        found[name] = {
            "dice": _or_none(pairs[:, 0]),
            "dice_largest": _or_none(pairs[:, 1]),
            "n": len(pairs),
            "better": int((change > 0).sum()),
            "worse": int((change < 0).sum()),
        }
    return found


def _or_none(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def chosen_classes(
    gains: Sequence[Mapping[str, Mapping[str, Any]]], class_names: Sequence[str]
) -> tuple[int, ...]:
    """Ids of the classes whose mean Dice rose by keeping the largest part alone.

    Args:
        gains: of one or several networks, from `summarise_gains`; cases count alike.
        class_names: K names, background first.
    """
    chosen = []
    for class_id, name in enumerate(class_names[1:], start=1):
        parts = [each[name] for each in gains if each[name]["n"]]
        total = sum(p["n"] * (p["dice_largest"] - p["dice"]) for p in parts)
        if total > 0:
            chosen.append(class_id)
    return tuple(chosen)
