"""Slices on grids of another size over the same field of view."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from pclseg.data import scratch

_SLICES = 32  # of a block


def resize_volume(
    volume: np.ndarray,
    shape: tuple[int, int],
    order: int,
    on_disk: Path | None = None,
) -> np.ndarray:
    """Resamples every slice onto a grid of another size over the same field of view.

    Output pixel j lies at (j + 0.5) * old / new - 0.5, edges extended by the nearest
    value. Before shrinking, slices are smoothed by a Gaussian of standard deviation
    (old / new - 1) / 2, except for order 0. Results are clipped to the range of the
    whole volume. This equals `resize` of scikit-image 0.26, which PCL's code calls.

    Args:
        volume: [Z, H, W].
        shape: the new (H, W).
        order: of the spline: 0 nearest, 1 linear, 3 cubic.
        on_disk: folder for a result that memory cannot hold.

    Returns:
        [Z, *shape] in the volume's dtype; float32 if that is an integer and order > 0.
    """
    floating = volume.dtype.kind == "f" or order == 0
    dtype = volume.dtype if floating else np.float32
    out = scratch.empty((len(volume), *shape), dtype, on_disk)
    lowest, highest = volume.min(), volume.max()
    for before, after in zip(blocks(volume), blocks(out), strict=True):
        for number, plane in enumerate(np.ascontiguousarray(before)):
            resized = resize_slice(plane, shape, order)
            after[number] = np.clip(resized, lowest, highest)
    return out


def blocks(volume: np.ndarray) -> Iterator[np.ndarray]:
    """Views of some slices each.

    Where a file is cut along another axis, what is read of it at a time holds some of
    each.
    """
    for first in range(0, len(volume), _SLICES):
        yield volume[first : first + _SLICES]


def resize_slice(plane: np.ndarray, shape: tuple[int, int], order: int) -> np.ndarray:
    """One slice of `resize_volume`, not clipped; float64 where it is resampled."""
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


def resize_label_slice(
    plane: np.ndarray, shape: tuple[int, int], order: int
) -> np.ndarray:
    """One label slice: every class resampled by itself, the smaller id wins a tie."""
    if plane.shape == shape or order == 0:
        return resize_slice(plane, shape, 0)
    present = np.unique(plane)
    if len(present) == 1:
        return np.full(shape, present[0])
    shares = [resize_slice(plane == k, shape, order) for k in present]
    return present[np.argmax(np.clip(shares, 0, 1), axis=0)]
