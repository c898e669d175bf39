"""One volume: read, orient, resample, normalise, and back to the grid of the file."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from pclseg.data.datasets.base import READ_ERRORS, Case, open_nifti
from pclseg.errors import UserError

AXIS_RATIO = (
    1.5  # "auto" slices along the axis of largest spacing if it is so much larger
)
GRID_TOLERANCE = 0.25  # voxels by which the grids of image and label may differ
WHOLE_TOLERANCE = 1e-4  # label values this near to a whole number count as one
SPACING_KEY = "config.data.prepare.spacing"
AXIS_KEY = "config.data.prepare.slice_axis"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LoadedCase:
    """What the files of a case hold, in their own axes and orientation."""

    image: np.ndarray  # [X, Y, Z] integer or float, finite, not constant
    affine: np.ndarray  # [4, 4] float64, voxel index to mm (RAS+)
    label: np.ndarray | None  # [X, Y, Z] values of the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a prepared volume lies in its file; all that the way back needs."""

    file_shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]  # 4 x 4, of the file
    axes: tuple[int, int, int]  # file axis of each prepared axis
    flips: tuple[bool, bool, bool]  # prepared axes that run against the file's
    native_shape: tuple[int, int, int]  # (Z, H, W) before resampling
    native_spacing: tuple[float, float, float]  # (z, y, x) mm, of the file
    shape: tuple[int, int, int]  # (Z, H, W) prepared

    def to_json(self) -> str:
        """The geometry as JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Geometry":
        """The geometry that `to_json` wrote."""

        def frozen(value: Any) -> Any:
            return tuple(map(frozen, value)) if isinstance(value, list) else value

        return cls(**{key: frozen(value) for key, value in json.loads(text).items()})


@contextlib.contextmanager
def naming(case: Case, path: Path | None) -> Iterator[None]:
    """Puts the case and the file in front of a UserError that is raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{case.name}: {path}: {error}") from error


def load_case(case: Case) -> LoadedCase:
    """Reads and checks the files of a case.

    Raises:
        UserError: naming case and file: unreadable or cut short, not 3-D, NaN or
            infinite voxels, constant image, label on another grid or not of whole
            numbers.
    """
    with naming(case, case.image_path):
        image, affine = read_volume(case.image_path, case.time_index)
        check_image(image)
    if case.label_path is None:
        return LoadedCase(image, affine, None)
    with naming(case, case.label_path):
        label, label_affine = read_volume(case.label_path, case.time_index)
        check_grids(image.shape, affine, label.shape, label_affine)
        check_whole(label)
    return LoadedCase(image, affine, label)


def read_volume(path: Path, time_index: int | None) -> tuple[np.ndarray, np.ndarray]:
    """([X, Y, Z] array, [4, 4] float64 affine) of a NIfTI file.

    Integers stay as they are stored; scaled values and wide floats become float32.

    Args:
        path: the file.
        time_index: index on the fourth axis; a 3-D file ignores it.

    Raises:
        UserError: the file cannot be read, is not 3-D, or has no usable affine.
    """
    if not path.is_file():
        raise UserError("the file does not exist; add it or take the case out.")
    try:
        source = open_nifti(path)
        array = _read_array(source, time_index)
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the file cannot be read ({reason}); it is damaged or not NIfTI: copy or"
            " download it again."
        ) from error
    return array, read_affine(source)


def read_affine(source: nib.Nifti1Image | nib.Nifti2Image) -> np.ndarray:
    """The affine of an opened file, [4, 4] float64, voxel index to mm (RAS+).

    Raises:
        UserError: it cannot be inverted, so the axes of the file have no directions.
    """
    affine = np.asarray(source.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise UserError("the header's affine cannot be inverted; mend the header.")
    return affine


def _read_array(
    source: nib.Nifti1Image | nib.Nifti2Image, index: int | None
) -> np.ndarray:
    shape = source.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 4 and index is not None and index < shape[3]:
        array = np.asanyarray(source.dataobj[..., index])
    elif len(shape) == 3:
        array = np.asanyarray(source.dataobj)
    else:
        raise UserError(
            f"the file's shape is {tuple(source.shape)}; expected a 3-D volume"
            " (one slice a file, colours and vectors are not supported)."
        )
    array = array.reshape(shape[:3])
    if array.dtype.kind not in "iuf":
        raise UserError(
            f"its voxels are {array.dtype}; expected whole or real numbers."
        )
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def check_image(image: np.ndarray) -> None:
    """Raises UserError where an image holds NaN or infinity, or one value only."""
    _check_finite(image)
    if image.min() == image.max():
        raise UserError(
            f"every voxel is {image.flat[0]:g}, so there is nothing to normalise; check"
            " how the file was exported."
        )


def _file_planes(array: np.ndarray) -> np.ndarray:
    """A view [Z, X, Y]: planes that are contiguous in memory, as files store them."""
    return np.moveaxis(array, -1, 0)


def _check_finite(array: np.ndarray) -> None:
    if array.dtype.kind != "f":
        return
    bad = sum(plane.size - np.isfinite(plane).sum() for plane in _file_planes(array))
    if bad:
        raise UserError(
            f"{bad} of {array.size} voxels are NaN or infinite; replace them, for"
            " example by the background intensity."
        )


def check_whole(label: np.ndarray) -> None:
    """Raises UserError where a label holds NaN or values that are not whole numbers."""
    _check_finite(label)
    if label.dtype.kind != "f":
        return
    bad = [p[np.abs(p - np.rint(p)) > WHOLE_TOLERANCE] for p in _file_planes(label)]
    count = sum(map(len, bad))
    if count:
        example = np.concatenate(bad)[0]
        raise UserError(
            f"{count} voxels hold label values that are not whole numbers, such as"
            f" {example:g}; it was resampled with interpolation: use nearest neighbour."
        )


def check_grids(
    shape: Sequence[int],
    affine: np.ndarray,
    label_shape: Sequence[int],
    label_affine: np.ndarray,
) -> None:
    """Raises UserError where a label's voxels do not lie on those of its image.

    The corners of the volume may differ by a quarter of a voxel, which is far more than
    rounding in the headers causes.
    """
    if tuple(shape) != tuple(label_shape):
        raise UserError(
            f"the label's shape is {tuple(label_shape)}, the image's {tuple(shape)};"
            " resample the label onto the image."
        )
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij"))
    corners = corners.reshape(4, -1).astype(np.float64)  # [4, 8]
    apart = (affine - label_affine) @ corners
    voxels = np.linalg.solve(affine[:3, :3], apart[:3])
    if np.abs(voxels).max() > GRID_TOLERANCE:
        raise UserError(
            "the label lies up to"
            f" {np.linalg.norm(apart[:3], axis=0).max():.3g} mm off the image"
            f" ({np.abs(voxels).max():.2g} voxels) though their shapes agree; copy the"
            " image's affine into the label or resample it onto the image."
        )


def prepared_geometry(
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    slice_axis: int | str,
    spacing: Sequence[float],
) -> tuple[Geometry, tuple[int, int, int], tuple[float, float, float]]:
    """Where a prepared volume [Z, H, W] lies in its file.

    Axes are named in the canonical orientation, 0 to the right, 1 to the front and 2
    upwards; for an oblique file it is the nearest one. Slices are counted along +.
    Z is the slice axis, H and W are the two others in descending order: an axial volume
    (x, y, z) becomes (z, y, x).

    Args:
        shape: (X, Y, Z) of the file.
        affine: [4, 4] of the file.
        slice_axis: 0, 1, 2, or "auto": the axis of largest spacing if that is 1.5 times
            the second largest, else 2.
        spacing: (y, x) mm of the prepared slices; () or zeros keep those of the file.
            The size becomes round(old / new * size), half to even, as in PCL's code.

    Returns:
        The geometry, the prepared (Z, H, W), and the prepared spacing (z, y, x) in mm,
        which differs a little from the one asked for, since sizes are whole numbers.

    Raises:
        UserError: an option out of range, or a single slice, which has no position.
    """
    affine = np.asarray(affine, np.float64)
    orientation = nib.io_orientation(affine)  # [3, 2] canonical axis, +1 or -1
    # Rounded, or the noise of an oblique affine would decide between two sizes.
    file_spacing = np.round(voxel_sizes(affine), 6)
    file_axis = {int(axis): i for i, axis in enumerate(orientation[:, 0])}
    along = _slice_axis(slice_axis, [file_spacing[file_axis[c]] for c in range(3)])
    canonical = (along, *sorted({0, 1, 2} - {along}, reverse=True))
    axes = _triple(file_axis[c] for c in canonical)
    native_shape = _triple(int(shape[i]) for i in axes)
    native_spacing = _triple(float(file_spacing[i]) for i in axes)
    if native_shape[0] < 2:
        raise UserError(
            f"it has one slice along canonical axis {along}, so slices have no"
            f" position; set {AXIS_KEY} to the axis that the volume is cut along, or"
            " leave the file out."
        )
    height, width = _plane(native_shape[1:], native_spacing[1:], spacing)
    new_shape = (native_shape[0], height, width)
    geometry = Geometry(
        file_shape=_triple(int(n) for n in shape),
        affine=tuple(tuple(row) for row in affine.tolist()),
        axes=axes,
        flips=_triple(bool(orientation[i, 1] < 0) for i in axes),
        native_shape=native_shape,
        native_spacing=native_spacing,
        shape=new_shape,
    )
    old = zip(native_spacing, native_shape, strict=True)
    field_of_view = [mm * count for mm, count in old]
    new_spacing = _triple(
        mm / count for mm, count in zip(field_of_view, new_shape, strict=True)
    )
    return geometry, new_shape, new_spacing


def _triple(values: Iterable[T]) -> tuple[T, T, T]:
    first, second, third = values
    return first, second, third


def _slice_axis(slice_axis: int | str, spacing: Sequence[float]) -> int:
    if str(slice_axis) in ("0", "1", "2"):
        return int(slice_axis)
    if slice_axis != "auto":
        raise UserError(f"{AXIS_KEY} is {slice_axis!r}; expected 'auto', 0, 1 or 2.")
    second, largest = sorted(spacing)[1:]
    return int(np.argmax(spacing)) if largest >= AXIS_RATIO * second else 2


def _plane(
    size: Sequence[int], old: Sequence[float], new: Sequence[float]
) -> tuple[int, ...]:
    if len(new) not in (0, 2) or any(s < 0 for s in new):
        raise UserError(
            f"{SPACING_KEY} is {tuple(new)}; expected (y, x) in mm, or () for the"
            " file's own."
        )
    targets = [target or before for target, before in zip(new or old, old, strict=True)]
    return tuple(
        max(1, int(np.round(before / target * count)))
        for count, before, target in zip(size, old, targets, strict=True)
    )


def orient(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A view [Z, H, W] of a file's array [X, Y, Z], before resampling."""
    turned = array.transpose(geometry.axes)
    return turned[tuple(slice(None, None, -1 if f else 1) for f in geometry.flips)]


def unorient(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The inverse of `orient`: a view in the file's axes of [Z, H, W]."""
    turned = array[tuple(slice(None, None, -1 if f else 1) for f in geometry.flips)]
    return turned.transpose(np.argsort(geometry.axes))


def resize_plane(volume: np.ndarray, shape: tuple[int, int], order: int) -> np.ndarray:
    """Resamples every slice onto a grid of another size over the same field of view.

    Output pixel j lies at (j + 0.5) * old / new - 0.5, edges extended by the nearest
    value. Before shrinking, slices are smoothed by a Gaussian of standard deviation
    (old / new - 1) / 2, except for order 0. Results are clipped to the range of the
    whole volume. This equals `resize` of scikit-image 0.26, which PCL's code calls.

    Args:
        volume: [Z, H, W].
        shape: the new (H, W).
        order: of the spline: 0 nearest, 1 linear, 3 cubic.

    Returns:
        [Z, *shape] in the volume's dtype; float32 if that is an integer and order > 0.
    """
    floating = volume.dtype.kind == "f" or order == 0
    out = np.empty((len(volume), *shape), volume.dtype if floating else np.float32)
    lowest, highest = volume.min(), volume.max()
    for before, after in zip(volume, out, strict=True):
        after[...] = np.clip(_resize_slice(before, shape, order), lowest, highest)
    return out


def _resize_slice(plane: np.ndarray, shape: tuple[int, int], order: int) -> np.ndarray:
    if plane.shape == shape:
        return plane
    plane = plane.astype(np.float64)
    factors = np.asarray(plane.shape) / np.asarray(shape)
    if order > 0 and (factors > 1).any():
        sigma = np.maximum(0, (factors - 1) / 2)
        plane = ndimage.gaussian_filter(plane, sigma, mode="nearest")
    zoom = 1 / factors
    resized = ndimage.zoom(plane, zoom, order=order, mode="nearest", grid_mode=True)
    return np.asarray(resized)


def _resize_label_slice(
    plane: np.ndarray, shape: tuple[int, int], order: int
) -> np.ndarray:
    """One label slice: every class resampled by itself, the smaller id wins a tie."""
    if plane.shape == shape or order == 0:
        return _resize_slice(plane, shape, 0)
    present = np.unique(plane)
    if len(present) == 1:
        return np.full(shape, present[0])
    shares = [_resize_slice(plane == k, shape, order) for k in present]
    return present[np.argmax(np.clip(shares, 0, 1), axis=0)]


def prepare_image(
    array: np.ndarray,
    geometry: Geometry,
    *,
    clip_percentiles: Sequence[float],
    image_order: int,
) -> np.ndarray:
    """The image as the network sees it: resampled, then clipped, then normalised.

    Args:
        array: [X, Y, Z] as in the file.
        geometry: of `prepared_geometry`.
        clip_percentiles: (low, high) of the resampled volume; (0, 100) clips nothing.
        image_order: of the spline that resamples.

    Returns:
        float32 [Z, H, W] of mean 0 and population standard deviation 1.

    Raises:
        UserError: percentiles out of order, or nothing but one value is left.
    """
    low, high = clip_percentiles
    if not 0 <= low < high <= 100:
        raise UserError(
            f"config.data.prepare.clip_percentiles is {(low, high)}; expected"
            " 0 <= low < high <= 100."
        )
    if image_order not in range(6):
        raise UserError(
            f"config.data.prepare.image_order is {image_order}; use 0 to 5."
        )
    volume = orient(array, geometry)
    if geometry.shape == geometry.native_shape:
        image = np.array(volume, np.float32, order="C")
    else:
        image = resize_plane(volume, geometry.shape[1:], image_order)
        image = image.astype(np.float32, copy=False)
    if (low, high) != (0, 100):
        limits = np.percentile(image, (low, high))
        np.clip(image, *limits.astype(np.float32), out=image)
    return _normalise(image)


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
) -> np.ndarray:
    """The label as class ids on the prepared grid.

    Args:
        array: [X, Y, Z] values as in the file.
        geometry: of `prepared_geometry`.
        label_values: the file's value of class 0, 1, ...
        label_order: 1 resamples each class linearly and takes the largest share, as
            PCL's code does; 0 takes the nearest voxel.

    Returns:
        [Z, H, W] ids, uint8 (uint16 for more than 256 classes).

    Raises:
        UserError: a value that is not in `label_values`: which, how often, where.
    """
    if label_order not in (0, 1):
        raise UserError(
            f"config.data.prepare.label_order is {label_order}; use 0 or 1."
        )
    ids = orient(class_ids(array, label_values), geometry)
    out = np.empty(geometry.shape, ids.dtype)
    for before, after in zip(ids, out, strict=True):
        after[...] = _resize_label_slice(before, geometry.shape[1:], label_order)
    return out


def class_ids(array: np.ndarray, label_values: Sequence[int]) -> np.ndarray:
    """Class ids, in an array of the same shape, for the values of a label file."""
    values = np.asarray(label_values, np.int64)
    order = np.argsort(values)
    dtype = np.uint8 if len(values) <= 256 else np.uint16
    ids = np.empty(array.shape, dtype, order="F")
    unknown: dict[int, list] = {}  # value: [count, first voxel]
    planes = zip(_file_planes(array), _file_planes(ids), strict=True)
    for z, (before, after) in enumerate(planes):
        whole = np.rint(before).astype(np.int64)
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
            f" among the classes {tuple(label_values)}; add it to"
            " config.data.options.label_values or mend the file."
        )
    return ids


def restore_label(
    probs_or_label: np.ndarray, geometry: Geometry, *, label_values: Sequence[int]
) -> np.ndarray:
    """A prediction on the prepared grid, brought back to the file's.

    Probabilities are resampled linearly and the largest one taken. Class ids are exact
    where preparation did not resample; otherwise each class is resampled linearly.

    Args:
        probs_or_label: [Z, H, W, K] float, or [Z, H, W] class ids.
        geometry: of the prepared volume.
        label_values: the file's value of class 0, 1, ...

    Returns:
        [X, Y, Z] label values, in the smallest of uint8, int16, int32 and int64 that
        holds `label_values`.
    """
    if probs_or_label.shape[:3] != geometry.shape:
        raise ValueError(
            f"the prediction's shape is {probs_or_label.shape[:3]}; expected the"
            f" prepared {geometry.shape}."
        )
    plane_shape = geometry.native_shape[1:]
    values = np.asarray(label_values, label_dtype(label_values))
    out = np.empty(geometry.native_shape, values.dtype)
    for before, after in zip(probs_or_label, out, strict=True):
        if before.ndim == 3:  # [H, W, K]
            classes = np.moveaxis(before, -1, 0)
            ids = np.argmax([_resize_slice(c, plane_shape, 1) for c in classes], axis=0)
        else:
            ids = _resize_label_slice(before, plane_shape, 1)
        after[...] = values[ids]
    return np.ascontiguousarray(unorient(out, geometry))


def label_dtype(label_values: Sequence[int]) -> np.dtype:
    """The smallest integer dtype, of those that viewers read, that holds the values."""
    for dtype in (np.uint8, np.int16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= min(label_values) and max(label_values) <= limits.max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def write_label(path: Path, label: np.ndarray, *, like: Path) -> None:
    """Writes a label volume with the geometry of the image that it belongs to.

    Affine, qform, sform and their codes are those of `like`. The file appears whole or
    not at all.

    Args:
        path: ends in .nii.gz or .nii.
        label: [X, Y, Z] of an integer dtype, on the grid of `like`.
        like: the input image; of a 4-D one, label is a frame.
    """
    source = open_nifti(like)
    if label.shape != source.shape[:3]:
        raise ValueError(
            f"label has shape {label.shape}, {like} has {source.shape[:3]}."
        )
    header = source.header.copy()
    header.set_data_dtype(label.dtype)
    header["cal_min"] = header["cal_max"] = 0  # a display range of the image
    image = type(source)(label, source.affine, header)
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    temporary = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        nib.save(image, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
