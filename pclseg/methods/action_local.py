"""ACTION, stage ii: distillation of slices and of windows, beside labelled slices.

You et al. 2023, arXiv 2206.02307. ACTION++, arXiv 2304.02689, begins with it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pclseg.augment import Augment
from pclseg.methods.base import Method
from pclseg.parts.distillation import distillation


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    global_weight: float,
    local_weight: float,
    strong: Mapping[str, Any],
    bank_size: int,
    student_temperature: Sequence[float],
    teacher_temperature: Sequence[float],
    temperature_period: int,
    reverse_kl: bool,
    teacher_momentum: float,
    teacher_mode: str,
) -> Method:
    """L_sup + global_weight * L_glob + local_weight * L_loc.

    A window is compared with the windows at its place in the slices of the bank. In the
    authors' code rows of windows are mixed up by a reshape; here each is its own.

    The arguments are those of `distillation`; the model is "unet2d_distill_local".
    """
    return distillation(
        model=model,
        augment=augment,
        axis_name=axis_name,
        supervised=True,
        global_weight=global_weight,
        local_weight=local_weight,
        strong=strong,
        bank_size=bank_size,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        temperature_period=temperature_period,
        reverse_kl=reverse_kl,
        teacher_momentum=teacher_momentum,
        teacher_mode=teacher_mode,
    )
