"""TCSM: what the student says of a slice moves with the slice, as a teacher sees it.

Li et al. 2020, arXiv 1903.00348, transformation-consistent self-ensembling.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pclseg.augment import Augment
from pclseg.augment.interpolation import sample_image
from pclseg.augment.spatial import coordinates
from pclseg.augment.turns import turn
from pclseg.methods.base import Array, Method
from pclseg.parts.consistency import consistency
from pclseg.parts.settings import require


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    max_weight: float,
    ramp_steps: int,
    max_decay: float,
    noise_std: float,
    zoom: Sequence[float],
    dice_weight: float = 0.0,
) -> Method:
    """Mean teacher with a random rotation by quarters, flip and zoom of every slice.

    In the authors' code no gradient passes through the consistency, so that it trains
    nothing, and a zoom is applied twice; here it trains the student, and zooms once.

    Args:
        model: as in `consistency`, like the arguments not named here.
        augment: moves labelled images and their labels alike.
        axis_name: of the pmapped step, or None.
        max_weight: of the consistency.
        ramp_steps: until the weight is that.
        max_decay: of the teacher.
        noise_std: on the teacher's input.
        zoom: low and high factor of enlargement, low <= 1 <= high; (1, 1) for none.
        dice_weight: share of the Dice loss of labelled slices, which takes the place of
            cross entropy.

    Raises:
        UserError: a setting out of its range.
    """
    holds = len(zoom) == 2 and 0 < zoom[0] <= 1 <= zoom[1]
    require("zoom", zoom, "0 < low <= 1 <= high", holds)
    return consistency(
        model=model,
        augment=augment,
        transform=functools.partial(transform, zoom=(zoom[0], zoom[1])),
        axis_name=axis_name,
        max_weight=max_weight,
        ramp_steps=ramp_steps,
        max_decay=max_decay,
        noise_std=noise_std,
        dice_weight=dice_weight,
        needs_square=True,
    )


def transform(keys: Array, values: Array, *, zoom: tuple[float, float]) -> Array:
    """Moves every row by the rotation, flip and zoom that its key draws.

    Args:
        keys: [B] keys.
        values: [B, S, S, C] float, images or class probabilities.
        zoom: low and high factor, uniform between.

    Returns:
        [B, S, S, C]; exact without zoom, else bilinear and 0 outside.
    """

    def one(key: Array, value: Array) -> Array:
        turn_key, number_key = jax.random.split(key)
        quarters = jax.random.randint(turn_key, (), 0, 4)
        flip, size = jax.random.uniform(number_key, (2,))
        value = turn(value, quarters, flip < 0.5)
        if zoom == (1, 1):
            return value
        return enlarge(value, zoom[0] + (zoom[1] - zoom[0]) * size)

    return jax.vmap(one)(keys, values)


def enlarge(value: Array, factor: Array) -> Array:
    """Scales about the centre of the image, bilinear, 0 outside.

    Args:
        value: [S, S, C] float.
        factor: scalar, > 1 enlarges.
    """
    height, width, _ = value.shape
    still = jnp.zeros((2, height, width))
    where = coordinates(still, jnp.float32(0.0), 1 / factor)
    read = functools.partial(sample_image, order=1)
    return jax.vmap(read, in_axes=(-1, None), out_axes=-1)(value, where)
