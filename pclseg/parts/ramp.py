"""The weight of what a teacher says, which grows as the teacher learns."""

import jax
import jax.numpy as jnp

Array = jax.Array


def ramp_up(step: Array, *, max_weight: float, ramp_steps: int) -> Array:
    """max_weight * exp(-5 (1 - min(step, E) / E)^2), Laine & Aila 2017.

    arXiv 1610.02242.

    Args:
        step: integer, from 0.
        max_weight: from step E on.
        ramp_steps: E; with 0 the weight is max_weight from the start.
    """
    done = jnp.minimum(step / ramp_steps, 1.0) if ramp_steps else 1.0
    return max_weight * jnp.exp(-5 * jnp.square(1 - done))
