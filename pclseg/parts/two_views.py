"""Contrastive learning of slice embeddings from two views, positives being given."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.augment import Augment, sample_keys
from pclseg.losses.contrastive import collapse_value
from pclseg.losses.positives import Positives
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts.collapse import spread, warn_of_collapse
from pclseg.parts.passes import check_draws_by_row
from pclseg.parts.settings import require
from pclseg.parts.similarities import check_way, contrast_all
from pclseg.parts.views import (
    check_views,
    embed_groups_in_turn,
    embed_slices,
    embed_views,
    init_network,
)
from pclseg.state import TrainState, Tree


def two_views(
    *,
    model: Any,
    augment: Augment,
    positives: Positives,
    attributes: frozenset[str],
    temperature: float,
    base_temperature: float,
    views: str,
    groups_in_turn: bool,
    similarities: str,
    axis_name: str | None,
) -> Method:
    """The method shared by SimCLR, GCL and PCL, which differ in `positives` only.

    Every slice of the batch is augmented twice; each of the 2B embeddings is an anchor,
    and those of all devices are its keys. Zeng et al. 2021, arXiv 2106.09157; SupCon
    form.

    Args:
        model: images [B, H, W, C] -> embedding [B, D], with batch statistics.
        augment: per-sample random views.
        positives: which keys belong to which anchors, from the attributes of their
            slices; the attribute "row" is the number of the slice in the global batch.
        attributes: batch keys that `positives` reads.
        temperature: of the softmax, > 0.
        base_temperature: the loss is multiplied by temperature / base_temperature.
        views: "separate", one forward pass a view with its own batch statistics (the
            authors' way), or "concat", one pass over both.
        groups_in_turn: whether to embed the `bn_groups` of the model one after another,
            see `embed_groups_in_turn`; the loss is the same.
        similarities: how they are computed, see `contrast_all`; the loss is the same.
        axis_name: of the pmapped step, or None.

    Raises:
        UserError: a temperature that is not positive, unknown `views` or
            `similarities`, or "concat" of a model that normalises by groups of the
            batch.
    """
    require("temperature", temperature, "> 0", temperature > 0)
    require("base_temperature", base_temperature, "> 0", base_temperature > 0)
    check_views(model, views)
    check_way(similarities)
    if groups_in_turn:
        check_draws_by_row(model, "groups_in_turn", True, "groups_in_turn=False")

    def about_views(rows: Array, batch: Batch) -> dict[str, Array]:
        about = {"row": rows, **{name: batch[name] for name in attributes}}
        return {name: jnp.concatenate([value, value]) for name, value in about.items()}

    def count_positives(batch: Batch) -> Array:
        about = about_views(jnp.arange(len(batch["index"])), batch)

        def count(anchor: Mapping[str, Array]) -> Array:
            one = {name: value[None] for name, value in anchor.items()}
            return positives(one, about).sum() - 1  # without the anchor itself

        return jax.lax.map(count, about, batch_size=256)

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        view_keys = jax.random.split(key)

        def embed(model: Any, images: Array, rows: Array) -> tuple[Array, Tree]:
            both = [
                augment(sample_keys(view_key, rows), images, None)[0]
                for view_key in view_keys
            ]
            return embed_views(
                model, params, state.model_state, both, views=views, key=key
            )

        images = batch["image"]
        rows = parallel.row_ids(len(images), axis_name)
        if groups_in_turn:
            anchors, model_state = embed_groups_in_turn(
                embed, model, images, rows, num_views=2, axis_name=axis_name
            )
        else:
            anchors, model_state = embed(model, images, rows)
        losses, count = contrast_all(
            anchors,
            about_views(rows, batch),
            positives=positives,
            similarities=similarities,
            temperature=temperature,
            base_temperature=base_temperature,
            axis_name=axis_name,
        )
        value = losses.mean()
        collapsed = collapse_value(
            len(anchors) * parallel.num_devices(axis_name),
            temperature=temperature,
            base_temperature=base_temperature,
        )
        metrics = {
            "positives": count.mean(dtype=jnp.float32),
            "embedding_std": spread(anchors, axis_name),
            "collapse_gap": jnp.abs(
                parallel.all_mean(jax.lax.stop_gradient(value), axis_name) - collapsed
            ),
        }
        return value, Aux(model_state, state.method_state, metrics)

    return Method(
        batch_keys=frozenset({"image"}) | attributes,
        init=init_network(model, num_axes=2, expected="unet2d_contrast"),
        loss=loss,
        embed=embed_slices(model),
        positives=count_positives,
        diagnose=warn_of_collapse,
    )
