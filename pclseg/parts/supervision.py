"""The loss of labelled slices, over the whole of a global batch."""

import jax

from pclseg import parallel
from pclseg.losses.segmentation import cross_entropy, dice_loss, dice_sums
from pclseg.parts.settings import require

Array = jax.Array


def labelled_loss(
    logits: Array, label: Array, *, dice_weight: float, axis_name: str | None
) -> tuple[Array, dict[str, Array]]:
    """(1 - dice_weight) * cross entropy + dice_weight * Dice loss.

    Both count the background. Half and half it is L_sup of You et al. 2023, arXiv
    2206.02307. The sums of Dice are over the global batch.

    Args:
        logits: [B, H, W, K] float, of this device.
        label: [B, H, W] integer class ids in 0..K-1.
        dice_weight: 0..1; of 0 the Dice loss is not computed.
        axis_name: of the pmapped step, or None.

    Returns:
        Scalar, whose mean over devices is the loss; its parts, as metrics.
    """
    entropy = cross_entropy(logits, label).mean()
    if dice_weight == 0:
        return entropy, {"cross_entropy": entropy}
    devices = parallel.num_devices(axis_name)
    sums = devices * parallel.all_mean(dice_sums(logits, label), axis_name)
    dice = dice_loss(sums).mean()
    value = (1 - dice_weight) * entropy + dice_weight * dice
    return value, {"cross_entropy": entropy, "dice_loss": dice}


def check_dice_weight(dice_weight: float) -> None:
    """Raises UserError unless it is in 0..1."""
    require("dice_weight", dice_weight, "0..1", 0 <= dice_weight <= 1)
