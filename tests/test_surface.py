"""Surface metrics: hand-made cases and a brute-force twin over all pairs of voxels."""

import itertools
import math

import numpy as np
import pytest

from pclseg.evaluation import surface
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
                    found.append(voxel)
                    break
        return np.array(found)

    def distances(unit):
        points_a, points_b = surface(a) * unit, surface(b) * unit
        return np.array([[math.dist(p, q) for q in points_b] for p in points_a])

    distance = distances(np.asarray(spacing, np.float64))
    a_to_b, b_to_a = distance.min(axis=1), distance.min(axis=0)
    both = np.concatenate([a_to_b, b_to_a])
    return {
        "hd95_mm": np.percentile(both, 95),
        "asd_mm": (a_to_b.mean() + b_to_a.mean()) / 2,
        "nsd": np.mean(both <= tolerance),
        "asd_legacy_voxel": distances(1.0).min(axis=1).mean(),
    }


def test_distances_of_two_rectangles():  # MONA's specification, M15
    a, b = _box((10, 10), (2, 2), (7, 7)), _box((10, 10), (3, 2), (8, 9))
    for one, other, directed in ((a, b, 0.75), (b, a, 1.032514076994)):
        found = surface_metrics(one, other, (1.0, 1.0), tolerance_mm=1.0)
        assert found["asd_mm"] == pytest.approx(0.891257038497, abs=1e-10)
        assert found["asd_legacy_voxel"] == pytest.approx(directed, abs=1e-10)
        assert found["hd95_mm"] == 2


@pytest.mark.parametrize(
    ("other", "spacing"),
    [((0, 0, 3), (9, 9, 1)), ((0, 1, 0), (1, 3, 1)), ((2, 0, 0), (1.5, 7, 7))],
    ids=["x", "y", "z"],
)
def test_two_voxels_3_mm_apart(other, spacing):
    a, b = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    a[0, 0, 0] = b[other] = True
    found = surface_metrics(a, b, spacing, tolerance_mm=2.9)
    expected = {"hd95_mm": 3, "asd_mm": 3, "nsd": 0, "asd_legacy_voxel": max(other)}
    assert found == pytest.approx(expected)
    assert surface_metrics(a, b, spacing, tolerance_mm=3)["nsd"] == 1


def test_plates_apart_measure_their_gap_in_mm():
    # Plates of one voxel are all surface; the twin is 4 voxels of 2.5 mm away.
    a = _box((9, 8, 8), (1, 0, 0), (2, 8, 8))
    b = _box((9, 8, 8), (5, 0, 0), (6, 8, 8))
    found = surface_metrics(a, b, (2.5, 1, 1), tolerance_mm=9.9)
    expected = {"hd95_mm": 10, "asd_mm": 10, "nsd": 0, "asd_legacy_voxel": 4}
    assert found == pytest.approx(expected)


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
    assert found == {"hd95_mm": 0, "asd_mm": 0, "nsd": 1, "asd_legacy_voxel": 0}


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
    back = surface_metrics(b, a, (4, 1, 2), tolerance_mm=2)
    del plain["asd_legacy_voxel"], back["asd_legacy_voxel"]  # has a direction
    assert back == pytest.approx(plain)


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
    assert (found["nsd"], found["asd_legacy_voxel"]) == (0, 0)


def test_both_masks_empty_is_nan_but_for_the_legacy_asd():
    empty = np.zeros((3, 3, 3), bool)
    found = surface_metrics(empty, empty, (1, 1, 1), tolerance_mm=1)
    assert found.pop("asd_legacy_voxel") == 0
    assert all(math.isnan(value) for value in found.values())


# Recorded from medpy 0.5.2, `metric.binary.asd` with and without `voxelspacing`: of P
# to G, of G to P.
P = _box((6, 8, 8), (1, 2, 2), (4, 5, 5))
G = _box((6, 8, 8), (2, 3, 2), (5, 6, 7))
IN_VOXELS = 0.7016400264, 1.1196501762
IN_MM = 3.7749856486, 4.1974398796


@pytest.mark.parametrize("spacing", [(10, 1, 1), (2.5, 2.5, 2.5), None])
def test_legacy_asd_is_that_of_the_authors_whatever_the_spacing(spacing):
    there = surface_metrics(P, G, spacing, tolerance_mm=1)
    back = surface_metrics(G, P, spacing, tolerance_mm=1)
    found = there["asd_legacy_voxel"], back["asd_legacy_voxel"]
    assert found == pytest.approx(IN_VOXELS, abs=1e-10)


@pytest.mark.parametrize(
    ("spacing", "directed"), [((1, 1, 1), IN_VOXELS), ((10, 1, 1), IN_MM)]
)
def test_asd_in_mm_is_the_mean_of_the_authors_in_both_directions(spacing, directed):
    found = surface_metrics(P, G, spacing, tolerance_mm=1)
    assert found["asd_mm"] == pytest.approx(np.mean(directed), abs=1e-10)


@pytest.mark.parametrize(
    ("spacing", "pooled"), [((1, 1, 1), 0.9598227659), ((10, 1, 1), 4.0359132619)]
)
def test_distances_of_the_recorded_masks_pool_to_the_recorded_mean(spacing, pooled):
    a, b = surface._surface(P), surface._surface(G)
    assert (a.sum(), b.sum()) == (26, 42)
    both = surface._distances(a, b, spacing), surface._distances(b, a, spacing)
    assert np.concatenate(both).mean() == pytest.approx(pooled, abs=1e-10)


def test_a_part_of_a_structure_is_flattered_by_the_legacy_asd():
    whole, part = (
        _box((5, 9, 20), (1, 2, 2), (4, 7, 18)),
        _box((5, 9, 20), (1, 2, 2), (4, 7, 4)),
    )
    found = surface_metrics(part, whole, (1, 1, 1), tolerance_mm=1)
    assert found["asd_legacy_voxel"] < 0.2 < 3 < found["asd_mm"]


def test_without_a_spacing_there_is_only_the_legacy_asd():
    found = surface_metrics(P, G, None, tolerance_mm=1)
    missed = surface_metrics(P & False, G, None, tolerance_mm=1)
    assert missed.pop("asd_legacy_voxel") == 0
    del found["asd_legacy_voxel"]
    assert all(math.isnan(value) for value in [*found.values(), *missed.values()])


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
