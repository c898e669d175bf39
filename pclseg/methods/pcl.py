"""Positional contrastive learning. Zeng et al. 2021, arXiv 2106.09157."""

from typing import Any

from pclseg.augment import Augment
from pclseg.losses.positives import About, exact_limit, near_exact, near_float64
from pclseg.methods.base import Array, Method
from pclseg.parts.settings import require
from pclseg.parts.two_views import two_views


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    temperature: float,
    base_temperature: float,
    position_threshold: float,
    threshold_mode: str,
    views: str,
    groups_in_turn: bool,
    similarities: str,
) -> Method:
    """PCL: slices at similar relative heights, in any volume, are positives.

    Args:
        model: as in `two_views`, like the arguments not named here.
        augment: per-sample random views.
        axis_name: of the pmapped step, or None.
        temperature: of the softmax.
        base_temperature: the authors' code multiplies the loss by temperature / 0.07.
        position_threshold: slices whose positions (index + 1) / count differ by
            strictly less are positives; > 0.
        threshold_mode: "float64", the comparison as the authors' float64 arithmetic
            rounds it, or "exact", in rational arithmetic.
        views: "separate" or "concat".
        groups_in_turn: True or False.
        similarities: "auto", "dense", "blocks" or "ring".

    Raises:
        UserError: a threshold that is not positive, or too long for "exact"; an unknown
            mode.
    """
    expected = "> 0: at 0 and below no slice has a positive"
    holds = position_threshold > 0
    require("position_threshold", position_threshold, expected, holds)

    def float64_positives(anchors: About, keys: About) -> Array:
        bits = anchors["position_bits"], keys["position_bits"]
        return near_float64(*bits, threshold=position_threshold)

    def exact_positives(anchors: About, keys: About) -> Array:
        return near_exact(
            anchors["index"],
            anchors["count"],
            keys["index"],
            keys["count"],
            threshold=position_threshold,
        )

    modes = {
        "float64": (float64_positives, frozenset({"position_bits"})),
        "exact": (exact_positives, frozenset({"index", "count"})),
    }
    expected = "'float64' or 'exact'"
    require("threshold_mode", repr(threshold_mode), expected, threshold_mode in modes)
    if threshold_mode == "exact":
        exact_limit(position_threshold)  # refused here, not in the first step
    positives, attributes = modes[threshold_mode]
    return two_views(
        model=model,
        augment=augment,
        positives=positives,
        attributes=attributes,
        temperature=temperature,
        base_temperature=base_temperature,
        views=views,
        groups_in_turn=groups_in_turn,
        similarities=similarities,
        axis_name=axis_name,
    )
