"""Pixels with an embedding, of all devices, in one row."""

import jax
import jax.numpy as jnp

from pclseg import parallel

Array = jax.Array


def embedded_pixels(
    features: Array, logits: Array, label: Array, *, stride: int, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """The pixels that have features, of all devices, in one row.

    Args:
        features: [B, H / stride, W / stride, D] float.
        logits: [B, H, W, K] float.
        label: [B, H, W] integer class ids in 0..K; K is none.
        stride: pixels from one with features to the next.
        axis_name: of the pmapped step, or None.

    Returns:
        Features [N, D], labels [N], and [N] float32, the probability that the logits
        give to the label, without gradient; 0 of none.
    """
    label = label[:, ::stride, ::stride]
    probs = jax.nn.softmax(jax.lax.stop_gradient(logits[:, ::stride, ::stride]))
    index = label[..., None].astype(jnp.int32)
    prob = jnp.take_along_axis(probs, index, axis=-1, mode="fill", fill_value=0)
    rows = in_one_row(features), label.reshape(-1), prob.reshape(-1)
    return parallel.all_gather(rows, axis_name)


def in_one_row(features: Array) -> Array:
    """[B, H, W, D] -> [B H W, D]."""
    return features.reshape(-1, features.shape[-1])


def shape_of_all(features: Array, axis_name: str | None) -> tuple[int, int, int]:
    """(R, h, w) of [B, h, w, D] features, of the slices of all devices."""
    rows, height, width, _ = features.shape
    return rows * parallel.num_devices(axis_name), height, width
