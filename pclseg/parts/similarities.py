"""InfoNCE among the embeddings of all devices, by one of several ways to one result."""

import jax.numpy as jnp

from pclseg import parallel
from pclseg.losses.blockwise import blockwise_info_nce
from pclseg.losses.contrastive import info_nce
from pclseg.losses.positives import About, Positives, same
from pclseg.methods.base import Array
from pclseg.parts.settings import require

WAYS = ("auto", "dense", "blocks", "ring")
_MAX_DENSE = 4096  # embeddings up to which "auto" is "dense"
_BLOCK = 512  # keys of a block


def check_way(similarities: str) -> None:
    """Raises UserError unless it is one of WAYS."""
    expected = f"one of: {', '.join(map(repr, WAYS))}"
    require("similarities", repr(similarities), expected, similarities in WAYS)


def contrast_all(
    anchors: Array,
    about: About,
    *,
    positives: Positives,
    similarities: str,
    temperature: float,
    base_temperature: float,
    axis_name: str | None,
) -> tuple[Array, Array]:
    """`info_nce` of the embeddings of this device against those of all others.

    Args:
        anchors: [N, D] float, unit length.
        about: their attributes, [N, ...] each; "row" is the number of the slice in the
            global batch.
        positives: which keys belong to which anchors.
        similarities: "dense", all at once, [N, M] for M embeddings on all devices;
            "blocks", with some keys at a time, and again for the gradient; "ring",
            likewise, and the embeddings pass from device to device where otherwise
            every device holds all; "auto", dense for few embeddings, blocks for many.
        temperature: of the softmax, > 0.
        base_temperature: > 0.
        axis_name: of the pmapped step, or None.

    Returns:
        loss: [N] float32 (float64 for float64).
        count: [N] int32, positives of every anchor.
    """
    about = {**about, "id": parallel.row_ids(len(anchors), axis_name)}
    keys, about_keys = anchors, about
    if similarities != "ring":
        keys, about_keys = parallel.all_gather((anchors, about), axis_name)
    few = len(keys) <= _MAX_DENSE
    scale = dict(temperature=temperature, base_temperature=base_temperature)
    if similarities == "dense" or (similarities == "auto" and few):
        is_self = same(about["id"], about_keys["id"])
        positive = positives(about, about_keys)
        loss = info_nce(anchors, keys, positive, is_self, **scale)
        return loss, (positive & ~is_self).sum(axis=-1, dtype=jnp.int32)
    return blockwise_info_nce(
        anchors,
        keys,
        about,
        about_keys,
        positives=positives,
        block=min(_BLOCK, len(keys)),
        ring=axis_name if similarities == "ring" else None,
        **scale,
    )
