"""Supervised segmentation: pixel-wise cross entropy on labelled slices."""

import functools
from typing import Any

from pclseg import parallel
from pclseg.augment import Augment, sample_keys
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts import segmenter
from pclseg.parts.passes import train_pass
from pclseg.parts.supervision import check_dice_weight, labelled_loss
from pclseg.state import TrainState, Tree


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    dice_weight: float = 0.0,
) -> Method:
    """Unweighted cross entropy, mean over all pixels of the batch, background included.

    The fine-tuning of Zeng et al. 2021, arXiv 2106.09157, and, from fresh weights, its
    baseline.

    Args:
        model: images [B, H, W, C] -> logits [B, H, W, K], with batch statistics.
        augment: moves images and labels alike.
        axis_name: of the pmapped step, or None.
        dice_weight: share of the Dice loss, which takes the place of cross entropy; 0
            in that paper, 0.5 for ACTION and its kin.

    Raises:
        UserError: `dice_weight` out of its range.
    """
    check_dice_weight(dice_weight)

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
        value, metrics = labelled_loss(
            logits, labels, dice_weight=dice_weight, axis_name=axis_name
        )
        return value, Aux(
            model_state, state.method_state, metrics if dice_weight else {}
        )

    return Method(
        batch_keys=frozenset({"image", "label"}),
        init=init,
        loss=loss,
        predict=functools.partial(segmenter.predict, model),
    )
