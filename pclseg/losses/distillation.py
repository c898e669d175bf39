"""Losses between the predictions of a student and of a teacher."""

import jax
import jax.numpy as jnp

Array = jax.Array


def squared_difference(student: Array, teacher: Array, inside: Array) -> Array:
    """Mean squared difference of class probabilities over the pixels inside.

    Args:
        student: [B, H, W, K] float, softmax over the last axis.
        teacher: the same.
        inside: [B, H, W, 1] float, 1 where both are predictions and else 0.

    Returns:
        [B] float32, mean over pixels and classes; 0 for a slice without pixels inside.
    """
    squares = jnp.square(student - teacher).mean(axis=-1, keepdims=True)
    total = (squares * inside).sum(axis=(1, 2, 3))
    return total / jnp.maximum(inside.sum(axis=(1, 2, 3)), 1)
