"""Oracle: the same comparison in NumPy float64, and in rational numbers."""

from fractions import Fraction

import jax
import numpy as np
import pytest

from pclseg.errors import UserError
from pclseg.losses.positives import MAX_COUNT, near_exact, near_float64, same

THRESHOLDS = [0.05, 0.1, 0.25, 0.3, 1 / 3, 0.35, 0.5, 1.0, 1.5]


def slices(counts):
    """Index and count of every slice of volumes with `counts` slices."""
    index = np.concatenate([np.arange(count) for count in counts])
    return index.astype(np.int32), np.repeat(counts, counts).astype(np.int32)


def to_bits(position):
    """float64 [N] in (0, 1] -> uint32 [N, 3], exactly."""
    units = [Fraction(p) * 2**95 for p in np.asarray(position, np.float64).tolist()]
    assert all(unit.denominator == 1 for unit in units)
    words = [
        [int(unit) >> shift & 0xFFFFFFFF for shift in (64, 32, 0)] for unit in units
    ]
    return np.array(words, np.uint32)


def numpy_near(p, q, threshold):
    return np.abs(p[:, None] - q[None, :]) < threshold


ALL_INDEX, ALL_COUNT = slices(np.arange(1, 41))
ALL_POSITION = (ALL_INDEX + 1) / ALL_COUNT
ALL_BITS = to_bits(ALL_POSITION)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_float64_mode_equals_numpy_for_all_counts_to_40(threshold):
    result = near_float64(ALL_BITS, ALL_BITS, threshold=threshold)
    np.testing.assert_array_equal(
        result, numpy_near(ALL_POSITION, ALL_POSITION, threshold)
    )


def test_float64_mode_equals_numpy_where_the_threshold_is_a_difference():
    # The hardest thresholds: a rounded difference, the doubles beside it, tiny ones.
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = rng.choice(ALL_POSITION, 2, replace=False)
        if p == q:
            continue
        difference = abs(p - q)
        for threshold in (
            difference,
            np.nextafter(difference, 0),
            np.nextafter(difference, 1),
        ):
            few = rng.choice(len(ALL_POSITION), 60)
            position = np.append(ALL_POSITION[few], [p, q])
            bits = to_bits(position)
            result = near_float64(bits, bits, threshold=float(threshold))
            np.testing.assert_array_equal(
                result, numpy_near(position, position, threshold)
            )


def test_float64_mode_equals_numpy_at_ties():
    # 1 - q lies exactly between two doubles for every odd multiple q of 2^-54.
    q = np.array([k * 2.0**-54 for k in range(2**51, 2**51 + 16)])
    p = np.array([1.0, 0.75, 0.5])
    for near_to in (1 - 0.125, 0.75 - 0.125, 0.5 - 0.125):
        for step in range(-20, 12):
            threshold = near_to + step * 2.0**-54
            result = near_float64(to_bits(p), to_bits(q), threshold=threshold)
            np.testing.assert_array_equal(result, numpy_near(p, q, threshold))


@pytest.mark.parametrize("threshold", [5e-324, 1e-300, 2.0**-65, 2.0**-52, 1e-17])
def test_tiny_threshold_leaves_equal_positions_only(threshold):
    position = np.array(
        [2.0**-13, 2.0**-13 + 2.0**-65, 1 / 3, 2 / 3, 1 - 2.0**-53, 1.0]
    )
    result = near_float64(to_bits(position), to_bits(position), threshold=threshold)
    np.testing.assert_array_equal(result, numpy_near(position, position, threshold))


@pytest.mark.parametrize("threshold", [1.0, 1.5, 1e300, float("inf")])
def test_large_threshold_makes_all_positive(threshold):
    assert np.all(near_float64(ALL_BITS[:99], ALL_BITS, threshold=threshold))


def rational_near(index, count, threshold):
    position = [Fraction(int(i) + 1, int(d)) for i, d in zip(index, count, strict=True)]
    return np.array([[abs(p - q) < threshold for q in position] for p in position])


@pytest.mark.parametrize(
    "threshold",
    ["0.05", "0.1", "1/3", "0.35", "1", "1.5", "0.123456789"],
)
def test_exact_mode_equals_rational_numbers(threshold):
    index, count = slices(np.array([1, 2, 3, 7, 9, 10, 20, 21, 40]))
    threshold = Fraction(threshold)
    expected = rational_near(index, count, threshold)
    for given in {
        threshold,
        threshold if threshold == Fraction(1, 3) else float(threshold),
    }:
        result = near_exact(index, count, index, count, threshold=given)
        np.testing.assert_array_equal(result, expected)


def test_exact_mode_at_the_largest_count():
    index = np.array([0, 1, 23169, 23170, MAX_COUNT - 2, MAX_COUNT - 1], np.int32)
    count = np.full(6, MAX_COUNT, np.int32)
    other = np.full(6, MAX_COUNT - 1, np.int32)
    other_index = np.minimum(index, MAX_COUNT - 2)
    for threshold in ("0.5", "0.499989211", "0.999956841", "0.000021580"):
        result = near_exact(
            index, count, other_index, other, threshold=Fraction(threshold)
        )
        both = rational_near(
            np.append(index, other_index), np.append(count, other), Fraction(threshold)
        )
        np.testing.assert_array_equal(result, both[:6, 6:])


def test_adjacent_slices_of_ten_at_one_tenth():
    index, count = slices(np.array([10]))
    bits = to_bits((index + 1) / count)
    as_float64 = np.asarray(near_float64(bits, bits, threshold=0.1))
    positive = {j + 1 for j in range(9) if as_float64[j, j + 1]}
    assert positive == {2, 4, 5, 6, 8, 9}  # 1-based: (2, 3), (4, 5), ...
    exact = near_exact(index, count, index, count, threshold=0.1)
    np.testing.assert_array_equal(exact, np.eye(10, dtype=bool))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (10, [4, 5, 6, 7, 7, 7, 7, 6, 5, 4]),
        (9, [4, 5, 6, 7, 7, 7, 6, 5, 4]),
        (6, [3, 4, 5, 5, 4, 3]),
    ],
)
def test_number_of_positives_of_each_slice(count, expected):
    index, counts = slices(np.array([count]))
    bits = to_bits((index + 1) / counts)
    masks = (
        near_float64(bits, bits, threshold=0.35),
        near_exact(index, counts, index, counts, threshold=0.35),
    )
    for mask in masks:
        np.testing.assert_array_equal(mask.sum(1), expected)


def test_masks_are_symmetric_with_a_true_diagonal():
    index, count = slices(np.array([7, 10, 12]))
    bits = to_bits((index + 1) / count)
    masks = (
        near_float64(bits, bits, threshold=0.1),
        near_exact(index, count, index, count, threshold=0.1),
    )
    for mask in map(np.asarray, masks):
        assert np.array_equal(mask, mask.T) and mask.diagonal().all()


def test_jit_changes_nothing():
    index, count = slices(np.array([9, 10]))
    bits = to_bits((index + 1) / count)
    floats = jax.jit(near_float64, static_argnames="threshold")
    exact = jax.jit(near_exact, static_argnames="threshold")
    np.testing.assert_array_equal(
        floats(bits, bits, threshold=0.1), near_float64(bits, bits, threshold=0.1)
    )
    np.testing.assert_array_equal(
        exact(index, count, index, count, threshold=0.1),
        near_exact(index, count, index, count, threshold=0.1),
    )


@pytest.mark.parametrize("threshold", [0, -0.1, float("nan")])
def test_threshold_must_be_positive(threshold):
    expected = rf"^position_threshold is {threshold}; expected > 0"
    with pytest.raises(UserError, match=expected):
        near_float64(ALL_BITS[:2], ALL_BITS[:2], threshold=threshold)
    pair = np.zeros(2, np.int32), np.ones(2, np.int32)
    with pytest.raises(UserError, match=expected):
        near_exact(*pair, *pair, threshold=threshold)


def test_exact_threshold_with_too_many_decimals_is_refused():
    pair = np.zeros(2, np.int32), np.ones(2, np.int32)
    with pytest.raises(UserError, match="at most 9 decimals"):
        near_exact(*pair, *pair, threshold=1 / 3)


def test_same():
    rows, keys = np.array([1, 2, 2], np.int32), np.array([2, 1], np.int32)
    np.testing.assert_array_equal(same(rows, keys), [[0, 1], [1, 0], [1, 0]])
