"""The pixels of all devices that are embedded, in one row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.parts.streams import Stream

Array = jax.Array


class Pixels(NamedTuple):
    """Pixels that have features, of all devices, in one row.

    Attributes:
        features: [N, D] float, the student's, of any length.
        label: [N] integer class ids in 0..K; K is none.
        probs: [N, K] float, the student's, without gradient.
        taught: (probs, features), the teacher's; empty where it was not asked.
    """

    features: Array
    label: Array
    probs: Array
    taught: tuple[Array, ...] = ()


def pixels_of(stream: Stream, *, stride: int, axis_name: str | None) -> Pixels:
    """Those of a stream.

    Args:
        stream: of this device.
        stride: pixels from one that has features to the next.
        axis_name: of the pmapped step, or None.
    """

    def in_one_row(logits: Array, features: Array) -> tuple[Array, Array]:
        """Probabilities and features, of where there are features."""
        logits = jax.lax.stop_gradient(logits[:, ::stride, ::stride])
        both = jax.nn.softmax(logits), features
        probs, features = (x.reshape(-1, x.shape[-1]) for x in both)
        return probs, features

    probs, features = in_one_row(stream.logits, stream.features)
    pixels = Pixels(
        features=features,
        label=stream.label[:, ::stride, ::stride].reshape(-1),
        probs=probs,
        taught=in_one_row(*stream.taught) if stream.taught else (),
    )
    return parallel.all_gather(pixels, axis_name)


def joined(one: Pixels, other: Pixels) -> Pixels:
    """First these, then those."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, other)


def prob_of_label(pixels: Pixels) -> Array:
    """[N] float, the student's probability of the label; 0 of none."""
    index = pixels.label[:, None].astype(jnp.int32)
    return jnp.take_along_axis(
        pixels.probs, index, axis=1, mode="fill", fill_value=0
    ).squeeze(1)


def shape_of_all(features: Array, axis_name: str | None) -> tuple[int, int, int]:
    """(R, h, w) of [B, h, w, D] features, of the slices of all devices."""
    rows, height, width, _ = features.shape
    return rows * parallel.num_devices(axis_name), height, width
