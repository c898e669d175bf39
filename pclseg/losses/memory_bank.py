"""Contrast with a memory bank: one remembered unit vector for every slice.

Misra and van der Maaten 2020, arXiv 1912.01991.
"""

import jax

from pclseg.losses.contrastive import info_nce_of, unit_length

Array = jax.Array


def bank_nce(
    embedding: Array, own: Array, negatives: Array, *, temperature: float
) -> Array:
    """InfoNCE of embeddings against their own entries of a bank and other entries.

    loss = -log( exp(u . m / temperature)
                 / (exp(u . m / temperature) + sum_k exp(u . m_k / temperature)) )

    The paper has a binary NCE loss in its place, a sum of log-probabilities that each
    vector is, or is not, the slice's own; Zeng et al.'s first author uses this softmax.

    Args:
        embedding: u, [B, D] float, unit length.
        own: m, [B, D] float, unit length: the entry of the same slice.
        negatives: m_k, [B, K, D] float, unit length: entries of other slices.
        temperature: of the softmax, > 0.

    Returns:
        [B] float32 (float64 for float64), one loss per embedding.
    """
    return info_nce_of(embedding, own, negatives, temperature=temperature)


def other_rows(keys: Array, row: Array, *, num_rows: int, count: int) -> Array:
    """Draws rows of a bank, uniformly and with replacement, but never one's own.

    Args:
        keys: [B] random keys.
        row: [B] int32, what is never drawn.
        num_rows: of the bank, at least 2.
        count: K, how many to draw.

    Returns:
        [B, K] int32 in 0..num_rows-1.
    """

    def draw(key: Array, row: Array) -> Array:
        drawn = jax.random.randint(key, (count,), 0, num_rows - 1)
        return drawn + (drawn >= row)  # steps over the own row

    return jax.vmap(draw)(keys, row)


def updated_bank(
    bank: Array, row: Array, embedding: Array, *, momentum: float
) -> Array:
    """Moves entries of the bank: m <- normalise(momentum m + (1 - momentum) v).

    Of a slice that is several times in the batch the first embedding counts, on every
    device and however a device orders its writes.

    Args:
        bank: [N, D] float, unit length.
        row: [B] int32, the entries to move; of all devices when there are several.
        embedding: v, [B, D] float, unit length; no gradient goes through it.
        momentum: in [0, 1).

    Returns:
        [N, D] like `bank`.
    """
    first = (row[:, None] == row[None, :]).argmax(axis=1)  # [B]
    value = jax.lax.stop_gradient(embedding)[first]
    return bank.at[row].set(
        unit_length(momentum * bank[row] + (1.0 - momentum) * value)
    )
