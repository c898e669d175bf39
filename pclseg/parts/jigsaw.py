"""Slices cut into the nine shuffled patches of a jigsaw puzzle.

Noroozi and Favaro 2016, arXiv 1603.09246.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

GRID = 3
PATCHES = GRID**2


def cell_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a cell; what is left at the end belongs to none."""
    return height // GRID, width // GRID


def cut(keys: Array, images: Array, *, patch_size: int) -> Array:
    """Cuts one patch out of every cell of a 3 x 3 grid and shuffles the nine.

    The place of a patch in its cell is uniform, so that edges of neighbours do not fit
    together; where the patch fills the cell there is only one.

    Args:
        keys: [B] random keys.
        images: [B, H, W, C].
        patch_size: S, at most the size of a cell.

    Returns:
        [B, 9, S, S, C], every row in its own random order.
    """
    cell = jnp.array(cell_size(*images.shape[1:3]))[None, :]  # [1, 2]
    places = jnp.stack(jnp.divmod(jnp.arange(PATCHES), GRID), axis=1)  # [9, 2]

    def cut_one(key: Array, image: Array) -> Array:
        place_key, order_key = jax.random.split(key)
        room = cell - patch_size + 1
        jitter = jax.random.randint(place_key, places.shape, 0, room)
        start = jax.random.permutation(order_key, places * cell + jitter)
        size = (patch_size, patch_size, image.shape[-1])
        return jax.vmap(
            lambda at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), size)
        )(start)

    return jax.vmap(cut_one)(keys, images)
