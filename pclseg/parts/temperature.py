"""A temperature that goes down and up again in the course of training."""

import jax
import jax.numpy as jnp

Array = jax.Array


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
