"""ACTION, stage i: distillation of how slices compare as wholes; trains the encoder.

You et al. 2023, arXiv 2206.02307.
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
    strong: Mapping[str, Any],
    bank_size: int,
    student_temperature: Sequence[float],
    teacher_temperature: Sequence[float],
    temperature_period: int,
    reverse_kl: bool,
    teacher_momentum: float,
    teacher_mode: str,
) -> Method:
    """Every slice is compared with those of the bank, by teacher and student.

    The arguments are those of `distillation`; the model is "unet2d_distill".
    """
    return distillation(
        model=model,
        augment=augment,
        axis_name=axis_name,
        supervised=False,
        global_weight=1.0,
        local_weight=0.0,
        strong=strong,
        bank_size=bank_size,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        temperature_period=temperature_period,
        reverse_kl=reverse_kl,
        teacher_momentum=teacher_momentum,
        teacher_mode=teacher_mode,
    )
