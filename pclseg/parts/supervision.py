"""The supervised loss of ACTION and its kin, over the whole of a global batch."""

import jax

from pclseg import parallel
from pclseg.losses.segmentation import dice_loss, dice_sums, pixel_cross_entropy

Array = jax.Array


def cross_entropy_and_dice(
    logits: Array, label: Array, axis_name: str | None
) -> tuple[Array, dict[str, Array]]:
    """Half of the cross entropy and half of the Dice loss, background included.

    You et al. 2023, arXiv 2206.02307. The sums of Dice are over the global batch.

    Args:
        logits: [B, H, W, K] float, of this device.
        label: [B, H, W] integer class ids in 0..K-1.
        axis_name: of the pmapped step, or None.

    Returns:
        Scalar, whose mean over devices is the loss; its two parts, as metrics.
    """
    cross_entropy = pixel_cross_entropy(logits, label).mean()
    devices = parallel.num_devices(axis_name)
    sums = devices * parallel.all_mean(dice_sums(logits, label), axis_name)
    dice = dice_loss(sums).mean()
    metrics = {"cross_entropy": cross_entropy, "dice_loss": dice}
    return 0.5 * (cross_entropy + dice), metrics
