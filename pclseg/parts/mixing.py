"""Slices made of two: what is kept of one is marked by a mask, the rest is the other's.

One mask moves image, label and confidence alike. Masks are those of You et al. 2023,
arXiv 2206.02307, and of the papers named below.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pclseg import parallel

Array = jax.Array


def of_next_row(tree: Any, axis_name: str | None) -> Any:
    """For every row what the next one of the global batch has; the first is the last's.

    Args:
        tree: arrays [B, ...] of this device.
        axis_name: of the pmapped step, or None.
    """
    rows = len(jax.tree.leaves(tree)[0])
    everywhere = parallel.all_gather(tree, axis_name)
    total = rows * parallel.num_devices(axis_name)
    following = (parallel.row_ids(rows, axis_name) + 1) % total
    return jax.tree.map(lambda x: x[following], everywhere)


def mixed(mask: Array, own: Array, other: Array) -> Array:
    """`own` where the mask is set, else `other`.

    Args:
        mask: [B, H, W] bool.
        own: [B, H, W] or [B, H, W, C].
        other: the same.
    """
    return jnp.where(mask[..., None] if own.ndim == 4 else mask, own, other)


def rectangles(keys: Array, shape: tuple[int, ...]) -> Array:
    """False on a rectangle of half the area, at a random place; CutMix and Cutout.

    Its width is uniform in W/2 + 1 to W - 1, its height HW / (2 width), rounded. Yun et
    al. 2019, arXiv 1905.04899, as the code of ACTION and MONA has it.

    Args:
        keys: [B] keys.
        shape: (H, W), at least 4 each.

    Returns:
        [B, H, W] bool.
    """
    height, width = shape

    def one(key: Array) -> Array:
        size_key, top_key, left_key = jax.random.split(key, 3)
        across = jax.random.randint(size_key, (), width // 2 + 1, width)
        down = (height * width + across) // (2 * across)  # to the nearest
        top = jax.random.randint(top_key, (), 0, height - down + 1)
        left = jax.random.randint(left_key, (), 0, width - across + 1)
        row, column = jnp.arange(height), jnp.arange(width)
        in_rows = (top <= row) & (row < top + down)
        in_columns = (left <= column) & (column < left + across)
        return ~(in_rows[:, None] & in_columns[None, :])

    return jax.vmap(one)(keys)


def half_of_classes(keys: Array, label: Array, num_classes: int) -> Array:
    """True on the pixels of half of the classes that a slice has, rounded down.

    ClassMix, Olsson et al. 2021, arXiv 2007.07936.

    Args:
        keys: [B] keys.
        label: [B, H, W] integer class ids; others than 0..K-1 are of no class.
        num_classes: K.

    Returns:
        [B, H, W] bool.
    """
    kinds = jnp.arange(num_classes)

    def one(key: Array, label: Array) -> Array:
        is_of = label[..., None] == kinds[None, None]  # [H, W, K]
        present = is_of.any(axis=(0, 1))
        # Present ones in a random order, those that are absent behind them.
        place = jax.random.uniform(key, (num_classes,)) + ~present
        rank = (place[:, None] > place[None, :]).sum(axis=1)
        chosen = present & (rank < present.sum() // 2)
        return (is_of & chosen[None, None]).any(axis=-1)

    return jax.vmap(one)(keys, label)
