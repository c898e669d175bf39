"""Turns and rotations of a slice against NumPy and SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pclseg import augment
from pclseg.augment import sample_keys, turns
from pclseg.errors import UserError

SSL4MIS = dict(
    turn_probability=0.5, rotate_probability=0.5, degrees=(-20.0, 20.0), image_order=1
)
TURNED, ROTATED = {"turn_probability": 1.0}, {"turn_probability": 0.0}
ALWAYS_ROTATED = ROTATED | {"rotate_probability": 1.0}
BATCH, SIZE = 32, 24


@functools.cache
def rule(**changes):
    """Compiled once for all tests that share settings."""
    return jax.jit(augment.make("turns", **(SSL4MIS | changes)))


def keys_of(batch, seed=0):
    return sample_keys(jax.random.key(seed), jnp.arange(batch))


def images(shape=(SIZE, SIZE), batch=BATCH):
    noise = np.random.default_rng(0).normal(size=(batch, *shape, 2))
    return jnp.asarray(ndimage.gaussian_filter(noise, (0, 2, 2, 0)), jnp.float32)


def labels(shape=(SIZE, SIZE), batch=BATCH, dtype=jnp.int32):
    classes = np.random.default_rng(1).choice([0, 3, 7], (batch, *shape))
    return jnp.asarray(classes, dtype)


def turned_and_flipped(value):
    """[8, S, S, ...] of [S, S, ...]: all that SSL4MIS may draw."""
    return np.stack(
        [np.flip(np.rot90(value, k), axis) for k in range(4) for axis in (0, 1)]
    )


def test_turn_is_rot90_and_reversed_rows_whatever_the_shape():
    value = np.arange(30).reshape(5, 6)
    for k, flip in ((0, False), (0, True), (2, False), (2, True)):
        found = turns.turn(jnp.asarray(value), jnp.int32(k), flip)
        expected = np.rot90(value, k)
        np.testing.assert_array_equal(found, expected[::-1] if flip else expected)


def test_a_turned_slice_is_that_of_the_number_drawn():
    x, y, keys = images(), labels(), keys_of(BATCH)
    found, found_labels = rule(**TURNED)(keys, x, y)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (4,))[2])(keys)
    for i, k in enumerate(np.floor(4 * np.asarray(drawn)).astype(int)):
        np.testing.assert_array_equal(found[i], np.rot90(x[i], k)[::-1])
        np.testing.assert_array_equal(found_labels[i], np.rot90(y[i], k)[::-1])
        assert found_labels.dtype == y.dtype


def test_turns_are_as_likely_as_where_quarters_and_axis_are_both_drawn():
    corners = jnp.tile(jnp.arange(4.0).reshape(1, 2, 2, 1), (4000, 1, 1, 1))
    found, _ = rule(**TURNED)(keys_of(4000), corners, None)
    kinds, counts = np.unique(found.reshape(4000, 4), axis=0, return_counts=True)
    every = turned_and_flipped(corners[0]).reshape(8, 4)
    expected, times = np.unique(every, axis=0, return_counts=True)
    np.testing.assert_array_equal(kinds, expected)
    np.testing.assert_array_equal(times, 2)
    assert np.abs(counts - 1000).max() < 5 * 27  # 27: standard deviation


def test_what_is_not_square_is_turned_by_halves():
    x, y = images((16, SIZE)), labels((16, SIZE))
    found, found_labels = rule(**TURNED)(keys_of(BATCH), x, y)
    flipped = []
    for before, after, *of_label in zip(x, found, y, found_labels, strict=True):
        (axis,) = [a for a in (0, 1) if np.array_equal(np.flip(before, a), after)]
        np.testing.assert_array_equal(np.flip(of_label[0], axis), of_label[1])
        flipped.append(axis)
    assert set(flipped) == {0, 1}


def test_at_probability_zero_nothing_changes():
    x, y = images(), labels()
    still = rule(**ROTATED, rotate_probability=0.0)
    found, found_labels = still(keys_of(BATCH), x, y)
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(found_labels, y)


def test_half_are_turned_and_half_of_the_others_rotated():
    batch = 2000
    image = images((8, 8), batch=1)[0]
    found, label = rule()(keys_of(batch), jnp.tile(image, (batch, 1, 1, 1)), None)
    assert label is None
    found, image = np.asarray(found), np.asarray(image)
    same = (found == image).all((1, 2, 3))
    mirrored = (found[:, None] == turned_and_flipped(image)).all((2, 3, 4)).any(1)
    assert same.mean() == pytest.approx(0.25, abs=0.04)
    assert mirrored.mean() == pytest.approx(0.5, abs=0.05)
    assert not (same & mirrored).any()


def inner(size):
    """[size, size] bool, what every rotation reads from within the image."""
    row = np.arange(size) - (size - 1) / 2
    return np.hypot(row[:, None], row[None, :]) <= (size - 1) / 2 - 1


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("degree", [-20.0, 7.5, 90.0])
def test_a_rotation_is_that_of_scipy(degree, order):
    x, y = images(batch=2), labels(batch=2)
    fixed = rule(**ALWAYS_ROTATED, degrees=(degree, degree), image_order=order)
    found, found_labels = fixed(keys_of(2), x, y)
    rotate = functools.partial(ndimage.rotate, angle=degree, axes=(2, 1), reshape=False)
    off = np.abs(found - rotate(np.float64(x), order=order))
    assert off[:, inner(SIZE)].max() < 1e-4
    agree = np.asarray(found_labels == rotate(np.asarray(y), order=0))
    assert agree[:, inner(SIZE)].mean() > 0.995  # float32 halfway between two pixels


def test_angles_are_uniform_between_their_bounds():
    batch = 1000
    row = jnp.tile(jnp.arange(8.0)[None, :, None, None], (batch, 1, 8, 1))
    found, _ = rule(**ALWAYS_ROTATED, degrees=(-20.0, 10.0))(keys_of(batch), row, None)
    angle = np.degrees(np.arcsin(found[:, 4, 4, 0] - found[:, 4, 3, 0]))
    assert angle.min() > -20.01 and angle.max() < 10.01
    assert angle.mean() == pytest.approx(-5, abs=1)
    assert angle.std() == pytest.approx(30 / np.sqrt(12), rel=0.05)


@pytest.mark.parametrize("changes", [TURNED, ALWAYS_ROTATED], ids=["turned", "rotated"])
def test_image_and_label_move_alike(changes):
    # A plane is its own interpolation: its value tells the coordinate that was read.
    row, column = np.meshgrid(*2 * [np.arange(SIZE)], indexing="ij")
    planes = jnp.tile(jnp.asarray([row, column], jnp.float32), (BATCH // 2, 1, 1))
    keys = jnp.repeat(keys_of(BATCH // 2), 2)
    run = rule(**changes)
    found, label = run(keys, planes[..., None], planes.astype(jnp.int32) + 1)
    found, label = np.asarray(found)[..., 0], np.asarray(label)
    np.testing.assert_array_equal(found[label == 0], 0)  # outside both are 0
    assert np.abs(found + 1 - label)[label > 0].max() <= 0.5 + 1e-4


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_labels_keep_their_type_and_their_values(dtype):
    y = labels(dtype=dtype)
    _, found = rule()(keys_of(BATCH), images(), y)
    assert found.dtype == dtype and found.shape == y.shape
    assert set(np.unique(found)) == {0, 3, 7}


def test_a_sample_does_not_depend_on_the_rest_of_its_batch():
    x, y, keys, run = images(), labels(), keys_of(BATCH), rule()
    order = np.random.default_rng(0).permutation(BATCH)
    together = run(keys, x, y)
    shuffled = run(keys[order], x[order], y[order])
    np.testing.assert_array_equal(shuffled[0], together[0][order])
    np.testing.assert_array_equal(shuffled[1], together[1][order])
    others = run(keys_of(BATCH, seed=1).at[3].set(keys[3]), x, y)
    np.testing.assert_array_equal(others[0][3], together[0][3])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"turn_probability": 1.5}, r"turn_probability is 1.5; expected 0..1"),
        ({"rotate_probability": -0.1}, r"rotate_probability is -0.1; expected 0..1"),
        ({"degrees": (20.0, -20.0)}, r"degrees is \(20.0, -20.0\); expected -180 <= l"),
        ({"degrees": (-200.0, 0.0)}, r"degrees is \(-200.0, 0.0\); expected -180 <= l"),
        ({"degrees": (20.0,)}, r"degrees is \(20.0,\); expected -180 <= low"),
        ({"image_order": 0}, r"image_order is 0; expected 1 or 3"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_told(change, said):
    with pytest.raises(UserError, match=rf"^augment\.{said}"):
        augment.make("turns", **SSL4MIS | change)
