"""The local loss of Chaitanya et al. 2020, arXiv 2006.10511: regions of decoder maps.

The second stage of their pre-training: the encoder stays as `gcl_proper` left it, the
first blocks of the decoder learn.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pclseg import parallel, regions
from pclseg.augment import Augment, moves_pixels, sample_keys
from pclseg.errors import UserError
from pclseg.losses.contrastive import pair_nce, unit_length
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts.collapse import warn_of_collapse
from pclseg.parts.settings import require
from pclseg.parts.views import (
    check_views,
    embed_views,
    init_network,
)
from pclseg.state import TrainState, Tree


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    near_regions: int,
    temperature: float,
    views: str,
) -> Method:
    """A region of one version of a slice is to find itself in the other version.

    Mean of `pair_nce` over both versions and all regions of all slices; negatives are
    the `near_regions` nearest other regions, of both versions of the same slice.

    Args:
        model: images [B, H, W, C] -> [B, R, D], one embedding a region of `regions`,
            with batch statistics. Its encoder is held by `optimizer.frozen`.
        augment: per-sample, and one that moves nothing.
        axis_name: of the pmapped step, or None.
        near_regions: 1..12; 5 in the paper.
        temperature: of the softmax, > 0.
        views: "separate" or "concat", see `embed_views`.

    Raises:
        UserError: a setting out of its range, an `augment` that moves pixels, or
            "concat" of a model that normalises by groups of the batch.
    """
    most = regions.COUNT - 1
    holds = 1 <= near_regions <= most
    require("near_regions", near_regions, f"1 to {most}", holds)
    require("temperature", temperature, "> 0", temperature > 0)
    check_views(model, views)
    if moves_pixels(augment):
        raise UserError(
            "augment.name is one that moves pixels; method 'gcl_local' compares"
            " like places of two versions and expects one that does not: use"
            " 'intensity'."
        )
    negatives = jnp.asarray(np.tile(regions.nearest(near_regions), (2, 2)))
    other = np.roll(np.eye(2 * regions.COUNT, dtype=bool), regions.COUNT, axis=1)

    def slice_loss(z: Array) -> Array:
        """[2 R, D] of both versions of a slice -> scalar."""
        pairs = pair_nce(z, z, negatives, temperature=temperature)
        return jnp.where(other, pairs, 0.0).sum(axis=-1).mean()

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        rows = parallel.row_ids(len(batch["image"]), axis_name)
        versions = [
            augment(sample_keys(version_key, rows), batch["image"], None)[0]
            for version_key in jax.random.split(key)
        ]
        z, model_state = embed_views(
            model, params, state.model_state, versions, views=views, key=key
        )
        z = jnp.concatenate(jnp.split(z, 2), axis=1)  # [B, 2 R, D]
        value = jax.vmap(slice_loss)(z).mean()
        gap = jax.lax.stop_gradient(value) - np.log1p(2 * near_regions)
        metrics = {"collapse_gap": jnp.abs(parallel.all_mean(gap, axis_name))}
        return value, Aux(model_state, state.method_state, metrics)

    def embed(state: TrainState, images: Array) -> Array:
        """Of all regions together: similarity is the mean over regions."""
        variables = {"params": state.params, **state.model_state}
        z = unit_length(model.apply(variables, images, train=False))
        return unit_length(z.reshape(len(z), -1))

    return Method(
        batch_keys=frozenset({"image"}),
        init=init_network(model, num_axes=3, expected="unet2d_local"),
        loss=loss,
        embed=embed,
        diagnose=warn_of_collapse,
    )
