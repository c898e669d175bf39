"""Brightness and contrast as factors, then a blur; nothing moves, labels pass through.

The strong views of You et al. 2023, arXiv 2206.02307. Their images lie in 0..1 and are
clipped to it; ours are z-scored, and nothing is clipped.
"""

import jax
import jax.numpy as jnp

from pclseg.augment import Augment, Range, between, require
from pclseg.augment.spatial import smooth

Array = jax.Array


def make(
    *,
    jitter_probability: float,
    brightness: Range,
    contrast: Range,
    blur_probability: float,
    blur_sigma: Range,
) -> Augment:
    """One draw of each per image, the same for all its channels.

    Brightness is f x; contrast is f x + (1 - f) mean(x), of each channel; unclipped,
    either may come first. The blur is Gaussian; beyond the border nothing is weighed.

    Args:
        jitter_probability: of brightness and contrast, 0..1.
        brightness: 0 <= low <= high of f.
        contrast: likewise.
        blur_probability: 0..1.
        blur_sigma: 0 < low <= high, pixels.

    Raises:
        UserError: a value out of its range.
    """
    for name, value in (
        ("jitter_probability", jitter_probability),
        ("blur_probability", blur_probability),
    ):
        require(name, value, "0..1", 0 <= value <= 1)
    for name, bounds in (("brightness", brightness), ("contrast", contrast)):
        holds = len(bounds) == 2 and 0 <= bounds[0] <= bounds[1]
        require(name, tuple(bounds), "0 <= low <= high", holds)
    holds = len(blur_sigma) == 2 and 0 < blur_sigma[0] <= blur_sigma[1]
    require("blur_sigma", tuple(blur_sigma), "0 < low <= high", holds)

    def one(key: Array, image: Array) -> Array:
        numbers = jax.random.uniform(key, (5,))
        jitters, blurs = numbers[0] < jitter_probability, numbers[1] < blur_probability
        jittered = more_contrast(
            brighter(image, between(brightness, numbers[2])),
            between(contrast, numbers[3]),
        )
        image = jnp.where(jitters, jittered, image)
        sigma = between(blur_sigma, numbers[4])
        return jnp.where(blurs, blurred(image, sigma, max_sigma=blur_sigma[1]), image)

    def augment(
        keys: Array, images: Array, labels: Array | None
    ) -> tuple[Array, Array | None]:
        return jax.vmap(one)(keys, images), labels

    return augment


def brighter(image: Array, factor: Array) -> Array:
    """F x, of [H, W, C]."""
    return factor * image


def more_contrast(image: Array, factor: Array) -> Array:
    """F x + (1 - f) mean(x), of [H, W, C], means of each channel."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return factor * image + (1 - factor) * mean


def blurred(image: Array, sigma: Array, *, max_sigma: float) -> Array:
    """Gaussian mean of the pixels around, of those that the image has; [H, W, C]."""
    planes = jnp.moveaxis(image, -1, 0)
    total = smooth(planes, sigma, max_sigma=max_sigma)
    weight = smooth(jnp.ones_like(planes[:1]), sigma, max_sigma=max_sigma)
    return jnp.moveaxis(total / weight, 0, -1)
