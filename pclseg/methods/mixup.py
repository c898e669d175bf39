"""Mixup: cross entropy on blends of two labelled slices and of their labels.

Zhang et al. 2018, arXiv 1710.09412; for segmentation with one-hot label maps as in
Chaitanya et al. 2020, arXiv 2006.10511.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.augment import Augment, sample_keys
from pclseg.losses.segmentation import one_hot, soft_cross_entropy
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts import segmenter
from pclseg.parts.passes import train_pass
from pclseg.parts.settings import require
from pclseg.state import TrainState, Tree


def make(
    *, model: Any, augment: Augment, axis_name: str | None, alpha: float
) -> Method:
    """Every slice of the step is a blend: lam * slice i + (1 - lam) * slice j.

    i and j are both drawn from the global batch with replacement, as in Chaitanya's
    code, so a slice may come more than once or not at all; Zhang et al. keep every
    slice as i and permute the batch for j. Blends are made of augmented slices.

    Args:
        model: images [B, H, W, C] -> logits [B, H, W, K], with batch statistics.
        augment: moves images and labels alike, before they are mixed.
        axis_name: of the pmapped step, or None; every device gathers the augmented
            slices and labels of all, 8 bytes a pixel.
        alpha: lam ~ Beta(alpha, alpha), one for each blend; > 0, and the smaller, the
            nearer is every blend to one of its slices.

    Raises:
        UserError: `alpha` is not positive.
    """
    require("alpha", alpha, "> 0", alpha > 0)

    def init(key: Array, batch: Batch) -> tuple[Tree, Tree, Tree]:
        return *segmenter.start(model, key, batch), {}

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        rows = parallel.row_ids(len(batch["image"]), axis_name)
        augment_key, mix_key = jax.random.split(key)
        augmented = augment(
            sample_keys(augment_key, rows), batch["image"], batch["label"]
        )
        images, labels = parallel.all_gather(augmented, axis_name)
        pairs, share = draw_pairs(
            sample_keys(mix_key, rows), num_rows=len(images), alpha=alpha
        )
        logits, model_state = train_pass(
            model, params, state.model_state, blend(images, pairs, share), key=key
        )
        probs = blend(one_hot(labels, logits.shape[-1]), pairs, share)
        value = soft_cross_entropy(logits, probs).mean()
        return value, Aux(model_state, state.method_state, {})

    return Method(
        batch_keys=frozenset({"image", "label"}),
        init=init,
        loss=loss,
        predict=functools.partial(segmenter.predict, model),
    )


def draw_pairs(keys: Array, *, num_rows: int, alpha: float) -> tuple[Array, Array]:
    """What every blend is made of.

    Args:
        keys: [B] keys.
        num_rows: N, of the global batch.
        alpha: of Beta(alpha, alpha).

    Returns:
        [B, 2] int32 rows of the global batch, uniform and independent; [B] float32
        share of the first, in 0..1.
    """

    def one(key: Array) -> tuple[Array, Array]:
        pair_key, share_key = jax.random.split(key)
        pair = jax.random.randint(pair_key, (2,), 0, num_rows)
        return pair, jax.random.beta(share_key, alpha, alpha)

    return jax.vmap(one)(keys)


def blend(values: Array, pairs: Array, share: Array) -> Array:
    """Rows i and j as share * values[i] + (1 - share) * values[j].

    Args:
        values: [N, H, W, C] float, of the global batch.
        pairs: [B, 2] integer, i and j.
        share: [B] float, of i.

    Returns:
        [B, H, W, C].
    """
    share = jnp.expand_dims(share, (1, 2, 3))
    return share * values[pairs[:, 0]] + (1 - share) * values[pairs[:, 1]]
