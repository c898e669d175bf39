"""The settings of a draw of pixels: `sampler` and `sampler_cells`."""

import functools
from collections.abc import Sequence

import numpy as np

from pclseg.losses import sampling
from pclseg.losses.sampling import Draw
from pclseg.parts.settings import require

SAMPLERS = ("naive", "stratified", "antithetic", "folded", "folded_antithetic")


def check_sampler(sampler: str, sampler_cells: Sequence[int]) -> None:
    """Raises UserError unless there is such a draw, on such a grid."""
    known = sampler in SAMPLERS
    require("sampler", repr(sampler), f"one of: {', '.join(SAMPLERS)}", known)
    holds = len(sampler_cells) == 2 and min(sampler_cells) >= 1
    expected = "(rows, columns) of 1 or more cells"
    require("sampler_cells", tuple(sampler_cells), expected, holds)


def draw_of(
    sampler: str, sampler_cells: Sequence[int], streams: Sequence[tuple[int, int, int]]
) -> Draw:
    """The draw from pixels that stand slice after slice, row by row.

    Args:
        sampler: of `SAMPLERS`; see `sampling.naive`, `stratified` and `folded`.
        sampler_cells: of the grid that "stratified" and "antithetic" lay on every
            slice.
        streams: (R, H, W) of one or more arrays of slices, in turn.
    """
    if sampler == "naive":
        return sampling.naive
    antithetic = sampler.endswith("antithetic")
    if sampler.startswith("folded"):
        return functools.partial(sampling.folded, antithetic=antithetic)
    rows, columns = sampler_cells
    strata, total = [], 0
    for slices, height, width in streams:
        strata.append(
            total + sampling.grid_strata(slices, (height, width), (rows, columns))
        )
        total += slices * rows * columns
    return functools.partial(
        sampling.stratified,
        strata=np.concatenate(strata),
        num_strata=total,
        antithetic=antithetic,
    )
