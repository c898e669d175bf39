"""InfoNCE of large batches in memory that grows with the batch, not with its square.

Similarities are computed for a block of keys at a time, summed up online, and computed
again for the gradient. The idea is that of memory-efficient attention: Milakov and
Gimelshein 2018, arXiv 1805.02867; Rabe and Staats 2021, arXiv 2112.05682.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.losses.contrastive import at_least_float32
from pclseg.losses.positives import About, Positives

Array = jax.Array


class _Settings(NamedTuple):
    """What a compiled loss depends on."""

    positives: Positives
    temperature: float
    base_temperature: float
    block: int
    ring: str | None


class _Sums(NamedTuple):
    """What has been seen of the keys, [N] each."""

    largest: Array  # logit
    exponentials: Array  # sum of exp(logit - largest)
    positive_logits: Array  # sum
    positives: Array  # number, int32


def blockwise_info_nce(
    anchors: Array,
    keys: Array,
    about: About,
    about_keys: About,
    *,
    positives: Positives,
    temperature: float,
    base_temperature: float,
    block: int,
    ring: str | None = None,
) -> tuple[Array, Array]:
    """The loss of `contrastive.info_nce` without any array of [N, M].

    Takes memory of O(N D + M D + N block), in the gradient too, and 4/3 of the
    products. An anchor is no key of itself: a key of the same "id" takes no part.

    Args:
        anchors: [N, D] float, unit length.
        keys: [M, D] float, unit length.
        about: attributes of the anchors, [N, ...] each, "id" [N] integer among them.
        about_keys: those of the keys, [M, ...] each.
        positives: which of some keys are positives of some anchors; is called with the
            attributes of a block of keys.
        temperature: of the softmax, > 0.
        base_temperature: > 0; the loss is multiplied by temperature / base_temperature.
        block: keys at a time, >= 1.
        ring: device axis of a pmapped step in which `keys` are those of this device;
            they travel from device to device, so that no device ever holds all. None
            where `keys` are all keys there are.

    Returns:
        loss: [N] float32 (float64 for float64); 0, with gradient 0, for an anchor
            without positives.
        count: [N] int32, positives of every anchor.
    """
    settings = _Settings(positives, temperature, base_temperature, block, ring)
    return _loss(
        settings, at_least_float32(anchors), at_least_float32(keys), about, about_keys
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    settings: _Settings, anchors: Array, keys: Array, about: About, about_keys: About
) -> tuple[Array, Array]:
    value, _ = _forward(settings, anchors, keys, about, about_keys)
    return value


def _forward(
    settings: _Settings, anchors: Array, keys: Array, about: About, about_keys: About
):
    start = _Sums(
        jnp.full(len(anchors), jnp.finfo(anchors.dtype).min),
        jnp.zeros(len(anchors), anchors.dtype),
        jnp.zeros(len(anchors), anchors.dtype),
        jnp.zeros(len(anchors), jnp.int32),
    )
    add = functools.partial(_add_block, settings, anchors, about)

    def visit(sums: _Sums, visitor: tuple[Array, About]):
        blocks = _cut(visitor, len(keys), settings.block)
        return jax.lax.scan(add, sums, blocks)[0], visitor

    sums = _tour(settings.ring, visit, start, (keys, about_keys), home=False)[0]
    mean = sums.positive_logits / jnp.maximum(sums.positives, 1)
    value = sums.largest - mean + jnp.log(sums.exponentials)
    scale = settings.temperature / settings.base_temperature
    loss = scale * jnp.where(sums.positives > 0, value, 0.0)
    return (loss, sums.positives), (anchors, keys, about, about_keys, sums)


def _backward(settings: _Settings, saved, cotangents):
    anchors, keys, about, about_keys, sums = saved
    weight = cotangents[0] / settings.base_temperature
    weight = jnp.where(sums.positives > 0, weight, 0.0)
    add = functools.partial(_add_gradients, settings, anchors, about, sums, weight)

    def visit(anchor_grads: Array, visitor: tuple[Array, About, Array]):
        passing, about_passing, key_grads = visitor
        blocks = _cut((passing, about_passing), len(keys), settings.block)
        anchor_grads, grads = jax.lax.scan(add, anchor_grads, blocks)
        key_grads += grads.reshape(-1, keys.shape[1])[: len(keys)]
        return anchor_grads, (passing, about_passing, key_grads)

    visitor = keys, about_keys, jnp.zeros_like(keys)
    anchor_grads, (_, _, key_grads) = _tour(
        settings.ring, visit, jnp.zeros_like(anchors), visitor, home=True
    )
    return anchor_grads, key_grads, None, None


_loss.defvjp(_forward, _backward)


def _tour(ring: str | None, visit: Callable, carry, visitor, *, home: bool):
    """Calls visit(carry, visitor) -> (carry, visitor) once on every device of the ring.

    The carry stays, the visitor travels; with `home` it ends where it began.

    Returns:
        The last carry and visitor.
    """

    def hop(_, both):
        carry, visitor = visit(*both)
        return carry, parallel.pass_on(visitor, ring)

    hops = parallel.num_devices(ring) - 1
    if hops:
        carry, visitor = jax.lax.fori_loop(0, hops, hop, (carry, visitor))
    carry, visitor = visit(carry, visitor)
    return carry, parallel.pass_on(visitor, ring) if home else visitor


def _cut(tree, length: int, block: int):
    """(tree of [M / block, block, ...], [M / block, block] bool: not padding)."""
    number = -(-length // block)

    def cut(array: Array) -> Array:
        width = [(0, number * block - length)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, width).reshape(number, block, *array.shape[1:])

    return jax.tree.map(cut, (*tree, jnp.ones(length, bool)))


def _block_logits(
    settings: _Settings, anchors: Array, about: About, keys: Array, about_keys: About
) -> tuple[Array, Array, Array]:
    """Logits, which keys take no part but for padding, which are positives: [N, b]."""
    logits = jnp.matmul(anchors, keys.T, precision="highest") / settings.temperature
    is_self = about["id"][:, None] == about_keys["id"][None, :]
    return logits, is_self, settings.positives(about, about_keys)


def _add_block(settings: _Settings, anchors: Array, about: About, sums: _Sums, block):
    keys, about_keys, real = block
    logits, is_self, positive = _block_logits(
        settings, anchors, about, keys, about_keys
    )
    counted = real[None, :] & ~is_self
    positive &= counted
    lowest = jnp.finfo(logits.dtype).min
    largest = jnp.where(counted, logits, lowest).max(axis=1)
    largest = jnp.maximum(sums.largest, largest)
    terms = jnp.where(counted, jnp.exp(logits - largest[:, None]), 0.0)
    exponentials = sums.exponentials * jnp.exp(sums.largest - largest)
    return _Sums(
        largest,
        exponentials + terms.sum(axis=1),
        sums.positive_logits + jnp.where(positive, logits, 0.0).sum(axis=1),
        sums.positives + positive.sum(axis=1, dtype=jnp.int32),
    ), None


def _add_gradients(
    settings: _Settings,
    anchors: Array,
    about: About,
    sums: _Sums,
    weight: Array,
    anchor_grads: Array,
    block,
):
    """Gradient of the anchors so far and of this block of keys, [b, D]."""
    keys, about_keys, real = block
    logits, is_self, positive = _block_logits(
        settings, anchors, about, keys, about_keys
    )
    counted = real[None, :] & ~is_self
    count = jnp.maximum(sums.positives, 1)[:, None]
    share = jnp.where(positive & counted, 1.0 / count, 0.0)
    # Large logits are subtracted first, or their rounding would be that of the sum.
    softmax = jnp.exp(logits - sums.largest[:, None]) / sums.exponentials[:, None]
    slope = jnp.where(counted, softmax - share, 0.0)
    # Of an anchor without positives the softmax may be of no key at all.
    slope = jnp.where(weight[:, None] != 0, weight[:, None] * slope, 0.0)
    anchor_grads += jnp.matmul(slope, keys, precision="highest")
    return anchor_grads, jnp.matmul(slope.T, anchors, precision="highest")
