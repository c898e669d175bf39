"""Losses of pixel-wise classification."""

import jax
import jax.numpy as jnp

from pclseg.losses.contrastive import at_least_float32

Array = jax.Array

_DICE_EPSILON = 1e-5


def cross_entropy(logits: Array, label: Array) -> Array:
    """Unweighted softmax cross entropy, mean over the pixels of a slice.

    Args:
        logits: [B, H, W, K] float.
        label: [B, H, W] integer class ids in 0..K-1; any other id gives NaN.

    Returns:
        [B] float32 (float64 for float64), one value per slice, background included.
    """
    return jnp.mean(pixel_cross_entropy(logits, label), axis=(1, 2))


def pixel_cross_entropy(logits: Array, label: Array) -> Array:
    """Softmax cross entropy of every pixel.

    Args:
        logits: [B, H, W, K] float.
        label: [B, H, W] integer class ids in 0..K-1; any other id gives NaN.

    Returns:
        [B, H, W] float32 (float64 for float64).
    """
    index = _index(label, logits.shape[-1])[..., None]  # [B, H, W, 1]
    picked = jnp.take_along_axis(_log_probs(logits), index, axis=-1, mode="fill")
    return -picked[..., 0]


def dice_sums(logits: Array, label: Array) -> Array:
    """What `dice_loss` is made of; the sums of several parts of a batch add up.

    Args:
        logits: [B, H, W, K] float.
        label: [B, H, W] integer class ids in 0..K-1.

    Returns:
        [2, K] float32 (float64 for float64): over all pixels p g, and p^2 + g^2, with p
        the softmax of the logits and g 1 where a pixel is of the class.
    """
    probs = jnp.exp(_log_probs(logits))
    truth = one_hot(label, logits.shape[-1]).astype(probs.dtype)
    both = probs * truth, jnp.square(probs) + jnp.square(truth)
    return jnp.stack([terms.sum(axis=(0, 1, 2)) for terms in both])


def dice_loss(sums: Array) -> Array:
    """1 - (2 sum p g + e) / (sum p^2 + sum g^2 + e) of every class, e = 1e-5.

    As in SSL4MIS (github.com/HiLab-git/SSL4MIS), the background is a class too.

    Args:
        sums: [2, K] of `dice_sums`.

    Returns:
        [K], in 0..1.
    """
    inside, squares = sums
    return 1 - (2 * inside + _DICE_EPSILON) / (squares + _DICE_EPSILON)


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
    """[B, H, W] class ids -> [B, H, W, K] float32; NaN for an id not in 0..K-1."""
    rows = jnp.eye(num_classes).at[_index(label, num_classes)]
    return rows.get(mode="fill", fill_value=jnp.nan)


def _index(label: Array, num_classes: int) -> Array:
    """Ids as int32; K for negative ones, which as an index count from the end."""
    return jnp.where(label < 0, num_classes, label).astype(jnp.int32)


def _log_probs(logits: Array) -> Array:
    return jax.nn.log_softmax(at_least_float32(logits), axis=-1)
