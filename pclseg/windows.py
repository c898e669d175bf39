"""Square windows of a map, overlapping, row after row."""

import jax
import jax.numpy as jnp

Array = jax.Array


def starts(length: int, *, size: int, stride: int) -> list[int]:
    """Where windows of a side begin; the last one ends with it if the stride fits."""
    return list(range(0, length - size + 1, stride))


def cut(features: Array, *, size: int, stride: int) -> Array:
    """The windows as vectors.

    Args:
        features: [B, H, W, C].
        size: of a window, at most H and W.
        stride: from window to window.

    Returns:
        [B, R, size * size * C] of R windows.
    """
    rows, height, width, channels = features.shape
    parts = [
        features[:, top : top + size, left : left + size]
        for top in starts(height, size=size, stride=stride)
        for left in starts(width, size=size, stride=stride)
    ]
    return jnp.stack(parts, axis=1).reshape(rows, len(parts), size * size * channels)
