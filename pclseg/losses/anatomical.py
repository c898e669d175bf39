"""Contrast of pixels by class: hard ones against all, confusable classes more often.

"Anatomical contrast" of You et al. 2023, arXiv 2206.02307, which is the loss of Liu et
al. 2022, arXiv 2104.04465 (ReCo). Pixels are those of the global batch, in one row; a
pixel belongs to one class, or to none where its pseudo-label is not sure.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pclseg.losses.contrastive import at_least_float32, info_nce_of, unit_length
from pclseg.losses.sampling import Draw, draw_members, members, naive

Array = jax.Array


def class_means(features: Array, classes: Array, num_classes: int) -> Array:
    """[N, D] features, [N] classes in 0..K (K is none) -> [K, D] means; 0 of no pixel.

    They are not scaled to length 1.
    """
    belongs = classes[:, None] == jnp.arange(num_classes)[None]
    features = at_least_float32(features)
    belongs = belongs.astype(features.dtype)  # [N, K]
    sums = jnp.einsum("nk,nd->kd", belongs, features, precision="highest")
    return sums / jnp.maximum(belongs.sum(axis=0), 1)[:, None]


def confusion_probs(
    means: Array, present: Array, *, temperature: float | Array
) -> Array:
    """How often negatives of a class are drawn from each other one.

    softmax over v != c, present, of cos(mean_c, mean_v) / temperature.

    Args:
        means: [K, D] float.
        present: [K] bool.
        temperature: of the softmax, > 0.

    Returns:
        [K, K], row c over v; 0 for absent ones, and for all where no other is present.
    """
    unit = unit_length(means)
    cosine = jnp.einsum("cd,vd->cv", unit, unit, precision="highest") / temperature
    able = present[None, :] & ~jnp.eye(len(means), dtype=bool)
    any_able = able.any(axis=1, keepdims=True)
    probs = jax.nn.softmax(cosine, axis=1, where=able | ~any_able)
    return jnp.where(able & any_able, probs, 0.0)


def contrast_in_chunks(
    anchors: Array,
    positives: Array,
    negatives: Callable[[Array], Array],
    *,
    temperature: float | Array,
    chunk: int,
) -> Array:
    """`info_nce_of` of the anchors of every class, a few at a time.

    Args:
        anchors: [A, K, D] float, unit length, A of each class.
        positives: [K, D] float, unit length.
        negatives: number of an anchor -> [K, M, D] float, unit length, those of this
            anchor of every class; computed again for the gradient, which would else
            need the negatives of all anchors.
        temperature: > 0.
        chunk: >= 1, anchors at a time; what comes out is the same.

    Returns:
        [A, K] float32 (float64 for float64).
    """

    def losses(one: tuple[Array, Array]) -> Array:
        number, anchors = one
        return info_nce_of(
            anchors, positives, negatives(number), temperature=temperature
        )

    return jax.lax.map(
        jax.checkpoint(losses),
        (jnp.arange(len(anchors)), anchors),
        batch_size=min(chunk, len(anchors)),
    )


def mean_over_classes(each: Array, able: Array, present: Array) -> Array:
    """Mean over the present classes of the mean loss of their anchors.

    Args:
        each: [A, K] float, of A anchors of each class.
        able: [K] bool, classes whose anchors count; others add 0 to the mean.
        present: [K] bool.

    Returns:
        Scalar; 0 where fewer than two classes are present.
    """
    total = jnp.where(able, each.mean(axis=0), 0.0).sum()
    number = present.sum()
    return jnp.where(number > 1, total / jnp.maximum(number, 1), 0.0)


def anatomical_contrast(
    features: Array,
    classes: Array,
    hard: Array,
    key: Array,
    *,
    num_classes: int,
    num_anchors: int,
    num_negatives: int,
    temperature: float | Array,
    draw: Draw = naive,
    chunk: int = 16,
) -> Array:
    """Mean over classes of `info_nce_of` of hard pixels against their class's mean.

    Anchors are drawn from the hard pixels of a class, with replacement; for each anchor
    negatives are drawn, their class by `confusion_probs`, then a pixel of it, evenly.
    Cosines count. Gradient reaches the anchors alone. Classes without a hard pixel add
    0 to the mean; absent ones do not count in it.

    At a time, `chunk` anchors of every class have their negatives in memory: [chunk, K,
    num_negatives, D].

    Args:
        features: [N, D] float.
        classes: [N] integer in 0..K; K is none.
        hard: [N] bool.
        key: random.
        num_classes: K.
        num_anchors: of a class.
        num_negatives: of an anchor.
        temperature: > 0.
        draw: of the anchors, one of `pclseg.losses.sampling`.
        chunk: >= 1; the loss is the same.

    Returns:
        Scalar; 0 where fewer than two classes are present.
    """
    fixed = jax.lax.stop_gradient(features)
    all_members = members(classes, num_classes)
    present = all_members.count > 0
    means = class_means(fixed, classes, num_classes)
    shares = confusion_probs(means, present, temperature=temperature)
    upto = jnp.cumsum(shares, axis=1)  # [K, K]
    anchor_key, negative_key = jax.random.split(key)
    hard_classes = jnp.where(hard, classes, num_classes)
    drawn = draw(hard_classes, anchor_key, num_classes, num_anchors)
    unit_means = unit_length(means)

    def negatives(number: Array) -> Array:
        key = jax.random.fold_in(negative_key, number)
        to_class, to_pixel = jax.random.uniform(key, (2, num_classes, num_negatives))
        # The class whose share of [0, 1) the number falls into.
        beyond = to_class[..., None] * upto[:, None, -1:] >= upto[:, None]
        other = jnp.minimum(beyond.sum(axis=-1), num_classes - 1)
        return unit_length(fixed[draw_members(all_members, other, to_pixel)])

    each = contrast_in_chunks(
        unit_length(features[drawn.pixels.T]),
        unit_means,
        negatives,
        temperature=temperature,
        chunk=chunk,
    )
    return mean_over_classes(each, drawn.count > 0, present)
