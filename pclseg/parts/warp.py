"""Random warps of slices: a similarity, and a thin-plate spline that bends it a little.

As in the authors' code of MONA, You et al. 2022, arXiv 2209.13476. Places are (x, y),
both from -1 at the first pixel to 1 at the last.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pclseg.augment import between
from pclseg.augment.interpolation import sample_image
from pclseg.named import check_arguments
from pclseg.parts.settings import require

Array = jax.Array

CONTROL = 5  # points along an axis
_MEET = 1 / (CONTROL - 1)  # the jitter with which neighbours may change places
_HAIR = 1e-3  # pixels


class Warp(NamedTuple):
    """How far slices are moved; every number is uniform in its range.

    Attributes:
        degrees: (low, high) of the rotation.
        scale: (low, high) of the factor; above 1 the object shrinks.
        shift: along either axis, at most so much, in halves of the longer side.
        jitter: of every control point, likewise, but in halves of that axis.
        mirror_probability: that all slices of a step are mirrored, left to right.
    """

    degrees: Sequence[float]
    scale: Sequence[float]
    shift: float
    jitter: float
    mirror_probability: float


def make_warp(settings: Mapping[str, Any]) -> Warp:
    """The warp of settings `method.warp`.

    Raises:
        UserError: unknown or missing settings, or values out of their range.
    """
    check_arguments(Warp, "method.warp", settings)
    warp = Warp(**settings)
    for name, bounds, least, most in (
        ("degrees", warp.degrees, -180.0, 180.0),
        ("scale", warp.scale, 0.1, 10.0),
    ):
        ordered = len(bounds) == 2 and least <= bounds[0] <= bounds[1] <= most
        expected = f"(low, high) with {least:g} <= low <= high <= {most:g}"
        require(f"warp.{name}", tuple(bounds), expected, ordered)
    require("warp.shift", warp.shift, "0..2", 0 <= warp.shift <= 2)
    expected = f"0 or more, less than {_MEET:g}, where control points would meet"
    require("warp.jitter", warp.jitter, expected, 0 <= warp.jitter < _MEET)
    share = warp.mirror_probability
    require("warp.mirror_probability", share, "0..1", 0 <= share <= 1)
    return warp


def draw_warps(warp: Warp, key: Array, keys: Array, shape: tuple[int, int]) -> Array:
    """Where to read each slice.

    Args:
        warp: its ranges.
        key: of the step, for what all slices share.
        keys: [B] of the slices.
        shape: (H, W).

    Returns:
        [B, 2, H, W] float32, row and column in pixels.
    """
    mirrored = jax.random.uniform(key) < warp.mirror_probability
    # In units in which pixels are square, also where the slice is not.
    sides = jnp.asarray([shape[1], shape[0]], jnp.float32)
    sides = (sides / sides.max())[None]

    def one(key: Array) -> Array:
        number_key, jitter_key = jax.random.split(key)
        u = jax.random.uniform(number_key, (4,))
        points = jnp.asarray(control_points(), jnp.float32)
        jitter = jax.random.uniform(jitter_key, points.shape, minval=-1.0)
        moved = similar(
            (points + warp.jitter * jitter) * sides,
            jnp.deg2rad(between(warp.degrees, u[0])),
            between(warp.scale, u[1]),
            warp.shift * (2 * u[2:] - 1),
        )
        return places(moved / sides, shape)

    where = jax.vmap(one)(keys)
    return jnp.where(mirrored, where[..., ::-1], where)


def control_points() -> np.ndarray:
    """[25, 2] float64, a grid over the slice, row after row."""
    line = np.linspace(-1, 1, CONTROL)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)


def similar(points: Array, angle: Array, scale: Array, shift: Array) -> Array:
    """Scale * R(angle) (x, y) + shift, R(angle) = [[cos, -sin], [sin, cos]].

    Args:
        points: [P, 2].
        angle: scalar, radians.
        scale: scalar.
        shift: [2].
    """
    cos, sin = scale * jnp.cos(angle), scale * jnp.sin(angle)
    x, y = points.T
    return jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=1) + shift[None]


def places(moved: Array, shape: tuple[int, int]) -> Array:
    """What the spline that takes the control points to `moved` says of all pixels.

    Args:
        moved: [25, 2] float, where each control point is read.
        shape: (H, W).

    Returns:
        [2, H, W] float, row and column in pixels.
    """
    weights = jnp.asarray(_spline(shape), moved.dtype)
    x, y = jnp.einsum("pc,cx->xp", weights, moved, precision="highest")
    height, width = shape
    row, column = (y + 1) / 2 * (height - 1), (x + 1) / 2 * (width - 1)
    return jnp.stack([row, column]).reshape(2, height, width)


@functools.lru_cache(16)
def _spline(shape: tuple[int, int]) -> np.ndarray:
    """[H W, 25] float64: how much of every control point's place a pixel takes.

    Bookstein 1989: the values of sum_c w_c U(|p - t_c|) + a + b x + c y, U(r) = r^2 log
    r^2, sum w = sum w t = 0, that meets the points; linear in where they are taken to.
    """
    points = control_points()
    grid = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape[::-1]))
    pixels = np.stack(grid, axis=-1).reshape(-1, 2)
    affine = np.hstack([np.ones((len(points), 1)), points])
    system = np.block([[_bend(points, points), affine], [affine.T, np.zeros((3, 3))]])
    basis = np.hstack([_bend(pixels, points), np.ones((len(pixels), 1)), pixels])
    weights = basis @ np.linalg.inv(system)[:, : len(points)]
    weights.flags.writeable = False
    return weights


def _bend(from_: np.ndarray, to: np.ndarray) -> np.ndarray:
    squared = ((from_[:, None] - to[None]) ** 2).sum(axis=-1)
    return squared * np.log(np.where(squared > 0, squared, 1.0))


def warped(value: Array, where: Array) -> Array:
    """Reads slices between their pixels, linearly; 0 outside.

    Args:
        value: [B, H, W, C] float.
        where: [B, 2, H, W] float, of `draw_warps`.
    """
    last = jnp.asarray(value.shape[1:3])[None, :, None, None] - 1
    inside = jnp.clip(where, 0, last)
    # A border that rounding moved out by a hair is read, not 0.
    where = jnp.where(jnp.abs(where - inside) < _HAIR, inside, where)
    read = functools.partial(sample_image, order=1)
    of_channels = jax.vmap(read, in_axes=(-1, None), out_axes=-1)
    return jax.vmap(of_channels)(value, where)
