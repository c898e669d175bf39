"""Thirteen local regions of a feature map, and which of them are near to each other.

Chaitanya et al. 2020, arXiv 2006.10511: corners, edges and centre, three by three, and
four more between them. Numbered row after row.
"""

import numpy as np

SIZE = 3  # rows and columns of a region
_LAST = 4  # places are counted 0.._LAST on both axes, those of the nine being even
_GRID = np.array(
    [(r, c) for r in range(_LAST + 1) for c in range(_LAST + 1) if r % 2 == c % 2]
)
COUNT = len(_GRID)


def starts(height: int, width: int) -> np.ndarray:
    """First row and column of every region of a map.

    Outer regions touch the border; those between are spaced evenly, to half a pixel
    rounded up.

    Args:
        height: of the map, at least SIZE.
        width: of the map, at least SIZE.

    Returns:
        [COUNT, 2] int.
    """
    room = np.array([height, width]) - SIZE
    return (_GRID * room + _LAST // 2) // _LAST


def nearest(count: int) -> np.ndarray:
    """Which regions are the `count` nearest others of which region.

    Distances are those of the grid, whatever the shape of the map; of equally far ones
    the lower number is nearer.

    Args:
        count: 1..COUNT - 1.

    Returns:
        [COUNT, COUNT] bool, `count` times True in every row.
    """
    squared = np.square(_GRID[:, None] - _GRID[None]).sum(axis=-1)
    order = np.argsort(squared, axis=1, kind="stable")  # itself first, at distance 0
    near = np.zeros((COUNT, COUNT), bool)
    np.put_along_axis(near, order[:, 1 : count + 1], True, axis=1)
    return near
