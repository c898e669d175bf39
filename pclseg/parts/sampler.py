"""The settings of a draw of pixels: `sampler` and `sampler_cells`."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from pclseg.losses import sampling
from pclseg.losses.sampling import Draw
from pclseg.parts.settings import require

SAMPLERS = ("naive", "stratified", "antithetic", "folded", "folded_antithetic")


def check_sampler(sampler: str, sampler_cells: Sequence[int], number: int) -> None:
    """Raises UserError unless there is such a draw of so many, on such a grid."""
    known = sampler in SAMPLERS
    require("sampler", repr(sampler), f"one of: {', '.join(SAMPLERS)}", known)
    holds = len(sampler_cells) == 2 and min(sampler_cells) >= 1
    expected = "(rows, columns) of 1 or more cells"
    require("sampler_cells", tuple(sampler_cells), expected, holds)
    slots = {"stratified": number, "antithetic": number // 2}.get(sampler)
    if slots == 0:
        expected = "one without pairs, as a class has one draw"
        require("sampler", repr(sampler), expected, False)
    if slots is not None:
        fits = math.prod(sampler_cells) <= slots
        expected = f"a grid of at most {slots} cells, as many as draws of a class"
        if sampler == "antithetic":
            expected += " in pairs"
        require("sampler_cells", tuple(sampler_cells), expected, fits)


def draw_of(
    sampler: str, sampler_cells: Sequence[int], streams: Sequence[tuple[int, int, int]]
) -> Draw:
    """The draw from pixels that stand slice after slice, row by row.

    Args:
        sampler: of `SAMPLERS`; see `sampling.naive`, `stratified` and `folded`.
        sampler_cells: of the grid that "stratified" and "antithetic" lay on every
            slice; a stratum is a cell of all slices together.
        streams: (R, H, W) of one or more arrays of slices, in turn.
    """
    if sampler == "naive":
        return sampling.naive
    antithetic = sampler.endswith("antithetic")
    if sampler.startswith("folded"):
        return functools.partial(sampling.folded, antithetic=antithetic)
    rows, columns = sampler_cells
    strata = [
        np.tile(sampling.grid_strata((height, width), (rows, columns)), slices)
        for slices, height, width in streams
    ]
    return functools.partial(
        sampling.stratified,
        strata=np.concatenate(strata),
        num_strata=rows * columns,
        antithetic=antithetic,
    )
