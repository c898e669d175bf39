"""Volumes in NIfTI files: read and checked, and written on the grid of an image."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener

from pclseg.data import scratch
from pclseg.data.datasets.base import (
    LARGEST,
    READ_ERRORS,
    WHOLE_TOLERANCE,
    Case,
    open_nifti,
)
from pclseg.data.resample import blocks
from pclseg.errors import UserError
from pclseg.files import replacing

GRID_TOLERANCE = 0.25  # voxels by which the grids of image and label may differ


@dataclasses.dataclass(frozen=True)
class LoadedCase:
    """What the files of a case hold, in their own axes and orientation."""

    # A channel each: [X, Y, Z] integer or float, finite, not constant.
    images: tuple[np.ndarray, ...]
    affine: np.ndarray  # [4, 4] float64, voxel index to mm (RAS+)
    label: np.ndarray | None  # [X, Y, Z] values of the file


@contextlib.contextmanager
def naming(case: Case, path: Path | None) -> Iterator[None]:
    """Puts the case and the file in front of a UserError that is raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{case.name}: {path}: {error}") from error


def load_case(case: Case, on_disk: Path | None = None) -> LoadedCase:
    """Reads and checks the files of a case.

    Args:
        case: by its files.
        on_disk: folder for what memory cannot hold, see `scratch.empty`; None to hold
            it there.

    Raises:
        UserError: naming case and file: unreadable or cut short, not 3-D, NaN or
            infinite voxels, constant image, label or channel on another grid than the
            first channel, label not of whole numbers.
    """
    with naming(case, case.image_path):
        image, affine = read_volume(case.image_path, case.time_index, on_disk)
        check_image(image)
    images = [image]
    for path, index in case.more_channels:
        with naming(case, path):
            images.append(read_channel(path, index, image.shape, affine, on_disk))
    label = None
    if case.label_path is not None:
        label = load_label(case, case.label_path, image.shape, affine, on_disk)
    return LoadedCase(tuple(images), affine, label)


def load_label(
    case: Case,
    path: Path,
    shape: Sequence[int],
    affine: np.ndarray,
    on_disk: Path | None = None,
) -> np.ndarray:
    """The label of a case, [X, Y, Z] values of the file.

    Args:
        case: whose it is.
        path: of its label.
        shape: (X, Y, Z) of the image.
        affine: likewise.
        on_disk: as in `load_case`.

    Raises:
        UserError: naming case and file, which cannot be used or lie on another grid.
    """
    with naming(case, path):
        label, label_affine = read_volume(path, case.time_index, on_disk)
        check_grids(shape, affine, label.shape, label_affine)
        check_whole(label)
    return label


def read_channel(
    path: Path,
    index: int | None,
    shape: Sequence[int],
    affine: np.ndarray,
    on_disk: Path | None = None,
) -> np.ndarray:
    """A further channel of an image, [X, Y, Z].

    Args:
        path: of its file.
        index: on the fourth axis of it.
        shape: (X, Y, Z) of the first channel.
        affine: likewise.
        on_disk: as in `load_case`.

    Raises:
        UserError: the file cannot be used, or lies on another grid.
    """
    channel, own_affine = read_volume(path, index, on_disk)
    check_image(channel)
    check_grids(shape, affine, channel.shape, own_affine, what="channel")
    return channel


def open_volume(path: Path) -> nib.Nifti1Image | nib.Nifti2Image:
    """The file's header, with voxels that are read on demand.

    Raises:
        UserError: the file is missing or its header cannot be read.
    """
    if not path.is_file():
        raise UserError("the file does not exist; add it or take the case out.")
    try:
        source = open_nifti(path)
        # As it stands in the file: nibabel mends it, and turns a size of 0 into 1.
        with ImageOpener(str(path)) as file:
            header = type(source).header_class.from_fileobj(file, check=False)
    except READ_ERRORS as error:
        raise _unreadable(error) from error
    if 0 in source.shape:
        raise UserError(f"its shape is {source.shape}, so it holds no voxel.")
    if header["sform_code"] == 0 and not header["pixdim"][1:4].all():
        raise UserError(
            f"its header gives voxels of {header['pixdim'][1:4]} mm; set their size."
        )
    return source


def _unreadable(error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"the file cannot be read ({reason}); it is damaged or not NIfTI: copy or"
        " download it again."
    )


def read_volume(
    path: Path, time_index: int | None, on_disk: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """([X, Y, Z] array, [4, 4] float64 affine) of a NIfTI file.

    Integers stay as they are stored; scaled values and wide floats become float32.

    Args:
        path: the file.
        time_index: index on the fourth axis; a 3-D file ignores it.
        on_disk: as in `load_case`.

    Raises:
        UserError: the file cannot be read, is not 3-D, or has no usable affine.
    """
    source = open_volume(path)
    try:
        if on_disk is None:
            array = _read_array(source, time_index)
        else:
            array = _read_to_disk(source, path, time_index, on_disk)
    except READ_ERRORS as error:
        raise _unreadable(error) from error
    return array, read_affine(source)


def read_affine(source: nib.Nifti1Image | nib.Nifti2Image) -> np.ndarray:
    """The affine of an opened file, [4, 4] float64, voxel index to mm (RAS+).

    Raises:
        UserError: it cannot be inverted, so the axes of the file have no directions.
    """
    return check_affine(np.asarray(source.affine, np.float64))


def check_affine(affine: np.ndarray) -> np.ndarray:
    """The affine; raises UserError where it cannot be inverted."""
    usable = np.isfinite(affine).all()
    usable = usable and abs(np.linalg.det(affine[:3, :3])) >= 1e-12
    if not usable or np.isnan(nib.io_orientation(affine)).any():
        raise UserError("the header's affine cannot be inverted; mend the header.")
    return affine


def _read_array(
    source: nib.Nifti1Image | nib.Nifti2Image, index: int | None
) -> np.ndarray:
    shape, rest = _placed(source.shape, index)
    array = np.asanyarray(source.dataobj[(..., *rest)] if rest else source.dataobj)
    return _checked_dtype(array.reshape(shape))


def _read_to_disk(
    source: nib.Nifti1Image | nib.Nifti2Image,
    path: Path,
    index: int | None,
    on_disk: Path,
) -> np.ndarray:
    """As `_read_array`, with some of the voxels in memory at a time."""
    shape, rest = _placed(source.shape, index)
    stored: Any = source.dataobj
    size = math.prod(shape) * stored.dtype.itemsize
    start = stored.offset + (rest[0] * size if rest else 0)
    with scratch.new_file(on_disk, size) as file:
        _unpack(path, start, size, file)
        spec = (shape, stored.dtype, 0, stored.slope, stored.inter)
        voxels = ArrayProxy(file, spec)
        first = _checked_dtype(np.asanyarray(voxels[..., 0]))
        if first.dtype == stored.dtype:
            return np.asanyarray(voxels)  # maps the file
        *plane, depth = shape
        # In the file's order, so that a plane is contiguous.
        out = scratch.empty((depth, *plane[::-1]), first.dtype, on_disk)
        for z in range(depth):
            out[z] = _checked_dtype(np.asanyarray(voxels[..., z])).T
    return out.T


def _unpack(path: Path, start: int, size: int, file: IO[bytes]) -> None:
    """Copies bytes of a file, gzipped or not, to the start of another."""
    with ImageOpener(str(path)) as packed:
        packed.seek(start)
        left = size
        while left:
            read = packed.read(min(left, 2**20))
            if not read:
                raise EOFError(f"Expected {size} bytes, got {size - left} bytes")
            file.write(read)
            left -= len(read)
    file.flush()


def _placed(
    shape: tuple[int, ...], index: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(X, Y, Z), and what is taken of the further axes of a file of `shape`."""
    own = shape
    while len(own) > 3 and own[-1] == 1:
        own = own[:-1]
    if len(own) == 4 and index is not None and index < own[3]:
        return own[:3], (index, *(0,) * (len(shape) - 4))
    if len(own) != 3:
        raise UserError(
            f"the file's shape is {tuple(shape)}; expected a 3-D volume"
            " (one slice a file, colours and vectors are not supported)."
        )
    return own, (0,) * (len(shape) - 3)


def _checked_dtype(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iuf":
        raise UserError(
            f"its voxels are {array.dtype}; expected whole or real numbers."
        )
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):  # what becomes infinite is told later
        return array.astype(np.float32, copy=False)


def check_image(image: np.ndarray) -> None:
    """Raises UserError where an image holds NaN or infinity, or one value only."""
    _check_finite(image)
    if image.min() == image.max():
        raise UserError(
            f"every voxel is {image.flat[0]:g}, so there is nothing to normalise; check"
            " how the file was exported."
        )


def file_planes(array: np.ndarray) -> np.ndarray:
    """A view [Z, X, Y]: planes that are contiguous in memory, as files store them."""
    return np.moveaxis(array, -1, 0)


def _check_finite(array: np.ndarray) -> None:
    if array.dtype.kind != "f":
        return
    bad = sum(plane.size - np.isfinite(plane).sum() for plane in file_planes(array))
    if bad:
        raise UserError(
            f"{bad} of {array.size} voxels are NaN or infinite; replace them, for"
            " example by the background intensity."
        )


def check_whole(label: np.ndarray) -> None:
    """Raises UserError where a label holds NaN, or values not whole or too large."""
    _check_finite(label)
    most = max(float(label.max()), -float(label.min()))
    if most > LARGEST:
        raise UserError(
            f"it holds a value of {most:g}, which no label has; mend the file: values"
            f" are at most {LARGEST}."
        )
    if label.dtype.kind != "f":
        return
    bad = [p[np.abs(p - np.rint(p)) > WHOLE_TOLERANCE] for p in file_planes(label)]
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
    *,
    what: str = "label",
) -> None:
    """Raises UserError where a label's voxels do not lie on those of its image.

    The corners of the volume may differ by a quarter of a voxel, which is far more than
    rounding in the headers causes.
    """
    if tuple(shape) != tuple(label_shape):
        raise UserError(
            f"the {what}'s shape is {tuple(label_shape)}, the image's {tuple(shape)};"
            f" resample the {what} onto the image."
        )
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij"))
    corners = corners.reshape(4, -1).astype(np.float64)  # [4, 8]
    apart = (affine - label_affine) @ corners
    voxels = np.linalg.solve(affine[:3, :3], apart[:3])
    if np.abs(voxels).max() > GRID_TOLERANCE:
        remedy = f"resample the {what} onto the image"
        if what == "label":  # drawn on the image, whatever its header says
            remedy = (
                "copy the image's affine into the label or resample it onto the image"
            )
        raise UserError(
            f"the {what} lies up to"
            f" {np.linalg.norm(apart[:3], axis=0).max():.3g} mm off the image"
            f" ({np.abs(voxels).max():.2g} voxels) though their shapes agree; {remedy}."
        )


def write_volume(path: Path, array: np.ndarray, *, like: Path) -> None:
    """Writes a label, or probabilities, with the geometry of the image they belong to.

    Affine, qform, sform and their codes are those of `like`. The file appears whole or
    not at all.

    Args:
        path: ends in .nii.gz or .nii.
        array: [X, Y, Z] or [X, Y, Z, K] on the grid of `like`.
        like: the input image; of a 4-D one, the array is of a frame.

    Raises:
        UserError: a full or broken disk.
    """
    source = open_nifti(like)
    if array.shape[:3] != source.shape[:3]:
        raise ValueError(
            f"the array has shape {array.shape}, {like} has {source.shape[:3]}."
        )
    header = source.header.copy()
    header.set_data_dtype(array.dtype)
    header["cal_min"] = header["cal_max"] = 0  # a display range of the image
    image = type(source)(array, source.affine, header)
    with replacing(path) as temporary:
        _save(image, array, temporary)


def _save(
    image: nib.Nifti1Image | nib.Nifti2Image, array: np.ndarray, path: Path
) -> None:
    """As `nibabel.save`, which would hold a channel of the array in memory."""
    image.update_header()
    header = image.header
    header.set_slope_inter(1.0, 0.0)
    dtype = header.get_data_dtype()
    volumes = array[..., None] if array.ndim == 3 else array
    with ImageOpener(str(path), "wb") as file:
        header.write_to(file)
        file.write(bytes(header.get_data_offset() - file.tell()))
        for volume in np.moveaxis(volumes, -1, 0):
            for planes in blocks(file_planes(volume)):
                for plane in np.ascontiguousarray(planes, dtype):
                    file.write(plane.tobytes(order="F"))
