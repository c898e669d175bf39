"""The largest part of a class, and whether keeping it alone helps."""

import dataclasses
import itertools
import math

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trained import SEGMENTER, by_brightness
from tiny_nifti import write

from pclseg import trained
from pclseg.errors import UserError
from pclseg.evaluation.components import (
    chosen_classes,
    compare,
    keep_largest,
    summarise_gains,
)
from pclseg.predicting import predict_files

NAMES = ("background", "a", "b")


def flooded(mask):
    """The parts of a mask as sets of voxels, found voxel by voxel."""
    left = set(map(tuple, np.argwhere(mask)))
    parts = []
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            part |= edge
            near = {
                tuple(np.add(voxel, step))
                for voxel in edge
                for step in itertools.product((-1, 0, 1), repeat=3)
            }
            edge = near & left
            left -= edge
        parts.append(part)
    return parts


@pytest.mark.parametrize("flips", list(itertools.product([1, -1], repeat=3)))
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_equally_large_parts_the_first_stays_however_the_array_lies(order, flips):
    ids = np.zeros((8, 6, 5), np.uint8)
    ids[1, 1, 4] = ids[6, 4, 0] = ids[3, 5, 2] = 1
    turned = tuple(slice(None, None, flip) for flip in flips)
    lying = np.ascontiguousarray(ids[turned].transpose(order))
    same = lying.transpose(np.argsort(order))[turned]
    np.testing.assert_array_equal(same, ids)
    assert np.argwhere(keep_largest(same, (1,))).tolist() == [[1, 1, 4]]


@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 6)] * 3))
@settings(max_examples=60, deadline=None)
def test_one_part_of_each_class_stays_and_it_is_the_largest(seed, shape):
    rng = np.random.default_rng(seed)
    ids = rng.choice(3, shape, p=[0.8, 0.1, 0.1])
    kept = keep_largest(ids, (1,))
    np.testing.assert_array_equal(kept == 2, ids == 2)
    parts = flooded(ids == 1)
    stayed = set(map(tuple, np.argwhere(kept == 1)))
    assert not parts and not stayed or stayed in parts
    assert len(stayed) == max(map(len, parts), default=0)
    np.testing.assert_array_equal(keep_largest(kept, (1,)), kept)


def test_dice_with_and_without_the_other_parts():
    label = np.zeros((3, 5, 5), int)
    label[1, :2, :2] = 1
    predicted = label.copy()
    predicted[1, 4, 3:] = 1  # two voxels elsewhere
    (a, b) = compare(predicted, label, 3)
    np.testing.assert_allclose(a, [2 * 4 / (6 + 4), 1.0])
    assert all(map(math.isnan, b))
    gains = summarise_gains([[a, b], [[0.9, 0.8], b]], NAMES)
    assert gains["a"] == {
        "dice": pytest.approx(0.85),
        "dice_largest": pytest.approx(0.9),
        "n": 2,
        "better": 1,
        "worse": 1,
    }
    assert gains["b"]["n"] == 0 and gains["b"]["dice"] is None


def test_classes_are_chosen_by_the_mean_over_all_cases():
    def of(n, change):
        part = {"dice": 0.5, "dice_largest": 0.5 + change, "n": n}
        return part if n else {"dice": None, "dice_largest": None, "n": 0}

    def chosen(*pairs):
        gains = [{"a": of(*pair), "b": of(4, 0.0)} for pair in pairs]
        return chosen_classes(gains, NAMES)

    assert chosen((4, 0.1)) == (1,)
    assert chosen((4, 0.0)) == chosen((4, -0.1)) == chosen((0, 0)) == ()
    assert chosen((4, 0.1), (12, -0.03)) == (1,)
    assert chosen((4, 0.1), (16, -0.03)) == ()
    assert chosen((4, 0.1), (0, 0)) == (1,)


def test_predictions_drop_the_other_parts_where_asked(tmp_path):
    voxels = np.zeros((8, 8, 4), np.int16)
    voxels[:3, :3] = 100
    voxels[6:, 6:, 0] = 100
    write(tmp_path / "a.nii.gz", voxels)
    alone = dataclasses.replace(SEGMENTER, alone=(1,))
    found = []
    for name, segmenter in (("all", SEGMENTER), ("largest", alone)):
        (path,) = predict_files(segmenter, [tmp_path / "a.nii.gz"], tmp_path / name)
        found.append(np.asanyarray(nib.load(path).dataobj))
    np.testing.assert_array_equal(found[0], np.where(voxels, 500, 0))
    voxels[6:, 6:] = 0
    np.testing.assert_array_equal(found[1], np.where(voxels, 500, 0))
    assert by_brightness is alone.predictor


def test_runs_that_do_not_say_are_told(monkeypatch):
    def network(gains):
        return type("Network", (), dict(gains=gains, class_names=NAMES, source="run"))

    part = {"dice": 0.5, "dice_largest": 0.6, "n": 3}
    assert trained._alone([network({"a": part, "b": part})]) == (1, 2)
    for gains in (None, {"a": part}):
        with pytest.raises(UserError, match="run does not say .* --largest_part"):
            trained._alone([network(gains)])
