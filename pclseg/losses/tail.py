"""Contrast of sure pixels with what a bank holds against their class.

The "tailness" of You et al. 2022, arXiv 2209.13476 (MONA), which is the loss of Wang et
al. 2022, arXiv 2203.03884 (U2PL): all classes send as many queries, rare ones too.
Pixels are those of the global batch, in one row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pclseg.losses.anatomical import (
    class_means,
    contrast_in_chunks,
    mean_over_classes,
)
from pclseg.losses.contrastive import unit_length
from pclseg.losses.sampling import Draw, naive, number_below

Array = jax.Array

RULES = ("other_class", "code")
_LAST_RANK = 20  # of the authors: keys are of rank first..19


class Candidates(NamedTuple):
    """Which pixels may be what.

    Attributes:
        queries: [N] int32 in 0..K, the class that a pixel may be a query of; K is none.
        mean_of: [N] int32 in 0..K, the class whose mean it belongs to; K is none.
        keys: [N, K] bool, whether it may enter the bank of a class.
    """

    queries: Array
    mean_of: Array
    keys: Array


def entropy(probs: Array) -> Array:
    """-sum p log(p + 1e-10) over the last axis, as in the authors' code."""
    return -(probs * jnp.log(probs + 1e-10)).sum(axis=-1)


def masked_percentile(values: Array, valid: Array, percent: Array) -> Array:
    """A percentile of some values, linear between two of them.

    Args:
        values: [N] float.
        valid: [N] bool.
        percent: scalar or [...] in 0..100.

    Returns:
        The shape of `percent`; infinity where none is valid.
    """
    ordered = jnp.sort(jnp.where(valid, values, jnp.inf))
    last = jnp.maximum(valid.sum() - 1, 0)
    place = last * jnp.asarray(percent, ordered.dtype) / 100
    below = jnp.floor(place).astype(jnp.int32)
    share = place - below
    low, high = ordered[below], ordered[jnp.minimum(below + 1, last)]
    between = jnp.where(share > 0, share * (high - low), 0.0)  # never inf - inf
    return jnp.where(valid.any(), low + between, jnp.inf)


def class_ranks(probs: Array) -> Array:
    """[..., K] -> the same, int32: how many classes are more likely; 0 of the most.

    Of equals the first is taken for more likely.
    """
    order = jnp.argsort(-probs, axis=-1, stable=True)
    return jnp.argsort(order, axis=-1, stable=True).astype(jnp.int32)


def first_rank(num_classes: int) -> int:
    """From which rank on a class is unlikely: 3, less where there are fewer than 5."""
    return max(1, min(3, num_classes - 2))


def candidates(
    label: Array,
    is_labelled: Array,
    entropies: Array,
    taught_probs: Array,
    *,
    percent: Array,
    query_threshold: float,
    key_threshold: float,
    rule: str,
) -> Candidates:
    """Chooses pixels by how sure the networks are of them.

    Low are labelled pixels, and those whose entropy is not above the `percent`-th
    percentile of the unlabelled pixels with a label; high likewise, not below the
    (100 - percent)-th. Queries are low pixels to whose class the teacher gives more
    than `query_threshold`; low pixels make the mean of a class. A key against class c
    is high, and the teacher gives c less than `key_threshold`; and

    - rule "other_class": labelled, not of c, but c is among the likely ones; or not
      labelled, and c is unlikely, of rank `first_rank` or beyond;
    - rule "code": labelled c; for a pseudo-label unlikely, of rank 3 to 19, for others
      of rank below 3 and not c. That is what the authors' code asks: no labelled pixel
      fulfils it, and of K <= 3 classes none at all.

    Args:
        label: [N] integer in 0..K; K is none.
        is_labelled: [N] bool, whether it is no pseudo-label.
        entropies: [N] float, of the network that is asked.
        taught_probs: [N, K] float, the teacher's.
        percent: scalar, in 0..50.
        query_threshold: 0.3 in the authors' code.
        key_threshold: 0.97 there.
        rule: of `RULES`.
    """
    num_classes = taught_probs.shape[-1]
    kinds = jnp.arange(num_classes)[None]
    counts = label < num_classes
    rest = counts & ~is_labelled
    low_limit, high_limit = masked_percentile(
        entropies, rest, jnp.stack([percent, 100 - percent])
    )
    known = counts & is_labelled
    low = known | (rest & (entropies <= low_limit))
    high = known | (rest & (entropies >= high_limit))
    own = label[:, None] == kinds
    ranks = class_ranks(taught_probs)
    if rule == "code":
        likely = ranks < 3
        unlikely = ~likely & (ranks < _LAST_RANK)
        able = own & unlikely & ~known[:, None]
    else:
        likely = ranks < first_rank(num_classes)
        able = jnp.where(known[:, None], likely & ~own, ~likely)
    in_class = (own & (taught_probs > query_threshold)).any(axis=1)
    return Candidates(
        queries=jnp.where(low & in_class, label, num_classes),
        mean_of=jnp.where(low, label, num_classes),
        keys=high[:, None] & able & (taught_probs < key_threshold),
    )


def some_of(mask: Array, key: Array, number: int) -> tuple[Array, Array]:
    """At most n of the pixels of each mask, without replacement.

    Args:
        mask: [N, K] bool.
        key: random.
        number: n <= N.

    Returns:
        [K, n] int32 pixels, and [K, n] bool whether there is one; all where no more
        than n are set.
    """
    priority = jnp.where(mask.T, jax.random.uniform(key, mask.T.shape), -1.0)
    chosen, pixels = jax.lax.top_k(priority, number)
    return pixels, chosen >= 0


def tail_contrast(
    features: Array,
    taught: Array,
    queries: Array,
    mean_of: Array,
    bank: Array,
    filled: Array,
    key: Array,
    *,
    num_queries: int,
    num_negatives: int,
    temperature: float,
    draw: Draw = naive,
    chunk: int = 16,
) -> Array:
    """Mean over classes of InfoNCE of queries against their class's mean and the bank.

    Cosines count. Gradient reaches the queries alone. A class counts if it has a mean;
    if it has no query, or its bank is empty, it adds 0.

    At a time, `chunk` queries of every class have their negatives in memory: [chunk, K,
    num_negatives, D].

    Args:
        features: [N, D] float, the student's.
        taught: [N, D] float, the teacher's.
        queries: [N] integer in 0..K, see `Candidates`.
        mean_of: [N] integer in 0..K.
        bank: [K, S, D] float, of any length.
        filled: [K] int32, how many entries of a class are there, from 0.
        key: random.
        num_queries: of a class, with replacement.
        num_negatives: of a query, evenly from the bank, with replacement.
        temperature: > 0.
        draw: of the queries, one of `pclseg.losses.sampling`.
        chunk: >= 1; the loss is the same.

    Returns:
        Scalar; 0 where fewer than two classes have a mean.
    """
    num_classes = len(bank)
    taught, bank = jax.lax.stop_gradient((taught, bank))
    means = unit_length(class_means(taught, mean_of, num_classes))
    present = (mean_of[:, None] == jnp.arange(num_classes)[None]).any(axis=0)
    query_key, negative_key = jax.random.split(key)
    drawn = draw(queries, query_key, num_classes, num_queries)

    def negatives(number: Array) -> Array:
        key = jax.random.fold_in(negative_key, number)
        uniform = jax.random.uniform(key, (num_classes, num_negatives))
        place = number_below(uniform, filled[:, None])
        return unit_length(jnp.take_along_axis(bank, place[..., None], axis=1))

    each = contrast_in_chunks(
        unit_length(features[drawn.pixels.T]),
        means,
        negatives,
        temperature=temperature,
        chunk=chunk,
    )
    able = (drawn.count > 0) & (filled > 0) & present
    return mean_over_classes(each, able, present)
