"""Supervised segmentation: pixel-wise cross entropy on labelled slices."""

import functools
from typing import Any

from pclseg import parallel
from pclseg.augment import Augment, sample_keys
from pclseg.losses.segmentation import cross_entropy
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts import segmenter
from pclseg.parts.passes import train_pass
from pclseg.state import TrainState, Tree


def make(*, model: Any, augment: Augment, axis_name: str | None) -> Method:
    """Unweighted cross entropy, mean over all pixels of the batch, background included.

    The fine-tuning of Zeng et al. 2021, arXiv 2106.09157, and, from fresh weights, its
    baseline.

    Args:
        model: images [B, H, W, C] -> logits [B, H, W, K], with batch statistics.
        augment: moves images and labels alike.
        axis_name: of the pmapped step, or None.
    """

    def init(key: Array, batch: Batch) -> tuple[Tree, Tree, Tree]:
        return *segmenter.start(model, key, batch), {}

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        rows = parallel.row_ids(len(batch["image"]), axis_name)
        images, labels = augment(sample_keys(key, rows), batch["image"], batch["label"])
        logits, model_state = train_pass(
            model, params, state.model_state, images, key=key
        )
        value = cross_entropy(logits, labels).mean()
        return value, Aux(model_state, state.method_state, {})

    return Method(
        batch_keys=frozenset({"image", "label"}),
        init=init,
        loss=loss,
        predict=functools.partial(segmenter.predict, model),
    )
