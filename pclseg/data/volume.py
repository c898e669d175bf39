"""One volume: normalised image and class ids for the network, and the way back."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pclseg.data import scratch
from pclseg.data.datasets.base import Stray
from pclseg.data.geometry import Geometry, orient, unorient
from pclseg.data.resample import blocks, resize_label_slice, resize_slice, resize_volume
from pclseg.data.volume_file import file_planes
from pclseg.errors import UserError

_SIGN = np.uint32(1 << 31)


def prepare_image(
    array: np.ndarray,
    geometry: Geometry,
    *,
    clip_percentiles: Sequence[float],
    integers: bool,
    replace_below: Sequence[float],
    image_order: int,
    on_disk: Path | None = None,
) -> np.ndarray:
    """The image as the network sees it: resampled, then clipped, then normalised.

    Args:
        array: [X, Y, Z] as in the file.
        geometry: of `prepared_geometry`.
        clip_percentiles: (low, high) of the resampled volume; (0, 100) clips nothing.
        integers: resampled voxels and the limits of clipping lose their fraction, as
            where PCL's code keeps CT in integers.
        replace_below: (limit, value): what is below the limit after clipping, such as
            voxels outside of a scanner's field of view, becomes the value; or ().
        image_order: of the spline that resamples.
        on_disk: folder for a result that memory cannot hold.

    Returns:
        float32 [Z, H, W] of mean 0 and population standard deviation 1.

    Raises:
        UserError: an option out of range, or nothing but one value is left.
    """
    _check_image_options(clip_percentiles, replace_below, image_order)
    volume = orient(array, geometry)
    if geometry.shape != geometry.native_shape:
        volume = resize_volume(volume, geometry.shape[1:], image_order, on_disk)
    if geometry.shape == geometry.native_shape or volume.dtype != np.float32:
        image = _in_float32(volume, on_disk)
    else:
        image = volume
    if integers:
        np.trunc(image, out=image)
    if tuple(clip_percentiles) != (0, 100):
        # In memory the one with a copy is faster.
        ranked = np.percentile if on_disk is None else percentiles
        limits = ranked(image, clip_percentiles)
        limits = np.trunc(limits) if integers else limits
        np.clip(image, *limits.astype(np.float32), out=image)
    if replace_below:
        limit, value = replace_below
        for plane in image:
            plane[plane < limit] = value
    return _normalise(image)


def _in_float32(volume: np.ndarray, on_disk: Path | None) -> np.ndarray:
    """A copy in float32, slices contiguous."""
    image = scratch.empty(volume.shape, np.float32, on_disk)
    for before, after in zip(blocks(volume), blocks(image), strict=True):
        after[...] = before
    return image


def percentiles(volume: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """Equal to `np.percentile`, without a second array of the volume's size.

    Numbers are found by their rank in two counts: of the upper halves of their bits,
    then of the lower halves among those that share the upper one.

    Args:
        volume: [Z, H, W] float32 without NaN.
        percents: 0 to 100.

    Returns:
        [len(percents)] float64, linear between the two nearest ranks.
    """
    upper = sum(_count(keys >> 16) for keys in _ordered_bits(volume))
    starts = np.cumsum(upper) - upper  # ranks

    @functools.cache
    def lower(half: int) -> np.ndarray:
        """How many of those with an upper half are at or below each lower one."""
        counts = sum(
            _count(keys[keys >> 16 == half] & 0xFFFF) for keys in _ordered_bits(volume)
        )
        return np.cumsum(counts)

    def ranked(rank: int) -> np.float32:
        half = int(np.searchsorted(starts, rank, "right")) - 1
        rest = int(np.searchsorted(lower(half), rank - starts[half], "right"))
        bits = np.uint32((half << 16) + rest)
        return (bits ^ _SIGN if bits & _SIGN else ~bits).view(np.float32)

    found = []
    for percent in percents:
        place = np.float64(percent) / 100 * (volume.size - 1)
        below = int(place)
        pair = [ranked(below), ranked(min(below + 1, volume.size - 1))]
        found.append(np.quantile(np.array(pair), place - below))
    return np.array(found)


def _ordered_bits(volume: np.ndarray) -> Iterator[np.ndarray]:
    """For each slice uint32 numbers in the order of its float32 ones."""
    for plane in volume:
        bits = plane.ravel().view(np.uint32)
        yield np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _count(halves: np.ndarray) -> np.ndarray:
    return np.bincount(halves, minlength=1 << 16)


def _check_image_options(
    clip_percentiles: Sequence[float], replace_below: Sequence[float], image_order: int
) -> None:
    low, high = clip_percentiles
    if not 0 <= low < high <= 100:
        raise UserError(
            f"config.data.prepare.clip_percentiles is {(low, high)}; expected"
            " 0 <= low < high <= 100."
        )
    largest = float(np.finfo(np.float32).max)
    finite = all(abs(value) <= largest for value in replace_below)
    if len(replace_below) not in (0, 2) or not finite:
        raise UserError(
            f"config.data.prepare.replace_below is {tuple(replace_below)}; expected"
            " (limit, value), finite in float32, or () for none."
        )
    if image_order not in range(6):
        raise UserError(
            f"config.data.prepare.image_order is {image_order}; use 0 to 5."
        )


def _normalise(image: np.ndarray) -> np.ndarray:
    """(image - mean) / std in place; in float64 slice by slice, to spare memory."""
    mean = sum(plane.sum(dtype=np.float64) for plane in image) / image.size
    square = sum(((plane - mean) ** 2).sum() for plane in _as_float64(image))
    std = np.sqrt(square / image.size)
    if std == 0:
        raise UserError(
            "between the percentiles every voxel is the same; widen"
            " config.data.prepare.clip_percentiles."
        )
    for plane in image:
        plane[...] = (plane.astype(np.float64) - mean) / std
    return image


def _as_float64(volume: np.ndarray) -> Iterator[np.ndarray]:
    return (plane.astype(np.float64) for plane in volume)


def prepare_label(
    array: np.ndarray,
    geometry: Geometry,
    *,
    label_values: Sequence[int],
    label_order: int,
    strays: Sequence[Stray] = (),
) -> np.ndarray:
    """The label as class ids on the prepared grid.

    Args:
        array: [X, Y, Z] values as in the file.
        geometry: of `prepared_geometry`.
        label_values: the file's value of class 0, 1, ...
        strays: what values that are no class's mean.
        label_order: 1 resamples each class linearly and takes the largest share, as
            PCL's code does; 0 takes the nearest voxel.

    Returns:
        [Z, H, W] ids, uint8 (uint16 for more than 256 classes).

    Raises:
        UserError: a value that neither `label_values` nor `strays` hold: which, how
            often, where.
    """
    if label_order not in (0, 1):
        raise UserError(
            f"config.data.prepare.label_order is {label_order}; use 0 or 1."
        )
    ids = orient(class_ids(array, label_values, strays), geometry)
    out = np.empty(geometry.shape, ids.dtype)
    for before, after in zip(ids, out, strict=True):
        after[...] = resize_label_slice(before, geometry.shape[1:], label_order)
    return out


def class_ids(
    array: np.ndarray, label_values: Sequence[int], strays: Sequence[Stray] = ()
) -> np.ndarray:
    """Class ids, in an array of the same shape, for the values of a label file."""
    values = np.asarray(label_values, np.int64)
    order = np.argsort(values)
    dtype = np.uint8 if len(values) <= 256 else np.uint16
    ids = np.empty(array.shape, dtype, order="F")
    unknown: dict[int, list] = {}  # value: [count, first voxel]
    planes = zip(file_planes(array), file_planes(ids), strict=True)
    for z, (before, after) in enumerate(planes):
        whole = np.rint(before).astype(np.int64)
        for stray in strays:
            whole[_is_stray(whole, stray, values)] = stray.value
        place = np.minimum(np.searchsorted(values[order], whole), len(values) - 1)
        after[...] = order[place]
        for value in np.unique(whole[values[after] != whole]):
            where = np.argwhere(whole == value)
            first = (*map(int, where[0]), z)
            unknown.setdefault(int(value), [0, first])[0] += len(where)
    if unknown:
        listed = ", ".join(
            f"{value} ({count} voxels, first at {first})"
            for value, (count, first) in sorted(unknown.items())[:5]
        )
        raise UserError(
            f"label value {listed}{' and others' if len(unknown) > 5 else ''} is not"
            f" among the classes {tuple(label_values)}; mend the"
            " file, or add it to config.data.options.label_values where the dataset has"
            " that option."
        )
    return ids


def _is_stray(whole: np.ndarray, stray: Stray, values: np.ndarray) -> np.ndarray:
    inside = (stray.first <= whole) & (whole <= stray.last)
    return inside & ~np.isin(whole, values)


def stray_notes(
    array: np.ndarray, label_values: Sequence[int], strays: Sequence[Stray]
) -> list[str]:
    """A line for each of `strays` by which voxels of a label file join a class.

    Those that join the background are as the dataset means them.
    """
    values = np.asarray(label_values, np.int64)
    notes = []
    for stray in strays:
        if stray.value == label_values[0]:
            continue
        planes = (np.rint(p).astype(np.int64) for p in file_planes(array))
        count = sum(int(_is_stray(p, stray, values).sum()) for p in planes)
        if count:
            notes.append(
                f"{count} voxels hold a label value from {stray.first} to {stray.last},"
                f" which is no class's; they are taken for {stray.value}."
            )
    return notes


def restore_label(
    slices: Iterable[np.ndarray],
    geometry: Geometry,
    *,
    label_values: Sequence[int],
    on_disk: Path | None = None,
) -> np.ndarray:
    """A prediction on the prepared grid, brought back to the file's.

    Probabilities are resampled linearly and the largest one taken. Class ids are exact
    where preparation did not resample; otherwise each class is resampled linearly.

    Args:
        slices: Z of them, [H, W, K] float, or [H, W] class ids; an array has them.
        geometry: of the prepared volume.
        label_values: the file's value of class 0, 1, ...
        on_disk: folder for a result that memory cannot hold.

    Returns:
        [X, Y, Z] label values, in the smallest of uint8, int16, int32 and int64 that
        holds `label_values`.
    """
    plane_shape = geometry.native_shape[1:]
    values = np.asarray(label_values, label_dtype(label_values))
    out = scratch.empty(geometry.native_shape, values.dtype, on_disk)
    for before, after in zip(_checked(slices, geometry), out, strict=True):
        if before.ndim == 3:  # [H, W, K]
            classes = np.moveaxis(before, -1, 0)
            ids = np.argmax([resize_slice(c, plane_shape, 1) for c in classes], axis=0)
        else:
            ids = resize_label_slice(before, plane_shape, 1)
        after[...] = values[ids]
    label = unorient(out, geometry)
    return label if on_disk else np.ascontiguousarray(label)


def restore_probabilities(
    slices: Iterable[np.ndarray], geometry: Geometry, *, on_disk: Path | None = None
) -> np.ndarray:
    """Probabilities of a prediction, brought back to the file's grid.

    Args:
        slices: Z of them, [H, W, K] float.
        geometry: of the prepared volume.
        on_disk: folder for a result that memory cannot hold.

    Returns:
        float32 [X, Y, Z, K]; resampled linearly where preparation resampled.
    """
    depth, *plane_shape = geometry.native_shape
    shape = (plane_shape[0], plane_shape[1])
    out: np.ndarray | None = None
    for z, before in zip(range(depth), _checked(slices, geometry), strict=True):
        if out is None:  # [K, Z, H, W], each class as a file stores it
            out = scratch.empty((before.shape[-1], depth, *shape), np.float32, on_disk)
        for class_id, of_class in enumerate(np.moveaxis(before, -1, 0)):
            out[class_id, z] = resize_slice(of_class, shape, 1)
    if out is None:
        raise ValueError("there is no slice.")
    return unorient(np.moveaxis(out, 0, -1), geometry)


def _checked(slices: Iterable[np.ndarray], geometry: Geometry) -> Iterator[np.ndarray]:
    for plane in slices:
        if plane.shape[:2] != geometry.shape[1:]:
            raise ValueError(
                f"a slice of the prediction has shape {plane.shape[:2]}; expected that"
                f" of the prepared volume, {geometry.shape[1:]}."
            )
        yield plane


def label_dtype(label_values: Sequence[int]) -> np.dtype:
    """The smallest integer dtype, of those that viewers read, that holds the values."""
    for dtype in (np.uint8, np.int16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= min(label_values) and max(label_values) <= limits.max:
            return np.dtype(dtype)
    return np.dtype(np.int64)
