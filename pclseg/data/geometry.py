"""Where a prepared volume [Z, H, W] lies in its file [X, Y, Z], and the way back."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from pclseg.errors import UserError

# "auto" slices along the axis of largest spacing if it is so much larger
AXIS_RATIO = 1.5
SLICES = ("sagittal", "coronal", "axial")  # of slices along canonical axis 0, 1, 2
SPACING_KEY = "config.data.prepare.spacing"
AXIS_KEY = "config.data.prepare.slice_axis"
AS_STORED = "file"  # the slice axis that no header names
T = TypeVar("T")


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

    @property
    def slice_axis(self) -> int:
        """The canonical axis that slices are counted along: 0, 1 or 2."""
        return int(nib.io_orientation(np.asarray(self.affine))[self.axes[0], 0])

    @property
    def slice_direction(self) -> np.ndarray:
        """[3] unit vector in mm (RAS+) from slice to slice."""
        step = np.asarray(self.affine)[:3, self.axes[0]]
        return (-1 if self.flips[0] else 1) * step / np.linalg.norm(step)

    def to_json(self) -> str:
        """The geometry as JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Geometry":
        """The geometry that `to_json` wrote."""

        def frozen(value: Any) -> Any:
            return tuple(map(frozen, value)) if isinstance(value, list) else value

        return cls(**{key: frozen(value) for key, value in json.loads(text).items()})


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
            the second largest, else 2; or "file": (x, y, z) as stored becomes
            (z, y, x), wherever the header says that its axes point.
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
    if not file_spacing.all():
        raise UserError(
            f"its voxels are {file_spacing.min():g} mm large; mend the header, whose"
            " sizes must be in mm."
        )
    if slice_axis == AS_STORED:
        axes, flips = (2, 1, 0), (False, False, False)
    else:
        file_axis = {int(axis): i for i, axis in enumerate(orientation[:, 0])}
        along = _slice_axis(slice_axis, [file_spacing[file_axis[c]] for c in range(3)])
        canonical = (along, *sorted({0, 1, 2} - {along}, reverse=True))
        axes = _triple(file_axis[c] for c in canonical)
        flips = _triple(bool(orientation[i, 1] < 0) for i in axes)
    native_shape = _triple(int(shape[i]) for i in axes)
    native_spacing = _triple(float(file_spacing[i]) for i in axes)
    if native_shape[0] < 2:
        raise UserError(
            f"it has one slice along canonical axis {int(orientation[axes[0], 0])}, so"
            f" slices have no position; set {AXIS_KEY} to the axis that the volume is"
            " cut along, or leave the file out."
        )
    height, width = _plane(native_shape[1:], native_spacing[1:], spacing)
    new_shape = (native_shape[0], height, width)
    geometry = Geometry(
        file_shape=_triple(int(n) for n in shape),
        affine=tuple(tuple(row) for row in affine.tolist()),
        axes=axes,
        flips=flips,
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
        raise UserError(
            f"{AXIS_KEY} is {slice_axis!r}; expected 'auto', 'file', 0, 1 or 2."
        )
    return int(np.argmax(spacing)) if one_is_thick(spacing) else 2


def one_is_thick(spacing: Sequence[float]) -> bool:
    """Whether one of three voxel sizes is so large that slices are cut across it."""
    second, largest = sorted(spacing)[1:]
    return largest >= AXIS_RATIO * second


def has_slice_axis(geometry: Geometry) -> bool:
    """Whether the spacing says which axis the file is cut along."""
    return one_is_thick(geometry.native_spacing)


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
    """The inverse of `orient`: a view in the file's axes of [Z, H, W, ...]."""
    turned = array[tuple(slice(None, None, -1 if f else 1) for f in geometry.flips)]
    return turned.transpose(*np.argsort(geometry.axes), *range(3, array.ndim))
