"""MONA, fine-tuning: pseudo-labels, contrast of rare classes, warps, neighbours.

You et al. 2022, arXiv 2209.13476; with another `sampler` it is ARCO, You et al. 2023,
arXiv 2302.01735. Pre-training is `action_local`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pclseg.augment import Augment
from pclseg.methods.base import Method
from pclseg.parts.collapse import warn_of_equal
from pclseg.parts.equivariance import equivariance_term
from pclseg.parts.neighbours import neighbour_term
from pclseg.parts.pseudo_labels import pseudo_labelled
from pclseg.parts.tail import tail_term


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    supervised_weight: float,
    strong: Mapping[str, Any],
    mix_mode: str,
    pseudo_weight: float,
    pseudo_pixels: str,
    hard_threshold: float,
    teacher_momentum: float,
    teacher_mode: str,
    contrast_weight: float,
    contrast_temperature: float,
    num_queries: int,
    num_negatives: int,
    sampler: str,
    sampler_cells: Sequence[int],
    query_threshold: float,
    key_threshold: float,
    key_rule: str,
    entropy_of: str,
    entropy_percent: float,
    entropy_steps: int,
    bank_size: int,
    keys_per_step: int,
    warp_weight: float,
    warp: Mapping[str, Any],
    sure_threshold: float,
    neighbour_weight: float,
    neighbours: int,
    pool_size: int,
    pool_cells: int,
) -> Method:
    """L_sup + L_unsup + L_contrast + L_eqv + L_nn, each with its weight.

    The arguments are those of `pseudo_labelled`, `tail_term`, `equivariance_term` and
    `neighbour_term`; the model is "unet2d_pyramid" ("unet2d_dense" has another head,
    and no predictor).
    """
    contrast = tail_term(
        model=model,
        axis_name=axis_name,
        contrast_weight=contrast_weight,
        contrast_temperature=contrast_temperature,
        num_queries=num_queries,
        num_negatives=num_negatives,
        sampler=sampler,
        sampler_cells=sampler_cells,
        query_threshold=query_threshold,
        key_threshold=key_threshold,
        key_rule=key_rule,
        entropy_of=entropy_of,
        entropy_percent=entropy_percent,
        entropy_steps=entropy_steps,
        bank_size=bank_size,
        keys_per_step=keys_per_step,
    )
    equivariance = equivariance_term(
        axis_name=axis_name,
        strong=strong,
        warp_weight=warp_weight,
        warp=warp,
        sure_threshold=sure_threshold,
    )
    diversity = neighbour_term(
        axis_name=axis_name,
        neighbour_weight=neighbour_weight,
        neighbours=neighbours,
        pool_size=pool_size,
        pool_cells=pool_cells,
    )
    method = pseudo_labelled(
        model=model,
        augment=augment,
        axis_name=axis_name,
        terms={
            "tail": contrast,
            "equivariance": equivariance,
            "neighbours": diversity,
        },
        supervised_weight=supervised_weight,
        strong=strong,
        mix_mode=mix_mode,
        pseudo_weight=pseudo_weight,
        pseudo_pixels=pseudo_pixels,
        hard_threshold=hard_threshold,
        teacher_momentum=teacher_momentum,
        teacher_mode=teacher_mode,
    )

    def diagnose(metrics: Mapping[str, float]) -> str | None:
        lost, alike = method.diagnose(metrics), None
        if lost and warp_weight:
            lost += (
                " Here a lower method.warp_weight, or optimizer.warmup_steps, may help"
                " as well."
            )
        if contrast_weight:
            advice = "a higher method.contrast_weight"
            if neighbour_weight:
                advice = f"a lower method.neighbour_weight or {advice}"
            alike = warn_of_equal("pixels", metrics, advice)
        return " And: ".join(said for said in (lost, alike) if said) or None

    return dataclasses.replace(method, diagnose=diagnose)
