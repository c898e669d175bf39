"""GCL, the global loss of Chaitanya et al. 2020, arXiv 2006.10511.

Slices are drawn one of every partition of some volumes, and only slices of other
partitions are negatives: unlike in `gcl`, which is how PCL's authors use it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.augment import Augment, sample_keys
from pclseg.losses.contrastive import pair_nce
from pclseg.losses.positives import About, Positives, same
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts.collapse import spread, warn_of_collapse
from pclseg.parts.settings import require
from pclseg.parts.views import (
    check_views,
    embed_slices,
    embed_views,
    init_network,
)
from pclseg.state import TrainState, Tree


def of_one_slice(anchors: About, keys: About) -> Array:
    """G^D-: the images of one slice, which are the slice and its augmentations."""
    return same(anchors["row"], keys["row"])


def across_volumes(anchors: About, keys: About) -> Array:
    """G^D: those of G^D-, and the like image of the partition in every other volume.

    Original goes with original, and a-th augmentation with a-th augmentation.
    """
    like = same(anchors["partition"], keys["partition"])
    like &= same(anchors["view"], keys["view"])
    return of_one_slice(anchors, keys) | like


class Variant(NamedTuple):
    """Who is a positive, and how many volumes it takes for one."""

    positives: Positives
    min_volumes: int


VARIANTS = {"GD-": Variant(of_one_slice, 1), "GD": Variant(across_volumes, 2)}


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    variant: str,
    augmentations: int,
    temperature: float,
    views: str,
) -> Method:
    """GCL: slices of other partitions are negatives, no other slice is.

    loss = (1 / images) * sum over images a, sum over positives b of a, of `pair_nce`,
    where an image is a slice of the batch or one of its augmentations. Ordered pairs
    count once each, also where a batch has three volumes or more.

    Args:
        model: images [B, H, W, C] -> embedding [B, D], with batch statistics.
        augment: per-sample random views.
        axis_name: of the pmapped step, or None.
        variant: "GD-", positives are the images of one slice, or "GD", also the like
            images of the same partition in other volumes. The paper's G^R is `simclr`.
        augmentations: of every slice, >= 1, beside the slice itself: in the paper 2 for
            "GD-" and 1 for "GD".
        temperature: of the softmax, > 0.
        views: "separate", one forward pass for the slices and for each augmentation,
            with its own batch statistics, or "concat", one pass over all.

    Raises:
        UserError: a setting out of its range, or "concat" of a model that normalises by
            groups of the batch.
    """
    expected = "'GD-' or 'GD'. The paper's G^R is method.name='simclr'"
    require("variant", repr(variant), expected, variant in VARIANTS)
    require("augmentations", augmentations, "> 0", augmentations > 0)
    require("temperature", temperature, "> 0", temperature > 0)
    check_views(model, views)
    positives, min_volumes = VARIANTS[variant]
    num_images = 1 + augmentations

    def about_images(rows: Array, batch: Batch) -> dict[str, Array]:
        return {
            "row": jnp.tile(rows, num_images),
            "partition": jnp.tile(batch["partition"], num_images),
            "view": jnp.repeat(jnp.arange(num_images), len(rows)),
        }

    def count_positives(batch: Batch) -> Array:
        about = about_images(jnp.arange(len(batch["partition"])), batch)
        return positives(about, about).sum(axis=-1) - 1  # without the anchor itself

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        slices = batch["image"]
        rows = parallel.row_ids(len(slices), axis_name)
        augmented = [
            augment(sample_keys(image_key, rows), slices, None)[0]
            for image_key in jax.random.split(key, augmentations)
        ]
        anchors, model_state = embed_views(
            model, params, state.model_state, [slices, *augmented], views=views, key=key
        )
        about = about_images(rows, batch)
        keys, about_keys = parallel.all_gather((anchors, about), axis_name)
        anchor_ids = parallel.row_ids(len(anchors), axis_name)
        is_self = anchor_ids[:, None] == jnp.arange(len(keys))[None, :]
        positive = positives(about, about_keys) & ~is_self
        negative = ~same(about["partition"], about_keys["partition"])
        pairs = pair_nce(anchors, keys, negative, temperature=temperature)
        value = jnp.where(positive, pairs, 0.0).sum(axis=-1).mean()
        # with all similarities equal, a pair costs log(1 + negatives)
        collapsed = positive.sum(axis=-1) * jnp.log1p(negative.sum(axis=-1))
        gap = jax.lax.stop_gradient(value) - collapsed.mean()
        metrics = {
            "positives": positive.sum(axis=-1).mean(dtype=jnp.float32),
            "embedding_std": spread(keys, None),
            "collapse_gap": jnp.abs(parallel.all_mean(gap, axis_name)),
        }
        return value, Aux(model_state, state.method_state, metrics)

    return Method(
        batch_keys=frozenset({"image", "partition"}),
        init=init_network(model, num_axes=2, expected="unet2d_contrast"),
        loss=loss,
        embed=embed_slices(model),
        positives=count_positives,
        min_volumes=min_volumes,
        diagnose=warn_of_collapse,
    )
