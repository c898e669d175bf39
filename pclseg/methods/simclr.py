"""SimCLR: the two views of a slice are positives.

Chen et al. 2020, arXiv 2002.05709.
"""

from collections.abc import Mapping
from typing import Any

from pclseg.augment import Augment
from pclseg.losses.positives import same
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
    """SimCLR over slices; the arguments are those of `two_views`.

    The loss is 5/7 of google-research/simclr's at temperature 0.1 and base temperature
    0.07: they sum the means of the two views, here all anchors are averaged.
    """

    def positives(anchors: Mapping[str, Array], keys: Mapping[str, Array]) -> Array:
        return same(anchors["row"], keys["row"])

    return two_views(
        model=model,
        augment=augment,
        positives=positives,
        attributes=frozenset(),
        temperature=temperature,
        base_temperature=base_temperature,
        views=views,
        groups_in_turn=groups_in_turn,
        similarities=similarities,
        axis_name=axis_name,
    )
