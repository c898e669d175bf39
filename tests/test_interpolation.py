"""Oracle: scipy.ndimage.map_coordinates in float64, at the same coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pclseg.augment import interpolation
from pclseg.augment.interpolation import sample_label

sample_image = jax.jit(interpolation.sample_image, static_argnames="order")


def smooth_image(shape, seed=0):
    noise = np.random.default_rng(seed).normal(size=shape)
    image = ndimage.gaussian_filter(noise, 2)
    return (image / image.std()).astype(np.float32)


def random_coordinates(shape, seed=0):
    """[2, 50, 50] float32 from 1.5 pixels before to 1.5 after the image."""
    rng = np.random.default_rng(seed)
    unit = rng.random((2, 50, 50)).astype(np.float32)
    return unit * (np.array(shape, np.float32).reshape(2, 1, 1) + 2) - 1.5


def pixel_grid(shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(
        np.float32
    )


@pytest.mark.parametrize("shape", [(2, 3), (16, 16), (40, 56), (352, 352)], ids=str)
@pytest.mark.parametrize("order", [1, 3])
def test_image_equals_scipy(order, shape):
    image, where = smooth_image(shape), random_coordinates(shape)
    expected = ndimage.map_coordinates(
        image.astype(np.float64), where.astype(np.float64), order=order, mode="constant"
    )
    result = sample_image(jnp.asarray(image), jnp.asarray(where), order=order)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [1, 3])
def test_image_is_itself_at_its_pixels(order):
    image = smooth_image((37, 48))
    result = sample_image(
        jnp.asarray(image), jnp.asarray(pixel_grid((37, 48))), order=order
    )
    np.testing.assert_allclose(result, image, rtol=0, atol=0 if order == 1 else 2e-6)


@pytest.mark.parametrize("order", [1, 3])
def test_image_and_label_end_at_the_last_pixel(order):
    last = np.float32(8)
    inside, before, after = (
        np.float32(0),
        np.float32(-1e-6),
        np.nextafter(last, last + 1),
    )
    rows = np.array([[inside, last, before, after, 4, 4]], np.float32)
    columns = np.array([[inside, last, 4, 4, before, after]], np.float32)
    where = jnp.asarray(np.stack([rows, columns]))
    image = sample_image(jnp.ones((9, 9)), where, order=order)
    np.testing.assert_allclose(image, [[1, 1, 0, 0, 0, 0]], atol=1e-6)
    label = sample_label(jnp.ones((9, 9), jnp.int32), where)
    np.testing.assert_array_equal(label, [[1, 1, 0, 0, 0, 0]])


def test_cubic_spline_reproduces_a_cubic_far_from_the_mirrored_ends():
    polynomial = np.polynomial.Polynomial([0.3, -0.2, 0.05, 0.01])
    x = (np.arange(60) - 30) / 10
    image = jnp.asarray(np.tile(polynomial(x), (4, 1)), jnp.float32)
    column = np.random.default_rng(0).uniform(20, 40, 200).astype(np.float32)
    where = jnp.asarray(np.stack([np.full_like(column, 1.25), column])[:, None])
    expected = polynomial((column.astype(np.float64) - 30) / 10)[None]
    np.testing.assert_allclose(
        sample_image(image, where, order=3), expected, rtol=0, atol=1e-5
    )


def test_label_is_that_of_the_nearest_pixel():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (20, 30)).astype(np.uint8)
    where = random_coordinates((20, 30), seed=1)
    row, column = np.floor(where + np.float32(0.5)).astype(int)
    padded = np.pad(label, 2)
    outside = (where < 0).any(0) | (where[0] > 19) | (where[1] > 29)
    expected = np.where(outside, 0, padded[row + 2, column + 2])
    result = sample_label(jnp.asarray(label), jnp.asarray(where))
    assert result.dtype == jnp.uint8
    np.testing.assert_array_equal(result, expected)


def test_label_halfway_goes_to_the_higher_pixel():
    where = jnp.array([[[0.5, 1.5, 1.4999]], [[0.0, 0.0, 0.0]]])
    result = sample_label(jnp.array([[1], [2], [3]]), where)
    np.testing.assert_array_equal(result, [[2, 3, 2]])


def test_jit_and_vmap_change_nothing():
    images = jnp.stack([smooth_image((16, 20), seed) for seed in range(3)])
    where = jnp.stack([random_coordinates((16, 20), seed) for seed in range(3)])
    together = jax.vmap(lambda i, w: sample_image(i, w, order=3))(images, where)
    alone = interpolation.sample_image(images[0], where[0], order=3)
    np.testing.assert_allclose(alone, together[0], rtol=0, atol=1e-5)
