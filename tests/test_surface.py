"""Surface metrics: hand-made cases and a brute-force twin over all pairs of voxels."""

import itertools
import math

import numpy as np
import pytest

from pclseg.evaluation.surface import surface_metrics


def _box(shape, start, stop):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def _naive(a, b, spacing, tolerance):
    """Definition by loops: no crop, no erosion, no distance transform."""

    def surface(mask):
        found = []
        for voxel in np.argwhere(mask):
            for axis, step in itertools.product(range(3), (-1, 1)):
                near = voxel.copy()
                near[axis] += step
                inside = all(0 <= i < n for i, n in zip(near, mask.shape, strict=True))
                if not inside or not mask[tuple(near)]:
                    found.append(voxel * np.asarray(spacing, np.float64))
                    break
        return np.array(found)

    points_a, points_b = surface(a), surface(b)
    distance = np.array([[math.dist(p, q) for q in points_b] for p in points_a])
    a_to_b, b_to_a = distance.min(axis=1), distance.min(axis=0)
    both = np.concatenate([a_to_b, b_to_a])
    return {
        "hd95_mm": np.percentile(both, 95),
        "asd_mm": (a_to_b.mean() + b_to_a.mean()) / 2,
        "nsd": np.mean(both <= tolerance),
    }


@pytest.mark.parametrize(
    ("other", "spacing"),
    [((0, 0, 3), (9, 9, 1)), ((0, 1, 0), (1, 3, 1)), ((2, 0, 0), (1.5, 7, 7))],
    ids=["x", "y", "z"],
)
def test_two_voxels_3_mm_apart(other, spacing):
    a, b = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    a[0, 0, 0] = b[other] = True
    found = surface_metrics(a, b, spacing, tolerance_mm=2.9)
    assert found == pytest.approx({"hd95_mm": 3, "asd_mm": 3, "nsd": 0})
    assert surface_metrics(a, b, spacing, tolerance_mm=3)["nsd"] == 1


def test_plates_apart_measure_their_gap_in_mm():
    # Plates of one voxel are all surface; the twin is 4 voxels of 2.5 mm away.
    a = _box((9, 8, 8), (1, 0, 0), (2, 8, 8))
    b = _box((9, 8, 8), (5, 0, 0), (6, 8, 8))
    found = surface_metrics(a, b, (2.5, 1, 1), tolerance_mm=9.9)
    assert found == pytest.approx({"hd95_mm": 10, "asd_mm": 10, "nsd": 0})


def test_cube_shifted_by_a_voxel_of_anisotropic_spacing():
    a = _box((6, 9, 9), (1, 2, 2), (5, 7, 7))
    b = _box((6, 9, 9), (2, 2, 2), (6, 7, 7))
    found = surface_metrics(a, b, (5, 1, 1), tolerance_mm=1)
    # Surface: 4 layers of 16 at the sides, 2 x 9 inside the lids. The lowest layer of a
    # (25) lies 5 mm off b's lid; the 9 voxels inside its top lid are 1 mm (8 of them)
    # or 2 mm (the middle) off b's sides. All others lie on b's surface. And back alike.
    surface_a = 4 * 16 + 2 * 9
    directed = (25 * 5 + 8 * 1 + 1 * 2) / surface_a
    assert found["asd_mm"] == pytest.approx(directed)
    assert found["hd95_mm"] == pytest.approx(5)
    assert found["nsd"] == pytest.approx((surface_a - 25 - 1) / surface_a)


def test_equal_masks_are_perfect():
    mask = _box((5, 6, 7), (1, 1, 1), (4, 5, 6))
    found = surface_metrics(mask, mask, (3, 1, 1), tolerance_mm=0)
    assert found == {"hd95_mm": 0, "asd_mm": 0, "nsd": 1}


def test_mask_has_surface_at_the_border_of_the_array():
    # All voxels of a 3x3x3 array: only the middle one is no surface, 1 mm from it.
    full, middle = np.ones((3, 3, 3), bool), _box((3, 3, 3), (1, 1, 1), (2, 2, 2))
    found = surface_metrics(full, middle, (1, 1, 1), tolerance_mm=1)
    faces, edges, corners = 6 * 1, 12 * 2**0.5, 8 * 3**0.5
    assert found["asd_mm"] == pytest.approx(((faces + edges + corners) / 26 + 1) / 2)
    assert found["nsd"] == pytest.approx((6 + 1) / (26 + 1))


@pytest.mark.parametrize("seed", range(12))
def test_equals_brute_force_on_random_masks(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 8, 3))
    spacing = tuple(rng.uniform(0.5, 5, 3))
    a, b = (rng.random((2, *shape)) < rng.uniform(0.2, 0.9)).astype(np.uint8)
    a[tuple(n // 2 for n in shape)] = b[0, 0, 0] = 1
    found = surface_metrics(a, b, spacing, tolerance_mm=1.7)
    assert found == pytest.approx(_naive(a > 0, b > 0, spacing, 1.7), rel=1e-12)


def test_neither_the_space_around_nor_the_order_matters():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 6, 7)) < 0.4
    plain = surface_metrics(a, b, (4, 1, 2), tolerance_mm=2)
    wide = [np.pad(mask, ((3, 1), (0, 5), (2, 2))) for mask in (a, b)]
    assert surface_metrics(*wide, (4, 1, 2), tolerance_mm=2) == plain
    assert surface_metrics(b, a, (4, 1, 2), tolerance_mm=2) == pytest.approx(plain)


def test_tolerance_bears_the_rounding_of_a_float32_spacing():
    a, b = np.zeros((1, 1, 4), bool), np.zeros((1, 1, 4), bool)
    a[0, 0, 0] = b[0, 0, 2] = True
    spacing = (1.0, 1.0, float(np.float32(1.2)))  # 1.2000000477
    assert surface_metrics(a, b, spacing, tolerance_mm=2.4)["nsd"] == 1
    assert surface_metrics(a, b, spacing, tolerance_mm=2.399)["nsd"] == 0


@pytest.mark.parametrize("swap", [False, True], ids=["missed", "extra"])
def test_one_empty_mask_has_no_distance_and_nsd_0(swap):
    masks = [np.zeros((3, 3, 3), bool), _box((3, 3, 3), (1, 1, 1), (2, 3, 3))]
    found = surface_metrics(
        *(masks[::-1] if swap else masks), (1, 1, 1), tolerance_mm=9
    )
    assert math.isnan(found["hd95_mm"]) and math.isnan(found["asd_mm"])
    assert found["nsd"] == 0


def test_both_masks_empty_is_nan_throughout():
    empty = np.zeros((3, 3, 3), bool)
    found = surface_metrics(empty, empty, (1, 1, 1), tolerance_mm=1)
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, 1, math.nan)])
def test_broken_spacing_is_refused(spacing):
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(ValueError, match="expected 3 positive mm"):
        surface_metrics(mask, mask, spacing, tolerance_mm=1)


def test_masks_of_other_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        surface_metrics(
            np.ones((2, 2, 2)), np.ones((2, 2, 3)), (1, 1, 1), tolerance_mm=1
        )
