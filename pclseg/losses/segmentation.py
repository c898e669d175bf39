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
    index = label.astype(jnp.int32)[..., None]  # [B, H, W, 1]
    picked = jnp.take_along_axis(_log_probs(logits), index, axis=-1, mode="fill")
    return -jnp.mean(picked, axis=(1, 2, 3))


def soft_cross_entropy(logits: Array, probs: Array) -> Array:
    """Cross entropy against class probabilities, mean over the pixels of a slice.

    -mean over pixels of sum_k probs_k log softmax(logits)_k; of one-hot probabilities
    that of `cross_entropy`.

    Args:
        logits: [B, H, W, K] float.
        probs: [B, H, W, K] float, each pixel's summing to 1.

    Returns:
        [B] float32 (float64 for float64), one value per slice, background included.
    """
    return -jnp.mean(jnp.sum(probs * _log_probs(logits), axis=-1), axis=(1, 2))


def one_hot(label: Array, num_classes: int) -> Array:
    """[B, H, W] integer class ids -> [B, H, W, K] float32; NaN for an id beyond K-1."""
    rows = jnp.eye(num_classes).at[label.astype(jnp.int32)]
    return rows.get(mode="fill", fill_value=jnp.nan)


def _log_probs(logits: Array) -> Array:
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return jax.nn.log_softmax(logits.astype(dtype), axis=-1)
