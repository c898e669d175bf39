"""Masks of mixed slices, and what they are mixed with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pclseg import parallel
from pclseg.parts import mixing


def keys(number, seed=0):
    return jax.random.split(jax.random.key(seed), number)


@pytest.mark.parametrize("shape", [(256, 256), (96, 64), (16, 48), (4, 4)])
def test_a_rectangle_of_half_the_area_lies_anywhere(shape):
    height, width = shape
    masks = np.asarray(mixing.rectangles(keys(400), shape))
    seen = set()
    for mask in masks:
        rows, columns = np.flatnonzero(~mask.all(1)), np.flatnonzero(~mask.all(0))
        assert not mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].any()
        across, down = len(columns), len(rows)
        assert width // 2 + 1 <= across <= width - 1
        assert down == int(height * width / (2 * across) + 0.5)
        assert (~mask).sum() == across * down
        seen.add((across, rows[0] == 0, columns[-1] == width - 1))
    assert {x[0] for x in seen} >= {width // 2 + 1, width - 1} or width > 100
    assert any(x[1] for x in seen) and any(x[2] for x in seen)


def test_heights_are_those_of_the_specification():
    # mona.md 6: of 256 x 256, width 129 -> 254 rows, 200 -> 164, 255 -> 129
    found = {}
    for mask in np.asarray(mixing.rectangles(keys(3000), (256, 256))):
        found[int((~mask.all(0)).sum())] = int((~mask.all(1)).sum())
    assert (found[129], found[200], found[255]) == (254, 164, 129)


@pytest.mark.parametrize(
    ("present", "half"), [([0, 1, 2], 1), ([3], 0), ([0, 1, 2, 3], 2)]
)
def test_half_of_the_classes_that_are_there_are_chosen_evenly(present, half):
    label = np.random.default_rng(0).choice(present, (1, 12, 12))
    label[0, 0, :2] = 255, -1  # of no class
    draws = 600
    masks = mixing.half_of_classes(
        keys(draws), jnp.asarray(label.repeat(draws, axis=0)), 5
    )
    times = dict.fromkeys(present, 0)
    for mask in np.asarray(masks):
        chosen = [k for k in present if mask[label[0] == k].any()]
        assert len(chosen) == half
        np.testing.assert_array_equal(mask, np.isin(label[0], chosen))
        for k in chosen:
            times[k] += 1
    expected = draws * half / len(present)
    assert max(abs(n - expected) for n in times.values()) < 5 * np.sqrt(draws / 4)


def test_image_label_and_confidence_are_mixed_by_one_mask():
    rng = np.random.default_rng(1)
    mask = mixing.rectangles(keys(3), (8, 8))
    image, label = rng.normal(size=(2, 3, 8, 8, 2)), rng.integers(0, 4, (2, 3, 8, 8))
    mixed = mixing.mixed(mask, *image), mixing.mixed(mask, *label)
    where = np.asarray(mask)
    np.testing.assert_array_equal(mixed[0][where], image[0].astype(np.float32)[where])
    np.testing.assert_array_equal(mixed[0][~where], image[1].astype(np.float32)[~where])
    np.testing.assert_array_equal(mixed[1], np.where(where, *label))


def test_the_next_row_may_lie_on_another_device():
    batch = {"image": np.arange(16.0).reshape(8, 2), "id": np.arange(8)}
    alone = mixing.of_next_row(batch, None)
    np.testing.assert_array_equal(alone["id"], [1, 2, 3, 4, 5, 6, 7, 0])
    shares = jax.pmap(
        lambda x: mixing.of_next_row(x, parallel.AXIS), axis_name=parallel.AXIS
    )(parallel.shard(batch, 4))
    for name, whole in alone.items():
        np.testing.assert_array_equal(shares[name].reshape(whole.shape), whole)
