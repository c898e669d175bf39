"""Pooled and per-case Dice: the worked example of the specification, properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pclseg.evaluation import overlap

# Section 7.1 of the specification: 4 slices of 2x3, slices 0-1 and 2-3 are a volume.
LABEL = np.array(
    [
        [[0, 1, 1], [0, 2, 2]],
        [[0, 1, 1], [0, 2, 0]],
        [[0, 0, 0], [0, 1, 0]],
        [[0, 0, 0], [0, 0, 0]],
    ]
)
PREDICTION = np.array(
    [
        [[0, 1, 1], [0, 2, 0]],
        [[0, 1, 0], [0, 2, 0]],
        [[0, 1, 0], [0, 2, 0]],
        [[0, 0, 0], [0, 0, 2]],
    ]
)


def test_pooled_dice_is_that_of_the_specification():
    total = overlap.counts(PREDICTION, LABEL, 3)
    dice = overlap.dice_from_counts(total)
    np.testing.assert_allclose(dice, [0.666667, 0.571429], atol=5e-7)
    assert dice.mean() == pytest.approx(0.619048, abs=5e-7)
    both, predicted, labelled = total[1:].T
    np.testing.assert_allclose(both / (predicted + labelled - both), [0.5, 0.4])


def test_dice_per_volume_is_that_of_the_specification():
    volumes = [slice(0, 2), slice(2, 4)]
    dice = np.array(
        [
            overlap.case_dice_from_counts(overlap.counts(PREDICTION[v], LABEL[v], 3))
            for v in volumes
        ]
    )
    np.testing.assert_allclose(dice, [[0.857143, 0.8], [0, 0]], atol=5e-7)
    assert dice.mean() == pytest.approx(0.414286, abs=5e-7)


def test_dice_of_two_rectangles():  # MONA's specification, M15
    a, b = np.zeros((2, 10, 10), int)
    a[2:7, 2:7] = b[3:8, 2:9] = 1
    for one, other in ((a, b), (b, a)):
        dice = overlap.case_dice_from_counts(overlap.counts(one, other, 2))
        np.testing.assert_allclose(dice, [2 / 3], rtol=1e-12)


@given(st.lists(st.integers(0, 4), max_size=5))
def test_pooled_dice_does_not_depend_on_the_batches(cuts):
    edges = [0, *sorted(cuts), 4]
    total = sum(
        overlap.counts(PREDICTION[a:b], LABEL[a:b], 3)
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    )
    np.testing.assert_array_equal(total, overlap.counts(PREDICTION, LABEL, 3))


@pytest.mark.parametrize("dtypes", [(np.uint8, np.int32), (np.int64, np.uint16)])
def test_counts_equal_a_loop_over_voxels(dtypes):
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 4, (3, 5, 7)).astype(dtypes[0])
    label = rng.integers(0, 4, (3, 5, 7)).astype(dtypes[1])
    expected = np.zeros((5, 3), np.int64)  # class 4 occurs nowhere
    for p, g in zip(prediction.ravel(), label.ravel(), strict=True):
        expected[p, 1] += 1
        expected[g, 2] += 1
        expected[p, 0] += p == g
    found = overlap.counts(prediction, label, 5)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_absent_class_is_0_pooled_and_nan_in_a_case():
    total = overlap.counts(np.array([0, 1]), np.array([0, 1]), 3)
    np.testing.assert_array_equal(overlap.dice_from_counts(total), [1, 0])
    np.testing.assert_array_equal(overlap.case_dice_from_counts(total), [1, np.nan])


@pytest.mark.parametrize(
    ("prediction", "label"),
    [([0, 1], [0, 0]), ([0, 0], [0, 1])],
    ids=["extra", "missed"],
)
def test_one_empty_mask_is_0_in_a_case(prediction, label):
    total = overlap.counts(np.array(prediction), np.array(label), 2)
    np.testing.assert_array_equal(overlap.case_dice_from_counts(total), [0])


def test_foreign_ids_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"label holds ids 0..255; expected 0..2"):
        overlap.counts(np.array([0, 1]), np.array([0, 255]), 3)
    with pytest.raises(ValueError, match="differ in shape"):
        overlap.counts(np.zeros((2, 2), int), np.zeros((2, 3), int), 3)
