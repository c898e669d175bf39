"""Distances between the surfaces of two masks, by SciPy."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

# Spacings come from float32 headers: 3 x 0.7 mm is to count as within 2.1 mm.
RELATIVE_SLACK = 1e-6
NO_MM = {"hd95_mm": np.nan, "asd_mm": np.nan, "nsd": np.nan}


def surface_metrics(
    prediction_mask: np.ndarray,
    label_mask: np.ndarray,
    spacing: Sequence[float] | None,
    *,
    tolerance_mm: float,
) -> dict[str, float]:
    """HD95, ASD and NSD of one class of one case, and the ASD of SSL4MIS.

    The surface of a mask is the mask without its 6-connected erosion, where everything
    outside the array is background: a mask that touches the border has surface there.
    d is the distance of a surface voxel of one mask to the nearest of the other.

    hd95_mm: 95th percentile (linear) of d over the voxels of both surfaces together.
    asd_mm: mean of the two directed means of d (also called ASSD).
    nsd: share of the voxels of both surfaces with d <= tolerance. Voxels are counted;
        Nikolov et al. 2018, arXiv 1809.04430, weigh them by surface area instead.
    asd_legacy_voxel: mean of d from the surface of the prediction to that of the label,
        not back, in voxels whatever their spacing: what the code of SSL4MIS and ACTION
        reports (`medpy.metric.binary.asd` without a spacing). It flatters a prediction
        that finds a part of a structure and nothing else.

    Args:
        prediction_mask: [Z, H, W] bool, or 0 and 1.
        label_mask: [Z, H, W] bool, or 0 and 1.
        spacing: (z, y, x) mm, positive; None where it is unknown.
        tolerance_mm: not negative.

    Returns:
        hd95_mm, asd_mm, nsd. All NaN where both masks are empty or the spacing is not
        known; where one mask is empty, there is no distance (NaN) and nsd is 0, so a
        missed structure cannot improve the mean. asd_legacy_voxel is 0 where a mask is
        empty, as theirs: there a missed structure does improve the mean.

    Raises:
        ValueError: the shapes differ, or spacing is not one positive number per axis.
    """
    prediction_mask, label_mask = prediction_mask.astype(bool), label_mask.astype(bool)
    _check(prediction_mask, label_mask, spacing)
    found, present = prediction_mask.any(), label_mask.any()
    if not (found and present):
        one_empty = found or present
        nsd = 0.0 if one_empty and spacing is not None else np.nan
        return {**NO_MM, "nsd": nsd, "asd_legacy_voxel": 0.0}
    # Nothing is lost by the crop: all voxels of both surfaces lie in it, and around it
    # both masks are background, which is what the erosion takes them for.
    box = ndimage.find_objects((prediction_mask | label_mask).astype(np.uint8))[0]
    a, b = _surface(prediction_mask[box]), _surface(label_mask[box])
    cubes = (1.0,) * a.ndim
    if spacing is None:
        return {**NO_MM, "asd_legacy_voxel": float(_distances(a, b, cubes).mean())}
    a_to_b, b_to_a = _distances(a, b, spacing), _distances(b, a, spacing)
    both = np.concatenate([a_to_b, b_to_a])
    within = both <= tolerance_mm * (1 + RELATIVE_SLACK)
    # Voxels that are cubes have the same nearest voxel in mm: one transform less.
    isotropic = len(set(spacing)) == 1
    in_voxels = a_to_b / spacing[0] if isotropic else _distances(a, b, cubes)
    return {
        "hd95_mm": float(np.percentile(both, 95)),
        "asd_mm": float((a_to_b.mean() + b_to_a.mean()) / 2),
        "nsd": float(within.mean()),
        "asd_legacy_voxel": float(in_voxels.mean()),
    }


def _check(a: np.ndarray, b: np.ndarray, spacing: Sequence[float] | None) -> None:
    if a.shape != b.shape:
        raise ValueError(f"the masks differ in shape: {a.shape} and {b.shape}.")
    if spacing is None:
        return
    if len(spacing) != a.ndim or not all(mm > 0 for mm in spacing):
        raise ValueError(f"spacing is {spacing}; expected {a.ndim} positive mm.")


def _surface(mask: np.ndarray) -> np.ndarray:
    structure = ndimage.generate_binary_structure(mask.ndim, 1)
    inside = ndimage.binary_erosion(mask, structure, border_value=0)
    return mask & np.logical_not(inside)


def _distances(
    start: np.ndarray, goal: np.ndarray, spacing: Sequence[float]
) -> np.ndarray:
    """[S] float64, in the unit of `spacing`: of each voxel of `start` to `goal`."""
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
