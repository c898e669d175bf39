"""Mirror, then one resampling: elastic deformation, rotation by any angle, scaling.

The spatial chain of Zeng et al. 2021, arXiv 2106.09157, which their code takes from
batchgenerators 0.23. Every draw is one per sample.
"""

import math

import jax
import jax.numpy as jnp

from pclseg.augment import Augment, Range, between, require
from pclseg.augment.interpolation import sample_image, sample_label

Array = jax.Array


def make(
    *,
    resample_probability: float,
    elastic_alpha: Range,
    elastic_sigma: Range,
    scale: Range,
    image_order: int,
) -> Augment:
    """The chain as one function of a batch, each sample with its own key.

    Both axes are mirrored with probability 1/2 each. Then, with `resample_probability`,
    image and label are read at the coordinates of `coordinates`; labels always at the
    nearest pixel. Outside the image both are 0.

    Args:
        resample_probability: 0..1.
        elastic_alpha: low and high strength of the deformation, in pixels of unsmoothed
            noise; of it 1 / (6.14 * sigma) is left as standard deviation.
        elastic_sigma: low and high standard deviation of the smoothing, in pixels.
        scale: low <= 1 <= high of the factor on coordinates, so above 1 the object
            shrinks; either side of 1 is equally likely.
        image_order: 3, cubic B-spline, or 1, bilinear.

    Raises:
        UserError: a value out of its range.
    """
    holds = 0 <= resample_probability <= 1
    require("resample_probability", resample_probability, "0..1", holds)
    holds = _ordered(elastic_alpha) and elastic_alpha[0] >= 0
    require("elastic_alpha", elastic_alpha, "0 <= low <= high", holds)
    holds = _ordered(elastic_sigma) and elastic_sigma[0] > 0
    require("elastic_sigma", elastic_sigma, "0 < low <= high", holds)
    holds = _ordered(scale) and 0 < scale[0] <= 1 <= scale[1]
    require("scale", scale, "0 < low <= 1 <= high", holds)
    require("image_order", image_order, "1 or 3", image_order in (1, 3))

    def one(
        key: Array, image: Array, label: Array | None
    ) -> tuple[Array, Array | None]:
        """One sample: image [H, W, C], label [H, W] or None."""
        number_key, move_key = jax.random.split(key)
        numbers = jax.random.uniform(number_key, (3,))
        flips, resampled = numbers[:2] < 0.5, numbers[2] < resample_probability
        height, width, _ = image.shape
        where = draw_coordinates(
            move_key,
            (height, width),
            elastic_alpha=elastic_alpha,
            elastic_sigma=elastic_sigma,
            scale=scale,
        )
        image = _mirror(image, flips)
        moved = [
            sample_image(image[..., channel], where, order=image_order)
            for channel in range(image.shape[-1])
        ]
        image = jnp.where(resampled, jnp.stack(moved, axis=-1), image)
        if label is not None:
            label = _mirror(label, flips)
            label = jnp.where(resampled, sample_label(label, where), label)
        return image, label

    return jax.vmap(one)


def draw_coordinates(
    key: Array,
    shape: tuple[int, int],
    *,
    elastic_alpha: Range,
    elastic_sigma: Range,
    scale: Range,
) -> Array:
    """Random coordinates to read an image of `shape` at; the ranges are as in `make`.

    Returns:
        [2, H, W] float32, row and column in pixels.
    """
    # Few calls of jax.random, because each adds about half a second of compilation.
    number_key, noise_key = jax.random.split(key)
    numbers = jax.random.uniform(number_key, (5,))
    alpha = between(elastic_alpha, numbers[0])
    sigma = between(elastic_sigma, numbers[1])
    noise = jax.random.uniform(noise_key, (2, *shape), minval=-1.0, maxval=1.0)
    displacement = alpha * smooth(noise, sigma, max_sigma=elastic_sigma[1])
    grown = between((scale[0], 1.0), numbers[2])
    shrunk = between((1.0, scale[1]), numbers[2])
    factor = jnp.where(numbers[3] < 0.5, grown, shrunk)
    return coordinates(displacement, 2 * math.pi * numbers[4], factor)


def coordinates(displacement: Array, angle: Array, factor: Array) -> Array:
    """Pixel grid, displaced, rotated and scaled about the centre of the image.

    r' = factor * (r * cos(angle) + c * sin(angle)), c' = factor * (-r * sin + c * cos)
    with r, c counted from the centre; angle pi / 2 gives `numpy.rot90(image)`.

    Args:
        displacement: [2, H, W] float32, pixels, added before the rotation.
        angle: scalar, radians.
        factor: scalar, > 1 shrinks the object.

    Returns:
        [2, H, W] float32, row and column in pixels.
    """
    centre = [(size - 1) / 2 for size in displacement.shape[1:]]
    row = jnp.arange(displacement.shape[1])[:, None] - centre[0] + displacement[0]
    column = jnp.arange(displacement.shape[2])[None, :] - centre[1] + displacement[1]
    cos, sin = factor * jnp.cos(angle), factor * jnp.sin(angle)
    return jnp.stack(
        [
            row * cos + column * sin + centre[0],
            column * cos - row * sin + centre[1],
        ]
    )


def smooth(noise: Array, sigma: Array, *, max_sigma: float) -> Array:
    """Gaussian smoothing of the last two axes, with zeros outside.

    Equals `scipy.ndimage.gaussian_filter(mode="constant")`, whose kernel is cut at
    floor(4 sigma + 0.5). One band matrix an axis, because sigma, and with it the width
    of the kernel, is known on the device only.

    Args:
        noise: [..., H, W] float32.
        sigma: scalar, pixels.
        max_sigma: the largest value that `sigma` may take.

    Returns:
        [..., H, W] float32.
    """
    max_radius = math.floor(4 * max_sigma + 0.5)
    rows, columns = (_band(size, sigma, max_radius) for size in noise.shape[-2:])
    return jnp.einsum("ij,...jk,lk->...il", rows, noise, columns, precision="highest")


def _band(size: int, sigma: Array, max_radius: int) -> Array:
    """[size, size] weights of input pixel j for output pixel i."""

    def weight(distance: Array) -> Array:
        gauss = jnp.exp(-0.5 * jnp.square(distance / sigma))
        return jnp.where(distance <= jnp.floor(4 * sigma + 0.5), gauss, 0.0)

    pixel = jnp.arange(size, dtype=jnp.float32)
    one_side = weight(jnp.arange(1, max_radius + 1, dtype=jnp.float32)).sum()
    distance = jnp.abs(pixel[:, None] - pixel[None, :])
    return weight(distance) / (1 + 2 * one_side)


def _mirror(array: Array, flips: Array) -> Array:
    """Reverses axis i of [H, W, ...] where flips[i], of [2] bool, is set."""
    array = jnp.where(flips[0], array[::-1, :], array)
    return jnp.where(flips[1], array[:, ::-1], array)


def _ordered(bounds: Range) -> bool:
    return len(bounds) == 2 and bounds[0] <= bounds[1]
