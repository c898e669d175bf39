"""Distance of slices to the nearest ones of a pool.

You et al. 2022, arXiv 2209.13476 (MONA).
"""

import jax
import jax.numpy as jnp

from pclseg.losses.contrastive import at_least_float32, unit_length

Array = jax.Array


def neighbour_distance(
    student: Array, teacher: Array, pool: Array, filled: Array, *, neighbours: int
) -> Array:
    """2 - 2 cos to the nearest entries of a pool, mean over rows and neighbours.

    Nearest are they to the teacher; the student is drawn to them. In the authors' code
    the two are exchanged, which leaves no gradient.

    Args:
        student: [B, D] float.
        teacher: [B, D] float.
        pool: [S, D] float.
        filled: [S] bool, whether an entry is there.
        neighbours: k, at most S; fewer where fewer are there.

    Returns:
        [B] float32 (float64 for float64); 0 where no entry is there.
    """
    z, t, a = (
        unit_length(at_least_float32(x))
        for x in (
            student,
            jax.lax.stop_gradient(teacher),
            jax.lax.stop_gradient(pool),
        )
    )
    cosine = jnp.einsum("bd,sd->bs", t, a, precision="highest")
    cosine, nearest = jax.lax.top_k(
        jnp.where(filled[None], cosine, -jnp.inf), neighbours
    )
    there = jnp.isfinite(cosine)
    to_them = jnp.einsum("bd,bkd->bk", z, a[nearest], precision="highest")
    total = jnp.where(there, 2 - 2 * to_them, 0.0).sum(axis=1)
    return total / jnp.maximum(there.sum(axis=1), 1)
