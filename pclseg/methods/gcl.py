"""GCL as PCL's authors use it: slices of equal height partition are positives.

A simplification of Chaitanya et al. 2020, arXiv 2006.10511: the denominator holds all
other slices, those of the same partition included. Theirs is `gcl_proper`.
"""

from typing import Any

from pclseg.augment import Augment
from pclseg.losses.positives import About, same
from pclseg.methods.base import Array, Method
from pclseg.parts.two_views import two_views


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    temperature: float,
    base_temperature: float,
    views: str,
    groups_in_turn: bool,
    similarities: str,
) -> Method:
    """GCL with four partitions a volume; the arguments are those of `two_views`."""

    def positives(anchors: About, keys: About) -> Array:
        return same(anchors["partition"], keys["partition"])

    return two_views(
        model=model,
        augment=augment,
        positives=positives,
        attributes=frozenset({"partition"}),
        temperature=temperature,
        base_temperature=base_temperature,
        views=views,
        groups_in_turn=groups_in_turn,
        similarities=similarities,
        axis_name=axis_name,
    )
