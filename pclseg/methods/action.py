"""ACTION, stage iii: pseudo-labels, and contrast of hard pixels by class.

You et al. 2023, arXiv 2206.02307.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pclseg.augment import Augment
from pclseg.methods.base import Method
from pclseg.parts.anatomical import anatomical_term
from pclseg.parts.pseudo_labels import pseudo_labelled


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    strong: Mapping[str, Any],
    mix_mode: str,
    pseudo_weight: float,
    pseudo_pixels: str,
    contrast_weight: float,
    contrast_temperature: Sequence[float],
    temperature_period: int,
    num_anchors: int,
    num_negatives: int,
    sampler: str,
    sampler_cells: Sequence[int],
    sure_threshold: float,
    hard_threshold: float,
    teacher_momentum: float,
    teacher_mode: str,
) -> Method:
    """L_sup + pseudo_weight * L_unsup + contrast_weight * L_anco.

    The arguments are those of `pseudo_labelled` and `anatomical_term`; the model is
    "unet2d_dense".
    """
    contrast = anatomical_term(
        model=model,
        axis_name=axis_name,
        contrast_weight=contrast_weight,
        contrast_temperature=contrast_temperature,
        temperature_period=temperature_period,
        num_anchors=num_anchors,
        num_negatives=num_negatives,
        sampler=sampler,
        sampler_cells=sampler_cells,
        sure_threshold=sure_threshold,
        hard_threshold=hard_threshold,
    )
    return pseudo_labelled(
        model=model,
        augment=augment,
        axis_name=axis_name,
        terms={"anatomical_contrast": contrast},
        supervised_weight=1.0,
        strong=strong,
        mix_mode=mix_mode,
        pseudo_weight=pseudo_weight,
        pseudo_pixels=pseudo_pixels,
        hard_threshold=hard_threshold,
        teacher_momentum=teacher_momentum,
        teacher_mode=teacher_mode,
    )
