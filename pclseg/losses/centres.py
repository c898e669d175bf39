"""Contrast of labelled pixels with centres of classes that lie far apart on a sphere.

You et al. 2023, arXiv 2304.02689 (ACTION++); the centres are those of Li et al. 2022,
arXiv 2111.13998.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pclseg.losses.anatomical import class_means
from pclseg.losses.contrastive import unit_length

Array = jax.Array

_RATE, _STEPS = 1e-2, 3000  # of the search for centres


def simplex_centres(num_classes: int, dim: int, *, seed: int) -> np.ndarray:
    """K points on the sphere, all pairs equally far apart, turned at random.

    The corners of the regular simplex, which are as far apart as points can be: the
    rows of the identity less their mean, in an orthonormal basis of the hyperplane that
    they span (Helmert's), scaled to length 1.

    Args:
        num_classes: K.
        dim: D, at least K - 1.
        seed: of the rotation.

    Returns:
        [K, D] float64.

    Raises:
        ValueError: there is no such simplex in D dimensions.
    """
    if dim < num_classes - 1:
        raise ValueError(f"{num_classes} equally far points need {num_classes - 1}-D.")
    basis = np.zeros((num_classes - 1, num_classes))
    for row in range(num_classes - 1):
        basis[row, : row + 1] = 1
        basis[row, row + 1] = -(row + 1)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    corners = (np.eye(num_classes) - 1 / num_classes) @ basis.T  # [K, K - 1]
    corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))
    return corners @ turn[: num_classes - 1]


def uniformity(points: Array, *, temperature: float, include_self: bool) -> Array:
    """Mean over c of log sum over c' of exp(p_c . p_c' / temperature).

    Args:
        points: p, [K, D] float, of any length; unit vectors count.
        temperature: > 0.
        include_self: whether c' = c counts, as in the authors' code, where that
            constant swamps the rest in float32.
    """
    unit = unit_length(points)
    cosine = jnp.einsum("cd,vd->cv", unit, unit, precision="highest") / temperature
    others = ~jnp.eye(len(points), dtype=bool) | include_self
    return jax.nn.logsumexp(cosine, axis=1, where=others).mean()


def solved_centres(
    num_classes: int, dim: int, *, temperature: float, seed: int
) -> Array:
    """As `simplex_centres`, found by minimising `uniformity` of random points.

    For any K and D; where a simplex fits it comes to that.

    Args:
        num_classes: K.
        dim: D.
        temperature: of `uniformity`.
        seed: of the points.

    Returns:
        [K, D] float32.
    """
    adam = optax.adam(_RATE)
    points = jax.random.normal(jax.random.key(seed), (num_classes, dim))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        points, moments = carry
        gradient = jax.grad(uniformity)(
            points, temperature=temperature, include_self=False
        )
        updates, moments = adam.update(gradient, moments)
        return (optax.apply_updates(points, updates), moments), None

    (points, _), _ = jax.lax.scan(step, (points, adam.init(points)), length=_STEPS)
    return unit_length(points)


def moved_means(
    means: Array,
    seen: Array,
    features: Array,
    labels: Array,
    *,
    rate: float,
) -> tuple[Array, Array]:
    """Moves the mean direction of every class that is there.

    normalise((1 - rate) mean_c + rate normalise(sum of features of c)); a class that is
    there for the first time takes the latter.

    Args:
        means: [K, D] float, unit length; 0 of classes not seen so far.
        seen: [K] bool.
        features: [N, D] float, unit length; no gradient goes through them.
        labels: [N] integer in 0..K; K is none.
        rate: in (0, 1].

    Returns:
        The two after it.
    """
    count = len(means)
    there = (labels[:, None] == jnp.arange(count)[None]).any(axis=0)
    fixed = jax.lax.stop_gradient(features)
    batch = unit_length(class_means(fixed, labels, count))
    share = jnp.where(seen, rate, 1.0)[:, None]
    moved = unit_length((1 - share) * means + share * batch)
    return jnp.where(there[:, None], moved, means), seen | there


def assigned_centres(means: Array, centres: Array) -> Array:
    """The permutation of centres with the largest sum of cosines to class means.

    Args:
        means: [K, D] float, unit length; 0 of a class without, which any centre fits.
        centres: [K, D] float, unit length.

    Returns:
        [K] int32, which centre is that of class 0, 1, ...
    """
    cosine = jnp.einsum("cd,vd->cv", means, centres, precision="highest")
    row, column = optax.assignment.hungarian_algorithm(-cosine)
    return jnp.zeros(len(means), jnp.int32).at[row].set(column.astype(jnp.int32))


class CentreTerms(NamedTuple):
    """The two parts of the loss, the second with its weight."""

    to_class: Array
    to_centre: Array


def centre_contrast(
    anchors: Array,
    own_keys: Array,
    labels: Array,
    bank: Array,
    bank_labels: Array,
    filled: Array,
    centres: Array,
    assigned: Array,
    *,
    temperature: float | Array,
    centre_weight: float,
    mode: str,
) -> CentreTerms:
    """Pulls pixels to keys of their class and to its centre.

    With s(v) an anchor's share exp(a . v / temperature) among its own key, all entries
    of the bank and all centres, P its own key and the entries of its class, and nu the
    centre of its class, the mean over anchors of:

    - "mean": -mean over P of log s - weight log s(nu);
    - "code", the authors': -(sum over P of log s + weight log s(nu)) / (|P| + 1), in
      which the centres hardly count once the bank is full;
    - "paper": -sum over P of log s - weight log s(nu).

    Gradient reaches the anchors alone.

    Args:
        anchors: a, [N, D] float, unit length.
        own_keys: [N, D] float, unit length: the teacher's at the same pixels.
        labels: [N] integer in 0..K-1; or -1, for an anchor that does not count.
        bank: [M, D] float, unit length.
        bank_labels: [M] integer; those of no class are negatives.
        filled: [M] bool, entries that are there.
        centres: [K, D] float, unit length.
        assigned: [K] integer, of `assigned_centres`.
        temperature: > 0.
        centre_weight: of the centres.
        mode: one of the three.

    Returns:
        Two scalars, 0 where no anchor counts.
    """
    own_keys, bank, centres = jax.lax.stop_gradient((own_keys, bank, centres))
    own = (anchors * own_keys).sum(axis=-1, keepdims=True)
    stored = jnp.einsum("nd,md->nm", anchors, bank, precision="highest")
    fixed = jnp.einsum("nd,kd->nk", anchors, centres, precision="highest")
    logits = jnp.concatenate([own, stored, fixed], axis=1) / temperature
    there = jnp.pad(filled, (1, len(centres)), constant_values=True)
    log_share = jax.nn.log_softmax(logits, axis=1, where=there[None])
    alike = filled[None] & (bank_labels[None] == labels[:, None])
    number = 1 + alike.sum(axis=1)  # |P|
    own_share, stored_share, fixed_share = jnp.split(
        log_share, [1, 1 + len(bank)], axis=1
    )
    to_class = -own_share[:, 0] - jnp.where(alike, stored_share, 0.0).sum(axis=1)
    place = assigned[labels][:, None]
    to_centre = -centre_weight * jnp.take_along_axis(fixed_share, place, axis=1)[:, 0]
    if mode == "mean":
        to_class = to_class / number
    elif mode == "code":
        to_class, to_centre = to_class / (number + 1), to_centre / (number + 1)
    counts = labels >= 0
    total = jnp.maximum(counts.sum(), 1)
    return CentreTerms(
        jnp.where(counts, to_class, 0.0).sum() / total,
        jnp.where(counts, to_centre, 0.0).sum() / total,
    )
