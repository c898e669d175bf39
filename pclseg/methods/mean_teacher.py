"""Mean teacher: the student agrees with an EMA teacher on slices without labels.

Tarvainen & Valpola 2017, arXiv 1703.01780, for segmentation: TCSM without transform.
"""

from typing import Any

from pclseg.augment import Augment
from pclseg.methods.base import Array, Method
from pclseg.parts.consistency import consistency


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    max_weight: float,
    ramp_steps: int,
    max_decay: float,
    noise_std: float,
    dice_weight: float = 0.0,
) -> Method:
    """Teacher and student see a slice alike, but for noise before the teacher.

    The arguments are those of `consistency`.
    """

    def as_it_is(keys: Array, values: Array) -> Array:
        del keys
        return values

    return consistency(
        model=model,
        augment=augment,
        transform=as_it_is,
        axis_name=axis_name,
        max_weight=max_weight,
        ramp_steps=ramp_steps,
        max_decay=max_decay,
        noise_std=noise_std,
        dice_weight=dice_weight,
    )
