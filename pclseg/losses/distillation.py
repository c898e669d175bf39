"""Losses between the predictions of a student and of a teacher."""

import jax
import jax.numpy as jnp

from pclseg.losses.contrastive import at_least_float32, unit_length

Array = jax.Array

_EPSILON = 1e-7


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


def similarity_log_probs(
    embedding: Array, bank: Array, filled: Array, *, temperature: float | Array
) -> Array:
    """How alike an embedding is to the entries of a bank, as a distribution over them.

    log softmax over n of cos(z_w, a_nw) / temperature; Tejankar et al. 2021, arXiv
    2010.10974, and You et al. 2023, arXiv 2206.02307. An entry is compared with
    embeddings of its own window w only. No gradient reaches the bank.

    Args:
        embedding: z, [B, W, D] float, of W windows; of any length.
        bank: a, [N, W, D] float; likewise.
        filled: [N] bool, whether an entry is there; the others have probability 0.
        temperature: of the softmax, > 0.

    Returns:
        [B, W, N] float32 (float64 for float64); 0 everywhere where no entry is there.
    """
    z, a = unit_length(embedding), unit_length(jax.lax.stop_gradient(bank))
    cosine = jnp.einsum("bwd,nwd->bwn", z, a, precision="highest") / temperature
    any_there = filled.any()
    there = jnp.broadcast_to(filled | ~any_there, cosine.shape)
    log_probs = jax.nn.log_softmax(cosine, axis=-1, where=there)  # -inf elsewhere
    return jnp.where(any_there, log_probs, 0.0)


def kl_divergence(
    log_teacher: Array, log_student: Array, *, reverse: bool = False
) -> Array:
    """KL(teacher || student), the sum of p_t (log p_t - log p_s).

    No gradient reaches the teacher. `reverse` is KL(student || teacher), as later
    papers of the same authors print it, while their code has the other.

    Args:
        log_teacher: [..., N] float, log probabilities; -inf where both have none.
        log_student: the same.
        reverse: which way round.

    Returns:
        [...] float32 (float64 for float64).
    """
    log_teacher = jax.lax.stop_gradient(log_teacher)
    first, second = log_teacher, log_student
    if reverse:
        first, second = second, first
    there = jnp.isfinite(first) & jnp.isfinite(second)
    # The difference must not see an infinity, not even where it is thrown away.
    first, second = jnp.where(there, first, 0.0), jnp.where(there, second, 0.0)
    return jnp.where(there, jnp.exp(first) * (first - second), 0.0).sum(axis=-1)


def confident_share(confidence: Array, valid: Array, *, threshold: float) -> Array:
    """How much of a slice a teacher is sure of: the weight of its pseudo-labels.

    Args:
        confidence: [B, H, W] float, the teacher's largest probability.
        valid: [B, H, W] bool, pixels that have a pseudo-label.
        threshold: from which confidence on a pixel counts.

    Returns:
        [B] float, share of the valid pixels; 0 for a slice without any.
    """
    sure = (valid & (confidence >= threshold)).sum(axis=(1, 2))
    return at_least_float32(sure) / jnp.maximum(valid.sum(axis=(1, 2)), 1)


def masked_kl(reference: Array, logits: Array, mask: Array) -> Array:
    """Mean over the pixels of a mask of KL(softmax(reference) || softmax(logits)).

    You et al. 2022, arXiv 2209.13476 (MONA), equivariance. No gradient reaches the
    reference.

    Args:
        reference: [B, H, W, K] float.
        logits: [B, H, W, K] float.
        mask: [B, H, W] float in 0..1, the weight of a pixel.

    Returns:
        [B] float32 (float64 for float64); 0 for a slice without weight.
    """
    log_reference, log_probs = (
        jax.nn.log_softmax(at_least_float32(x)) for x in (reference, logits)
    )
    each = mask * kl_divergence(log_reference, log_probs)
    return each.sum(axis=(1, 2)) / (mask.sum(axis=(1, 2)) + _EPSILON)
