"""Distances between the surfaces of two masks in mm, by SciPy."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

# Spacings come from float32 headers: 3 x 0.7 mm is to count as within 2.1 mm.
RELATIVE_SLACK = 1e-6


def surface_metrics(
    prediction_mask: np.ndarray,
    label_mask: np.ndarray,
    spacing: Sequence[float],
    *,
    tolerance_mm: float,
) -> dict[str, float]:
    """HD95, ASD and NSD of one class of one case.

    The surface of a mask is the mask without its 6-connected erosion, where everything
    outside the array is background: a mask that touches the border has surface there.
    d is the distance of a surface voxel of one mask to the nearest of the other.

    hd95_mm: 95th percentile (linear) of d over the voxels of both surfaces together.
    asd_mm: mean of the two directed means of d (also called ASSD).
    nsd: share of the voxels of both surfaces with d <= tolerance. Voxels are counted;
        Nikolov et al. 2018, arXiv 1809.04430, weigh them by surface area instead.

    Args:
        prediction_mask: [Z, H, W] bool, or 0 and 1.
        label_mask: [Z, H, W] bool, or 0 and 1.
        spacing: (z, y, x) mm, positive.
        tolerance_mm: not negative.

    Returns:
        hd95_mm, asd_mm, nsd. All NaN where both masks are empty; where one is, there is
        no distance (NaN) and nsd is 0, so a missed structure cannot improve the mean.

    Raises:
        ValueError: the shapes differ, or spacing is not one positive number per axis.
    """
    prediction_mask, label_mask = prediction_mask.astype(bool), label_mask.astype(bool)
    _check(prediction_mask, label_mask, spacing)
    found, present = prediction_mask.any(), label_mask.any()
    if not (found and present):
        nsd = 0.0 if found or present else np.nan
        return {"hd95_mm": np.nan, "asd_mm": np.nan, "nsd": nsd}
    # Nothing is lost by the crop: all voxels of both surfaces lie in it, and around it
    # both masks are background, which is what the erosion takes them for.
    box = ndimage.find_objects((prediction_mask | label_mask).astype(np.uint8))[0]
    surface_a, surface_b = _surface(prediction_mask[box]), _surface(label_mask[box])
    a_to_b = _distances(surface_a, surface_b, spacing)
    b_to_a = _distances(surface_b, surface_a, spacing)
    both = np.concatenate([a_to_b, b_to_a])
    within = both <= tolerance_mm * (1 + RELATIVE_SLACK)
    return {
        "hd95_mm": float(np.percentile(both, 95)),
        "asd_mm": float((a_to_b.mean() + b_to_a.mean()) / 2),
        "nsd": float(within.mean()),
    }


def _check(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> None:
    if a.shape != b.shape:
        raise ValueError(f"the masks differ in shape: {a.shape} and {b.shape}.")
    if len(spacing) != a.ndim or not all(mm > 0 for mm in spacing):
        raise ValueError(f"spacing is {spacing}; expected {a.ndim} positive mm.")


def _surface(mask: np.ndarray) -> np.ndarray:
    structure = ndimage.generate_binary_structure(mask.ndim, 1)
    inside = ndimage.binary_erosion(mask, structure, border_value=0)
    return mask & np.logical_not(inside)


def _distances(
    start: np.ndarray, goal: np.ndarray, spacing: Sequence[float]
) -> np.ndarray:
    """[S] float64 mm: of every voxel of `start` to the nearest voxel of `goal`."""
    # Indices instead of distances: a third of the memory, and only S square roots.
    nearest = np.empty((goal.ndim, *goal.shape), np.int32)
    ndimage.distance_transform_edt(
        ~goal,
        sampling=spacing,
        return_distances=False,
        return_indices=True,
        indices=nearest,
    )
    steps = nearest[:, start] - np.argwhere(start).T  # [3, S] voxels
    return np.sqrt(np.square(steps * np.asarray(spacing)[:, None]).sum(axis=0))
