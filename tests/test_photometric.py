"""Brightness, contrast and blur against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pclseg import augment
from pclseg.augment import photometric
from pclseg.errors import UserError

SETTINGS = dict(
    name="photometric",
    jitter_probability=0.5,
    brightness=(0.75, 1.25),
    contrast=(0.75, 1.25),
    blur_probability=0.5,
    blur_sigma=(0.15, 1.15),
)


def images(number=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(number, 20, 24, 2)).astype(np.float32)


def keys(number):
    return jax.random.split(jax.random.key(1), number)


def test_contrast_keeps_the_mean_of_every_channel_and_brightness_is_a_factor():
    image = images(1)[0]
    found = photometric.more_contrast(jnp.asarray(image), 1.2)
    mean = image.mean(axis=(0, 1))
    np.testing.assert_allclose(found, 1.2 * image - 0.2 * mean, atol=1e-6)
    np.testing.assert_allclose(np.mean(found, axis=(0, 1)), mean, atol=1e-6)
    np.testing.assert_array_equal(photometric.brighter(image, 0.5), image / 2)


@pytest.mark.parametrize("sigma", [0.15, 0.7, 1.15])
def test_blur_is_the_gaussian_mean_of_what_the_image_has(sigma):
    image = images(1)[0]
    found = photometric.blurred(jnp.asarray(image), sigma, max_sigma=1.15)
    for channel in range(2):
        total, weight = (
            ndimage.gaussian_filter(x.astype(np.float64), sigma, mode="constant")
            for x in (image[..., channel], np.ones(image.shape[:2]))
        )
        np.testing.assert_allclose(found[..., channel], total / weight, atol=1e-5)
    flat = photometric.blurred(jnp.full((9, 9, 1), 3.0), sigma, max_sigma=1.15)
    np.testing.assert_allclose(flat, 3.0, rtol=1e-6)


def test_half_of_the_images_are_jittered_and_half_are_blurred():
    make = augment.make(**SETTINGS)
    x = jnp.asarray(images(1).repeat(400, axis=0))
    labels = jnp.zeros((400, 20, 24), jnp.int32)
    found, same = make(keys(400), x, labels)
    assert same is labels
    unchanged = np.all(np.asarray(found) == x, axis=(1, 2, 3)).mean()
    assert abs(unchanged - 0.25) < 0.1
    only = augment.make(**SETTINGS | {"blur_probability": 0.0})
    found, _ = only(keys(400), x, None)
    changed = np.asarray(found) != np.asarray(x)
    assert abs(changed.any(axis=(1, 2, 3)).mean() - 0.5) < 0.12


def test_without_clipping_brightness_and_contrast_may_change_places():
    image = jnp.asarray(images(1)[0])
    one = photometric.more_contrast(photometric.brighter(image, 1.2), 0.8)
    other = photometric.brighter(photometric.more_contrast(image, 0.8), 1.2)
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_nothing_is_drawn_at_probability_zero():
    still = augment.make(
        **SETTINGS | {"jitter_probability": 0.0, "blur_probability": 0.0}
    )
    found, _ = still(keys(4), jnp.asarray(images()), None)
    np.testing.assert_array_equal(found, images())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"jitter_probability": 1.5}, r"jitter_probability is 1.5; expected 0..1"),
        ({"blur_probability": -0.1}, r"blur_probability is -0.1; expected 0..1"),
        ({"brightness": (1.2, 0.8)}, r"brightness is \(1.2, 0.8\); expected 0 <= low"),
        ({"contrast": (-0.1, 1.0)}, r"contrast is \(-0.1, 1.0\); expected 0 <= low"),
        ({"blur_sigma": (0.0, 1.0)}, r"blur_sigma is \(0.0, 1.0\); expected 0 < low"),
    ],
)
def test_what_is_out_of_range_is_told(change, said):
    with pytest.raises(UserError, match=said):
        augment.make(**SETTINGS | change)
