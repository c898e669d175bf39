"""Contrastive losses over embeddings; which keys are positives is an argument."""

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def unit_length(embedding: Array, *, eps: float = 1e-8) -> Array:
    """Scales every vector to length 1: z / max(|z|, eps).

    Args:
        embedding: [..., D] float.
        eps: smallest length divided by; the zero vector stays zero, with a finite
            gradient.

    Returns:
        [..., D] float32 (float64 for float64).
    """
    embedding = at_least_float32(embedding)
    squared = jnp.sum(jnp.square(embedding), axis=-1, keepdims=True)
    long = squared > eps * eps
    # The square root must not see a zero, not even where its result is thrown away.
    length = jnp.where(long, jnp.sqrt(jnp.where(long, squared, 1.0)), eps)
    return embedding / length


def info_nce(
    anchors: Array,
    keys: Array,
    positives: Array,
    ignored: Array,
    *,
    temperature: float,
    base_temperature: float,
) -> Array:
    """InfoNCE for anchors with any number of positives.

    loss_a = -(temperature / base_temperature)
             * mean_{p in P(a)} log softmax_{k not ignored by a}(a . k / temperature)[p]
    Khosla et al. 2020, arXiv 2004.11362 ("out" form); the constant factor is that of
    the code of Zeng et al. 2021, arXiv 2106.09157. No gradient is stopped.

    Args:
        anchors: [N, D] float, unit length.
        keys: [M, D] float, unit length; the rows of all devices when there are several.
        positives: [N, M] bool, True where the key is a positive of the anchor.
        ignored: [N, M] bool, True where the key takes no part, as the anchor itself.
        temperature: of the softmax, > 0.
        base_temperature: > 0; equal to `temperature` for the plain mean.

    Returns:
        [N] float32 (float64 for float64), one loss per anchor; 0, with gradient 0, for
        an anchor without positives.
    """
    logits = _similarity(anchors, keys) / temperature  # [N, M]
    # A row without any key would be log 0; it has no positive, so any value will do.
    absent = ignored & ~jnp.all(ignored, axis=-1, keepdims=True)
    logits = jnp.where(absent, -jnp.inf, logits)
    logits -= jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_prob = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True))
    positives = positives & ~ignored
    total = jnp.sum(jnp.where(positives, log_prob, 0.0), axis=-1)
    count = jnp.maximum(jnp.sum(positives, axis=-1), 1)
    return -(temperature / base_temperature) * total / count


def pair_nce(
    anchors: Array, keys: Array, negatives: Array, *, temperature: float
) -> Array:
    """InfoNCE of single pairs, whose other positives are kept out of the softmax.

    loss_ab = -log(exp s_ab / (exp s_ab + sum_{k in N(a)} exp s_ak)), with
    s_ab = a . b / temperature, for every anchor a and key b.
    Chaitanya et al. 2020, arXiv 2006.10511, equation 1. No gradient is stopped.

    Args:
        anchors: [N, D] float, unit length.
        keys: [M, D] float, unit length; the rows of all devices when there are several.
        negatives: [N, M] bool, True where the key is a negative of the anchor.
        temperature: of the softmax, > 0.

    Returns:
        [N, M] float32 (float64 for float64); 0, with gradient 0, in the row of an
        anchor without negatives.
    """
    logits = _similarity(anchors, keys) / temperature
    some = jnp.any(negatives, axis=-1, keepdims=True)
    counted = negatives | ~some  # a sum of none would be log 0; it is not used
    largest = jnp.max(jnp.where(counted, logits, -jnp.inf), axis=-1, keepdims=True)
    largest = jax.lax.stop_gradient(largest)
    terms = jnp.exp(jnp.where(counted, logits - largest, -jnp.inf))
    rest = largest + jnp.log(jnp.sum(terms, axis=-1, keepdims=True))  # [N, 1]
    return jnp.where(some, jax.nn.softplus(rest - logits), 0.0)


def info_nce_of(
    anchors: Array, positive: Array, negatives: Array, *, temperature: float | Array
) -> Array:
    """-log of the positive's share of exp(similarity / temperature), itself and all.

    Similarity is the dot product: cosine for vectors of length 1. No gradient is
    stopped.

    Args:
        anchors: [..., D] float.
        positive: [..., D] float, one an anchor.
        negatives: [..., M, D] float, those of an anchor.
        temperature: > 0.

    Returns:
        [...] float32 (float64 for float64).
    """
    keys = jnp.concatenate([positive[..., None, :], negatives], axis=-2)
    anchors, keys = at_least_float32(anchors), at_least_float32(keys)
    similarity = jnp.einsum("...d,...md->...m", anchors, keys, precision="highest")
    return -jax.nn.log_softmax(similarity / temperature)[..., 0]


def collapse_value(
    num_embeddings: int, *, temperature: float, base_temperature: float
) -> float:
    """The loss of a collapsed embedding, where all similarities are equal.

    (temperature / base_temperature) * log(num_embeddings - 1), whoever is a positive.

    Args:
        num_embeddings: anchors that see each other, two a slice of the global batch.
        temperature: as in `info_nce`.
        base_temperature: as in `info_nce`.
    """
    return temperature / base_temperature * math.log(num_embeddings - 1)


def _similarity(anchors: Array, keys: Array) -> Array:
    return jnp.matmul(
        at_least_float32(anchors), at_least_float32(keys).T, precision="highest"
    )


def at_least_float32(array: Array) -> Array:
    """float64 stays; what is of fewer bits than float32 becomes float32."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
