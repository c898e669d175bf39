"""A quarter turn with a flip, or else a small rotation, or else nothing.

The rule of SSL4MIS, github.com/HiLab-git/SSL4MIS, on which ACTION builds.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pclseg.augment import Augment, Range, between, require
from pclseg.augment.interpolation import sample_image, sample_label
from pclseg.augment.spatial import coordinates

Array = jax.Array


def make(
    *,
    turn_probability: float,
    rotate_probability: float,
    degrees: Range,
    image_order: int,
) -> Augment:
    """One of three for each sample, drawn by its own key.

    With `turn_probability` image and label are turned by k * 90 degrees, k uniform in
    0..3, and then flipped along one of their two axes: exactly one of the four mirror
    images of a square. Slices that are not square are turned by 0 or 180 degrees only.
    Of the others, with `rotate_probability`, image and label are rotated about the
    centre, labels read at the nearest pixel. Outside the image both are 0.

    SSL4MIS has 1/2, 1/2 and whole degrees from -20 to 19, and reads images at the
    nearest pixel too; here angles are real and images are interpolated.

    Args:
        turn_probability: 0..1.
        rotate_probability: of what is not turned, 0..1.
        degrees: -180 <= low <= high <= 180 of the rotation, counter-clockwise.
        image_order: of the rotation; 3, cubic B-spline, or 1, bilinear.

    Raises:
        UserError: a value out of its range.
    """
    for name, value in (
        ("turn_probability", turn_probability),
        ("rotate_probability", rotate_probability),
    ):
        require(name, value, "0..1", 0 <= value <= 1)
    holds = len(degrees) == 2 and -180 <= degrees[0] <= degrees[1] <= 180
    require("degrees", tuple(degrees), "-180 <= low <= high <= 180", holds)
    require("image_order", image_order, "1 or 3", image_order in (1, 3))

    def one(
        key: Array, image: Array, label: Array | None
    ) -> tuple[Array, Array | None]:
        """One sample: image [H, W, C], label [H, W] or None."""
        numbers = jax.random.uniform(key, (4,))
        turns, rotates = numbers[0] < turn_probability, numbers[1] < rotate_probability
        # Flipped along the other axis is turned by k + 2 and flipped along the rows, so
        # of the two draws k alone is left.
        step = _quarters_at_least(image)
        quarters = step * jnp.floor(4 / step * numbers[2]).astype(jnp.int32)
        degree = between(degrees, numbers[3])
        still = jnp.zeros((2, *image.shape[:2]))
        where = coordinates(still, math.pi / 180 * degree, jnp.float32(1.0))

        def chosen(value: Array, rotated: Array) -> Array:
            rotated = jnp.where(rotates, rotated, value)
            return jnp.where(turns, turn(value, quarters, True), rotated)

        read = functools.partial(sample_image, order=image_order)
        rotated = jax.vmap(read, in_axes=(-1, None), out_axes=-1)(image, where)
        if label is not None:
            label = chosen(label, sample_label(label, where))
        return chosen(image, rotated), label

    return jax.vmap(one)


def turn(value: Array, quarters: Array, flip: ArrayLike) -> Array:
    """`numpy.rot90(value, quarters)`, then its rows in reverse order if `flip`.

    Args:
        value: [H, W, ...].
        quarters: integer scalar in 0..3; 0 or 2 where H is not W.
        flip: bool scalar.
    """
    step = _quarters_at_least(value)
    turns = [functools.partial(jnp.rot90, k=k) for k in range(0, 4, step)]
    value = jax.lax.switch(quarters // step, turns, value)
    return jnp.where(flip, value[::-1], value)


def _quarters_at_least(value: Array) -> int:
    """The least turn, in quarters, that keeps the shape of [H, W, ...]."""
    return 1 if value.shape[0] == value.shape[1] else 2
