"""Brightness and contrast: their ranges, the formula, and that nothing moves."""

import jax
import numpy as np
import pytest

from pclseg import augment
from pclseg.errors import UserError

SETTINGS = dict(brightness=(-0.3, 0.3), contrast=(0.7, 1.3), clip=())
IMAGES = np.random.default_rng(0).normal(2.0, 3.0, (400, 4, 6, 1)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), len(IMAGES))


def changed(**changes):
    intensity = augment.make("intensity", **{**SETTINGS, **changes})
    return np.asarray(intensity(KEYS, IMAGES, None)[0])


def test_every_image_has_its_own_contrast_about_the_mean_and_brightness():
    images = changed()
    shift = images.mean(axis=(1, 2, 3)) - IMAGES.mean(axis=(1, 2, 3))
    factor = images.std(axis=(1, 2, 3)) / IMAGES.std(axis=(1, 2, 3))
    for values, low, high in ((shift, -0.3, 0.3), (factor, 0.7, 1.3)):
        assert low - 1e-5 < values.min() < low + 0.02
        assert high - 0.02 < values.max() < high + 1e-5
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.03)
    assert abs(np.corrcoef(shift, factor)[0, 1]) < 0.15
    mean = IMAGES.mean(axis=(1, 2, 3), keepdims=True)
    expected = factor[:, None, None, None] * (IMAGES - mean) + mean
    expected += shift[:, None, None, None]
    np.testing.assert_allclose(images, expected, atol=1e-4)


def test_clip_bounds_the_result_and_nothing_else():
    clipped = changed(clip=(0.0, 1.5))
    np.testing.assert_allclose(clipped, np.clip(changed(), 0, 1.5), atol=1e-5)


def test_no_range_is_no_change_and_labels_pass():
    still = augment.make("intensity", brightness=(0.0, 0.0), contrast=(1, 1), clip=())
    labels = np.arange(len(IMAGES))
    images, passed = still(KEYS, IMAGES, labels)
    np.testing.assert_allclose(images, IMAGES, atol=1e-5)
    assert passed is labels


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"brightness": (0.3, -0.3)}, "augment.brightness"),
        ({"contrast": (0.7,)}, "augment.contrast"),
        ({"contrast": (-0.1, 1.0)}, "0 <= low <= high"),
        ({"clip": (1.5, 0.0)}, "augment.clip"),
    ],
)
def test_bad_ranges_are_one_clear_line(change, said):
    with pytest.raises(UserError, match=said) as caught:
        augment.make("intensity", **{**SETTINGS, **change})
    assert "\n" not in str(caught.value)
