"""Losses of pixel-wise classification."""

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy(logits: Array, label: Array) -> Array:
    """Unweighted softmax cross entropy, mean over the pixels of a slice.

    Args:
        logits: [B, H, W, K] float.
        label: [B, H, W] integer class ids in 0..K-1; any other id gives NaN.

    Returns:
        [B] float32 (float64 for float64), one value per slice, background included.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    log_probs = jax.nn.log_softmax(logits.astype(dtype), axis=-1)
    index = label.astype(jnp.int32)[..., None]  # [B, H, W, 1]
    picked = jnp.take_along_axis(log_probs, index, axis=-1, mode="fill")
    return -jnp.mean(picked, axis=(1, 2, 3))
