"""A temperature that goes down and up again in the course of training."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pclseg.parts.settings import require

Array = jax.Array
Temperature = Callable[[Array], Array]  # step -> float scalar


def schedule(name: str, bounds: Sequence[float], *, period: int) -> Temperature:
    """Step -> `cosine_temperature`, of settings of a method.

    Args:
        name: of the setting, for messages.
        bounds: (low, high); the same twice for a constant.
        period: in steps.

    Raises:
        UserError: unless 0 < low <= high and the period is 1 or more.
    """
    expected = "(low, high) with 0 < low <= high, the same twice for a constant"
    holds = len(bounds) == 2 and 0 < bounds[0] <= bounds[1]
    require(name, tuple(bounds), expected, holds)
    least = 2 if bounds[0] < bounds[1] else 1
    expected = f"{least} or more steps: those of the stage for one cycle"
    require("temperature_period", period, expected, period >= least)
    low, high = bounds
    return lambda step: cosine_temperature(step, period=period, low=low, high=high)


def cosine_temperature(step: Array, *, period: float, low: float, high: float) -> Array:
    """Low + (1 + cos(2 pi step / period)) (high - low) / 2: from high to low and back.

    You et al. 2023, arXiv 2304.02689 (ACTION++): large ones show groups, small ones
    instances.

    Args:
        step: integer, from 0.
        period: in steps.
        low: at half of the period.
        high: at its ends.
    """
    turn = 2 * jnp.pi * (step % period) / period
    return low + 0.5 * (1 + jnp.cos(turn)) * (high - low)
