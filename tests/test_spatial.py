"""Oracles: numpy, scipy.ndimage, moments of the draws, image against label."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pclseg import augment
from pclseg.augment import interpolation, sample_keys, spatial
from pclseg.augment.interpolation import sample_label
from pclseg.errors import UserError

PAPER = {
    "resample_probability": 0.67,
    "elastic_alpha": (100.0, 350.0),
    "elastic_sigma": (14.0, 17.0),
    "scale": (0.7, 1.3),
    "image_order": 3,
}
sample_image = jax.jit(interpolation.sample_image, static_argnames="order")

BATCH, SHAPE = 16, (48, 64)
RIGID = {"elastic_alpha": (0.0, 0.0), "elastic_sigma": (14.0, 17.0)}


@functools.cache
def chain(**changes):
    """The compiled chain; tests share it, and one shape: compiling takes long."""
    return jax.jit(augment.make("spatial", **(PAPER | changes)))


def keys_of(batch, seed=0):
    return sample_keys(jax.random.key(seed), jnp.arange(batch))


def random_labels(classes, seed=0):
    labels = np.random.default_rng(seed).choice(classes, (BATCH, *SHAPE))
    return jnp.asarray(labels, jnp.int32)


def random_images(batch, shape, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(batch, *shape))
    return jnp.asarray(
        ndimage.gaussian_filter(noise, (0, 2, 2))[..., None], jnp.float32
    )


def pixel_grid(shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))


def mirrored(image):
    """The four mirror images of [H, W, ...]."""
    return [image, image[::-1], image[:, ::-1], image[::-1, ::-1]]


def test_coordinates_without_movement_are_the_pixels():
    where = spatial.coordinates(jnp.zeros((2, 31, 48)), jnp.float32(0), jnp.float32(1))
    np.testing.assert_array_equal(where, pixel_grid((31, 48)))


def test_quarter_turn_is_rot90():
    where = spatial.coordinates(
        jnp.zeros((2, 32, 32)), jnp.float32(math.pi / 2), jnp.ones(())
    )
    image = random_images(1, (32, 32))[0, ..., 0]
    label = jnp.asarray(np.random.default_rng(0).integers(0, 4, (32, 32)))
    moved = sample_image(image, where, order=3)
    # float32 pi / 2 puts the border's coordinates 1e-6 off, partly outside.
    np.testing.assert_allclose(
        moved[1:-1, 1:-1], np.rot90(image, 1)[1:-1, 1:-1], rtol=0, atol=1e-5
    )
    pixels = jnp.round(where)
    np.testing.assert_allclose(where, pixels, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(sample_label(label, pixels), np.rot90(label, 1))


def test_coordinates_are_displaced_then_rotated_then_scaled():
    rng = np.random.default_rng(0)
    displacement = rng.normal(size=(2, 20, 30)).astype(np.float32)
    angle, factor, centre = 0.7, 1.2, np.array([9.5, 14.5]).reshape(2, 1, 1)
    row, column = pixel_grid((20, 30)) - centre + displacement
    expected = np.stack(
        [
            row * math.cos(angle) + column * math.sin(angle),
            -row * math.sin(angle) + column * math.cos(angle),
        ]
    )
    result = spatial.coordinates(jnp.asarray(displacement), jnp.float32(angle), factor)
    np.testing.assert_allclose(result, expected * factor + centre, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.6, 2.3, 5.0])
def test_smooth_equals_scipy_with_zeros_outside(sigma):
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 24, 33)).astype(np.float32)
    expected = ndimage.gaussian_filter(
        noise.astype(np.float64), (0, sigma, sigma), mode="constant"
    )
    result = spatial.smooth(jnp.asarray(noise), jnp.float32(sigma), max_sigma=6.0)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("alpha", "sigma", "expected"),
    [(350, 14, 4.07), (225, 15.5, 2.36), (100, 17, 0.96)],
)
def test_standard_deviation_of_the_displacement(alpha, sigma, expected):
    @jax.jit
    def mean_square(key):
        noise = jax.random.uniform(key, (200, 112, 112), minval=-1.0, maxval=1.0)
        field = alpha * spatial.smooth(noise, jnp.float32(sigma), max_sigma=17.0)
        return jnp.square(field[:, 44:-44, 44:-44]).mean()

    keys = jax.random.split(jax.random.key(0), 10)
    std = math.sqrt(sum(float(mean_square(key)) for key in keys) / len(keys))
    assert std == pytest.approx(expected, rel=0.05)
    assert alpha * math.sqrt(1 / 3) / (2 * math.sqrt(math.pi) * sigma) == pytest.approx(
        expected, abs=0.006
    )


def similarities(scale):
    """Factor and angle of 4000 coordinates drawn without elastic deformation."""

    def draw(key):
        where = spatial.draw_coordinates(key, (4, 4), **RIGID, scale=scale)
        step = where[:, 1, 0] - where[:, 0, 0]  # a row down: factor * (cos, -sin)
        return jnp.linalg.norm(step), jnp.arctan2(-step[1], step[0])

    return map(np.asarray, jax.jit(jax.vmap(draw))(keys_of(4000)))


def test_scale_and_angle_have_the_stated_distributions():
    factor, angle = similarities((0.7, 1.3))
    assert factor.min() > 0.7 - 1e-5 and factor.max() < 1.3 + 1e-5
    assert factor.mean() == pytest.approx(1.0, abs=0.012)
    assert np.mean(factor < 1) == pytest.approx(0.5, abs=0.03)
    turn = np.histogram(angle, bins=8, range=(-math.pi, math.pi))[0] / 4000
    np.testing.assert_allclose(turn, np.full(8, 1 / 8), rtol=0, atol=0.02)


def test_both_sides_of_one_are_equally_likely_for_uneven_ranges():
    factor, _ = similarities((0.9, 2.0))
    assert np.mean(factor < 1) == pytest.approx(0.5, abs=0.03)
    assert factor.mean() == pytest.approx((0.95 + 1.5) / 2, abs=0.03)


def test_strength_and_smoothness_are_drawn_from_their_ranges():
    def displacement(key, alpha, sigma):
        ranges = {"elastic_alpha": alpha, "elastic_sigma": sigma, "scale": (1.0, 1.0)}
        return spatial.draw_coordinates(key, (8, 8), **ranges)

    @jax.jit
    @jax.vmap
    def drawn(key):
        # All but the range in question is drawn alike; sigma 0.1 does not smooth.
        still = displacement(key, (0.0, 0.0), (0.1, 0.1))
        noise = displacement(key, (1.0, 1.0), (0.1, 0.1)) - still
        strong = displacement(key, (2.0, 6.0), (0.1, 0.1)) - still
        smoothed = displacement(key, (1.0, 1.0), (1.0, 3.0)) - still
        smooth = jax.vmap(lambda s: spatial.smooth(noise, s, max_sigma=4.0))
        candidates = jnp.linspace(0.9, 3.1, 111)
        error = jnp.abs(smooth(candidates) - smoothed[None]).max((1, 2, 3))
        alpha = jnp.linalg.norm(strong) / jnp.linalg.norm(noise)
        return alpha, candidates[error.argmin()], error.min()

    alpha, sigma, error = map(np.asarray, drawn(keys_of(400)))
    assert error.max() < 0.03
    for value, low, high in ((alpha, 2, 6), (sigma, 1, 3)):
        assert value.min() > low - 0.03 and value.max() < high + 0.03
        assert value.mean() == pytest.approx((low + high) / 2, rel=0.06)
        assert value.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.1)


def test_two_thirds_of_the_samples_are_resampled():
    image = random_images(1, (16, 16))[0]
    batch = 2000
    result, label = chain()(keys_of(batch), jnp.tile(image, (batch, 1, 1, 1)), None)
    assert label is None
    copies = np.stack(mirrored(np.asarray(image)))  # [4, H, W, 1]
    is_copy = (np.asarray(result)[:, None] == copies[None]).all((2, 3, 4))
    assert 1 - is_copy.any(1).mean() == pytest.approx(0.67, abs=0.035)
    np.testing.assert_allclose(
        is_copy.sum(0) / is_copy.sum(), np.full(4, 0.25), atol=0.07
    )


def test_without_resampling_the_result_is_exactly_mirrored():
    images, labels = random_images(BATCH, SHAPE), random_labels([0, 1, 2, 3])
    moved = chain(resample_probability=0.0)(keys_of(BATCH), images, labels)
    kinds = set()
    for image, label, result, result_label in zip(images, labels, *moved, strict=True):
        equal = [np.array_equal(copy, result) for copy in mirrored(image)]
        assert sum(equal) == 1
        kinds.add(equal.index(True))
        np.testing.assert_array_equal(mirrored(label)[equal.index(True)], result_label)
    assert kinds == {0, 1, 2, 3}


@pytest.mark.parametrize("order", [1, 3])
def test_image_and_label_move_alike(order):
    # A plane is its own interpolation, so its value tells the coordinate that was read;
    # the mirrored ends of the cubic spline bend it near the border.
    row, column = jnp.asarray(pixel_grid(SHAPE), jnp.float32)
    images = jnp.tile(jnp.stack([row, column]), (BATCH // 2, 1, 1))[..., None]
    keys = jnp.repeat(keys_of(BATCH // 2, seed=3), 2)
    labels = images[..., 0].astype(jnp.int32) + 1
    run = chain(resample_probability=1.0, image_order=order)
    moved, moved_labels = run(keys, images, labels)
    value, label = np.asarray(moved)[..., 0], np.asarray(moved_labels)
    np.testing.assert_array_equal(label[::2] == 0, label[1::2] == 0)
    np.testing.assert_array_equal(value[label == 0], 0)  # outside both are 0
    inside, off = label > 0, np.abs(value + 1 - label)
    last = np.tile(np.array(SHAPE).reshape(2, 1, 1), (BATCH // 2, 1, 1))
    middle = (label > 5) & (label < last - 4)
    assert middle.mean() > 0.4
    assert off[middle].max() <= 0.5 + 1e-2
    assert order == 3 or off[inside].max() <= 0.5 + 1e-4


def test_labels_stay_in_the_label_set():
    run, labels = chain(resample_probability=1.0), random_labels([0, 3, 7])
    _, moved = run(keys_of(BATCH), random_images(BATCH, SHAPE), labels)
    assert moved.dtype == labels.dtype and moved.shape == labels.shape
    assert set(np.unique(moved)) == {0, 3, 7}


def test_same_keys_same_result_other_keys_other_result():
    images, labels = random_images(BATCH, SHAPE), random_labels([0, 1])
    run = chain(resample_probability=1.0)
    first, second = (run(keys_of(BATCH), images, labels) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    other = run(keys_of(BATCH, seed=1), images, labels)[0]
    assert (np.abs(first[0] - other).max((1, 2, 3)) > 1e-2).all()


def test_a_sample_does_not_depend_on_the_rest_of_its_batch():
    images, labels = random_images(BATCH, SHAPE), random_labels([0, 1])
    run, keys = chain(resample_probability=1.0), keys_of(BATCH)
    order = np.random.default_rng(0).permutation(BATCH)
    together = run(keys, images, labels)
    shuffled = run(keys[order], images[order], labels[order])
    np.testing.assert_array_equal(shuffled[0], together[0][order])
    np.testing.assert_array_equal(shuffled[1], together[1][order])
    others = run(keys_of(BATCH, seed=1).at[3].set(keys[3]), images, labels)
    np.testing.assert_array_equal(others[0][3], together[0][3])


def test_samples_of_one_image_differ():
    images = jnp.tile(random_images(1, SHAPE), (BATCH, 1, 1, 1))
    run = chain(resample_probability=1.0)
    result = np.asarray(run(keys_of(BATCH), images, random_labels([0]))[0])
    distance = np.abs(result[:, None] - result[None]).max((2, 3, 4))
    assert distance[~np.eye(BATCH, dtype=bool)].min() > 1e-2


def test_sample_keys_depend_on_the_row_only():
    key = jax.random.key(0)
    whole = jax.random.key_data(sample_keys(key, jnp.arange(8)))
    part = jax.random.key_data(sample_keys(key, jnp.arange(4, 8)))
    np.testing.assert_array_equal(whole[4:], part)
    assert len(np.unique(np.asarray(whole), axis=0)) == 8
    raw = sample_keys(jax.random.PRNGKey(0), jnp.arange(8))
    np.testing.assert_array_equal(raw, whole)


def test_none_returns_its_inputs():
    images, labels = random_images(2, (4, 4)), jnp.ones((2, 4, 4), jnp.int32)
    result = augment.make("none")(keys_of(2), images, labels)
    assert result[0] is images and result[1] is labels


@pytest.mark.parametrize(
    ("view", "moves"),
    [
        (augment.make("none"), False),
        (augment.make("intensity", brightness=(0, 1), contrast=(1, 2), clip=()), False),
        (augment.make("spatial", **(PAPER | {"resample_probability": 0.0})), True),
        (lambda keys, images, labels: (images[:, ::-1], labels[:, ::-1]), True),
    ],
    ids=["none", "intensity", "spatial", "flip"],
)
def test_what_moves_pixels_is_seen_by_its_labels(view, moves):
    assert augment.moves_pixels(view) == moves


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resample_probability": 1.1}, "resample_probability is 1.1; expected 0..1"),
        (
            {"elastic_alpha": (5.0, 2.0)},
            "elastic_alpha is (5.0, 2.0); expected 0 <= low",
        ),
        ({"elastic_alpha": (5.0,)}, "elastic_alpha is (5.0,); expected 0 <= low"),
        (
            {"elastic_sigma": (0.0, 2.0)},
            "elastic_sigma is (0.0, 2.0); expected 0 < low",
        ),
        ({"scale": (1.1, 1.3)}, "scale is (1.1, 1.3); expected 0 < low <= 1 <= high"),
        ({"scale": (0.0, 1.3)}, "scale is (0.0, 1.3); expected 0 < low <= 1 <= high"),
        ({"image_order": 2}, "image_order is 2; expected 1 or 3"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(changes, expected):
    with pytest.raises(UserError) as error:
        augment.make("spatial", **(PAPER | changes))
    assert f"augment.{expected}" in str(error.value)


def test_unknown_name_lists_the_choices():
    with pytest.raises(
        UserError, match="known are: .*none, photometric, spatial"
    ) as error:
        augment.make("spatail")
    assert "'spatial'" in str(error.value)
