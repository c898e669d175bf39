"""The term of a loss that draws slices to similar ones seen before.

You et al. 2022, arXiv 2209.13476 (MONA), and 2023, arXiv 2302.01735 (ARCO).
"""

import jax.numpy as jnp
import numpy as np

from pclseg import parallel
from pclseg.losses.neighbours import neighbour_distance
from pclseg.methods.base import Array
from pclseg.parts import bank
from pclseg.parts.pseudo_labels import Student, Term, TermResult
from pclseg.parts.settings import require
from pclseg.parts.streams import Stream
from pclseg.state import Tree


def neighbour_term(
    *,
    axis_name: str | None,
    neighbour_weight: float,
    neighbours: int,
    pool_size: int,
    pool_cells: int,
) -> Term:
    """neighbour_weight * L_nn, `neighbour_distance` of unlabelled slices.

    As maps of embeddings, averaged over a coarse grid, they are drawn to the most
    similar ones of a pool that holds what the teacher said of earlier slices.

    Args:
        axis_name: of the pmapped step, or None.
        neighbour_weight: lambda_3, >= 0.
        neighbours: k.
        pool_size: entries of the pool.
        pool_cells: of the coarse grid, along an axis.

    Raises:
        UserError: a setting out of its range.
    """
    require("neighbour_weight", neighbour_weight, ">= 0", neighbour_weight >= 0)
    require("neighbours", neighbours, "1 or more", neighbours >= 1)
    require("pool_cells", pool_cells, "1 or more", pool_cells >= 1)
    holds = pool_size >= neighbours
    require("pool_size", pool_size, f"method.neighbours, {neighbours}, or more", holds)

    def init(features: Array) -> Tree:
        coarse = averaged(features[:1], pool_cells)[0]
        return {"pool": bank.empty(pool_size, key=jnp.zeros_like(coarse))}

    def loss(
        labelled: Stream,
        rest: Stream,
        student: Student,
        model_state: Tree,
        own: Tree,
        step: Array,
        key: Array,
    ) -> TermResult:
        del labelled, student, step, key
        pool = own["pool"]
        _, features = rest.taught
        taught = averaged(features, pool_cells)
        value = neighbour_distance(
            averaged(rest.features, pool_cells),
            taught,
            pool.rows["key"],
            bank.there(pool),
            neighbours=neighbours,
        ).mean()
        pool = bank.pushed(pool, key=parallel.all_gather(taught, axis_name))
        metrics = {"neighbour_distance": value}
        return TermResult(value, {"pool": pool}, model_state, metrics)

    return Term(neighbour_weight, init, loss, teacher_sees=frozenset({"rest"}))


def averaged(features: Array, cells: int) -> Array:
    """Means over a grid of cells, as a vector; cells that do not divide share a pixel.

    Args:
        features: [B, h, w, D] float.
        cells: along an axis, less where there are fewer pixels.

    Returns:
        [B, cells * cells * D] float32, of any length.
    """
    rows, columns = (
        jnp.asarray(_means(size, min(cells, size)), jnp.float32)
        for size in features.shape[1:3]
    )
    features = features.astype(jnp.float32)
    coarse = jnp.einsum(
        "ih,bhwd,jw->bijd", rows, features, columns, precision="highest"
    )
    return coarse.reshape(len(features), -1)


def _means(size: int, cells: int) -> np.ndarray:
    """[cells, size] weights of the pixels floor(i size / cells) up to ceil(...)."""
    cell, pixel = np.arange(cells)[:, None], np.arange(size)[None]
    first, end = cell * size // cells, -(-(cell + 1) * size // cells)
    inside = (first <= pixel) & (pixel < end)
    return inside / inside.sum(axis=1, keepdims=True)
