"""Brightness and contrast; nothing moves, so labels pass through.

Chaitanya et al. 2020, arXiv 2006.10511, whose images lie in 0..1 and are clipped to
0..1.5 afterwards. Ours are z-scored: their ranges then count in standard deviations,
and nothing need be clipped.
"""

import jax
import jax.numpy as jnp

from pclseg.augment import Augment, Range, require

Array = jax.Array


def make(*, brightness: Range, contrast: Range, clip: Range) -> Augment:
    """One draw of brightness and contrast per image and channel.

    contrast * (image - mean) + mean + brightness, then the clipping.

    The mean is that of the channel, its padding included.

    Args:
        brightness: low and high of what is added, in units of the image.
        contrast: 0 <= low <= high of the factor.
        clip: low and high that the result is clipped to, or () for no clipping.

    Raises:
        UserError: a range that is none.
    """
    for name, bounds, lengths in (
        ("brightness", brightness, (2,)),
        ("contrast", contrast, (2,)),
        ("clip", clip, (0, 2)),
    ):
        holds = len(bounds) in lengths and list(bounds) == sorted(bounds)
        require(name, bounds, "(low, high)", holds)
    require("contrast", contrast, "0 <= low <= high", contrast[0] >= 0)
    low, high = (jnp.array([ends]) for ends in zip(brightness, contrast, strict=True))

    def one(key: Array, image: Array) -> Array:
        shape = (image.shape[-1], 2)
        drawn = jax.random.uniform(key, shape, minval=low, maxval=high)
        shift, factor = drawn.T[:, None, None]  # [1, 1, C] each
        mean = image.mean(axis=(0, 1), keepdims=True)
        image = factor * (image - mean) + mean + shift
        return jnp.clip(image, *clip) if clip else image

    def augment(
        keys: Array, images: Array, labels: Array | None
    ) -> tuple[Array, Array | None]:
        return jax.vmap(one)(keys, images), labels

    return augment
