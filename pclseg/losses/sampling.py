"""Draws of pixels from the pixels of every class: evenly, or evenly over strata.

You et al. 2023, arXiv 2302.01735 (ARCO): a mean over drawn pixels varies less if every
part of the image sends its share of them ("stratified group"), and again if pixels come
in pairs that mirror each other about the centre of their part ("antithetic"). A `Draw`
is one of the functions below with its settings; all are of fixed shape, and of each the
expected mean over the drawn pixels is the mean over all of the class, but for those of
`folded`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Members(NamedTuple):
    """The pixels of every class.

    Attributes:
        pixels: [N] int32, class after class; those of none are last.
        start: [K] int32, where a class begins in `pixels`.
        count: [K] int32, how many it has.
    """

    pixels: Array
    start: Array
    count: Array


class Drawn(NamedTuple):
    """Pixels drawn from those of every class, with replacement.

    Attributes:
        pixels: [K, n] int32; some pixel where the class has none.
        count: [K] int32, how many pixels the class has.
    """

    pixels: Array
    count: Array


# classes [N] integer in 0..K (K is none), key, K, n -> pixels
Draw = Callable[[Array, Array, int, int], Drawn]


def members(classes: Array, num_classes: int) -> Members:
    """Sorts pixels by their class.

    Args:
        classes: [N] integer in 0..K; K is none.
        num_classes: K.
    """
    pixels = jnp.argsort(classes, stable=True).astype(jnp.int32)
    count = jnp.bincount(classes, length=num_classes + 1)[:-1].astype(jnp.int32)
    return Members(pixels, jnp.cumsum(count) - count, count)


def number_below(uniform: Array, count: Array) -> Array:
    """floor(u n) as int32, in 0..n-1; 0 where n is 0."""
    place = jnp.floor(uniform * count).astype(jnp.int32)
    return jnp.clip(place, 0, jnp.maximum(count - 1, 0))  # u n may round up to n


def draw_members(members: Members, classes: Array, uniform: Array) -> Array:
    """A pixel of each of some classes, floor(u n) of its n.

    Args:
        members: of all pixels.
        classes: [...] integer in 0..K-1.
        uniform: [...] float u in [0, 1).

    Returns:
        [...] int32; some pixel where the class has none.
    """
    place = number_below(uniform, members.count[classes])
    return members.pixels[members.start[classes] + place]


def naive(classes: Array, key: Array, num_classes: int, number: int) -> Drawn:
    """Evenly from all pixels of a class, each draw by itself.

    Args:
        classes: [N] integer in 0..K; K is none.
        key: random.
        num_classes: K.
        number: n, of a class.
    """
    all_members = members(classes, num_classes)
    kinds = jnp.broadcast_to(jnp.arange(num_classes)[:, None], (num_classes, number))
    uniform = jax.random.uniform(key, kinds.shape)
    return Drawn(draw_members(all_members, kinds, uniform), all_members.count)


def stratified(
    classes: Array,
    key: Array,
    num_classes: int,
    number: int,
    *,
    strata: Array | np.ndarray,
    num_strata: int,
    antithetic: bool,
) -> Drawn:
    """Every stratum in proportion to the pixels of the class that it has.

    The pixels of a class are ranked by stratum, and in a stratum by their number. Of n
    draws the j-th is for the stratum with the rank floor((j + U) N / n) of N, one U in
    [0, 1) for all j, so a stratum with c pixels expects n c / N draws, and gets that
    many up to one. Have n at least as many as strata: fewer are not spread by chance
    but evenly over their list, and may all fall into one column of a grid.

    With `antithetic` there are n / 2 such draws, each followed by its mirror image, the
    pixel of the same stratum whose rank counted from the end is the same. In a full
    rectangle it lies opposite, about the centre. Of an odd n the last is drawn evenly
    from all.

    Args:
        classes: [N] integer in 0..K; K is none.
        key: random.
        num_classes: K.
        number: n, of a class.
        strata: [N] integer in 0..M-1, see `grid_strata`.
        num_strata: M.
        antithetic: whether draws are pairs.
    """
    total = num_classes * num_strata
    cell = jnp.where(classes < num_classes, classes * num_strata + strata, total)
    of_cell = members(cell, total)
    count = of_cell.count.reshape(num_classes, num_strata).sum(axis=1)
    start = jnp.cumsum(count) - count
    slots = number // 2 if antithetic else number
    share_key, place_key, last_key = jax.random.split(key, 3)
    offset = jax.random.uniform(share_key, (num_classes, 1))
    slot = (jnp.arange(slots)[None] + offset) / max(slots, 1)
    rank = number_below(slot, count[:, None])
    # A stratum of the class, also where the class has no pixel at all.
    first_cell = jnp.arange(num_classes)[:, None] * num_strata
    drawn_cell = jnp.where(
        count[:, None] > 0, cell[of_cell.pixels[start[:, None] + rank]], first_cell
    )
    inside = of_cell.count[drawn_cell]
    place = number_below(jax.random.uniform(place_key, rank.shape), inside)
    places = [place, jnp.maximum(inside - 1 - place, 0)] if antithetic else [place]
    at = of_cell.start[drawn_cell][..., None] + jnp.stack(places, axis=-1)
    pixels = of_cell.pixels[at].reshape(num_classes, -1)
    if antithetic and number % 2:
        extra = naive(classes, last_key, num_classes, 1).pixels
        pixels = jnp.concatenate([pixels, extra], axis=1)
    return Drawn(pixels, count)


def folded(
    classes: Array, key: Array, num_classes: int, number: int, *, antithetic: bool
) -> Drawn:
    """The draws of the authors' code, to compare with; they do not favour all alike.

    The N pixels of a class, in their order, fill a square of side e = round(sqrt(N))
    row by row, cut into 4 x 4 cells of e // 4, the last ones with what is over. Of n
    draws every cell gets (n e^2 // N) // 16, or pairs of half of that; what then points
    beyond N, or is missing to n, is drawn evenly from all. So pixels of large cells,
    and those beyond e^2, are drawn less often. Below 13 pixels all is drawn evenly.

    Args:
        classes: [N] integer in 0..K; K is none.
        key: random.
        num_classes: K.
        number: n, of a class.
        antithetic: whether draws are pairs, first and last of a cell, second and last
            but one, ...
    """
    side = 4
    all_members = members(classes, num_classes)
    count = all_members.count[:, None]
    edge = jnp.round(jnp.sqrt(count.astype(jnp.float32))).astype(jnp.int32)
    over = edge**2 - count
    fitting = number + number * over // jnp.maximum(count, 1)  # n e^2 // N, in int32
    per_cell = fitting // side**2
    drawn_per_cell = per_cell // 2 if antithetic else per_cell
    row_key, column_key, even_key = jax.random.split(key, 3)
    shape = (num_classes, number)
    slot = jnp.broadcast_to(jnp.arange(number)[None], shape)
    pair = slot // 2 if antithetic else slot
    cell = pair // jnp.maximum(drawn_per_cell, 1)
    step = edge // side
    first_row, first_column = cell // side * step, cell % side * step
    is_last = cell // side == side - 1, cell % side == side - 1
    height, width = (
        jnp.where(last, edge - (side - 1) * step, step) for last in is_last
    )
    # Both of a pair draw alike.
    uniforms = (
        jnp.take_along_axis(jax.random.uniform(k, shape), pair, axis=1)
        for k in (row_key, column_key)
    )
    row, column = (
        number_below(u, size) for u, size in zip(uniforms, (height, width), strict=True)
    )
    if antithetic:
        mirrored = slot % 2 == 1
        row = jnp.where(mirrored, height - 1 - row, row)
        column = jnp.where(mirrored, width - 1 - column, column)
    rank = (first_row + row) * edge + first_column + column
    even = number_below(jax.random.uniform(even_key, shape), count)
    in_a_cell = (cell < side**2) & (drawn_per_cell > 0) & (step > 0)
    rank = jnp.where(in_a_cell & (rank < count), rank, even)
    pixels = all_members.pixels[all_members.start[:, None] + rank]
    return Drawn(pixels, all_members.count)


def grid_strata(shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """The cells of a grid that is laid on a slice, as strata of its pixels.

    Args:
        shape: (H, W) of the slice.
        cells: how many of them along the two axes; as equal as can be.

    Returns:
        [H W] int32 in 0..M-1, M the product of `cells`; pixels row by row.
    """
    row, column = (
        np.arange(size) * number // size
        for size, number in zip(shape, cells, strict=True)
    )
    return (row[:, None] * cells[1] + column[None, :]).astype(np.int32).reshape(-1)


class Variances(NamedTuple):
    """Variance of a mean over n drawn values, of every way to draw them."""

    naive: float
    stratified: float
    antithetic: float


def estimator_variances(
    values: np.ndarray, strata: np.ndarray, number: int
) -> Variances:
    """How much the mean over n drawn pixels varies, by its closed form.

    sigma^2 / n; sum_m w_m sigma_m^2 / n; and of pairs sum_m 2 w_m / n times the
    variance of (h + h') / 2, in stratum m with the share w_m of all pixels, if it is
    drawn exactly n w_m times. You et al. 2023, arXiv 2302.01735, section 3.3, whose
    Theorem 3.2 and Lemma 3.1 lack weights.

    Args:
        values: [N] float, what is averaged, of pixels in order of their number.
        strata: [N] integer.
        number: n.
    """
    values = np.asarray(values, np.float64)
    stratified = antithetic = 0.0
    for stratum in np.unique(strata):
        inside = values[strata == stratum]
        share = len(inside) / len(values)
        stratified += share * inside.var() / number
        antithetic += 2 * share * ((inside + inside[::-1]) / 2).var() / number
    return Variances(float(values.var() / number), stratified, antithetic)
