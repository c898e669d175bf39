"""Which keys are positives of which anchors: [N, M] bool masks.

Positions are (index + 1) / count in (0, 1]. Whether two of them differ by less than a
threshold must not depend on the precision of the device, so both comparisons here are
made with integers.
"""

import math
import struct
from collections.abc import Callable, Mapping
from fractions import Fraction

import jax
import jax.numpy as jnp

from pclseg.errors import UserError

Array = jax.Array
# Attributes of slices or their embeddings by name, [N, ...] each.
About = Mapping[str, Array]
# (attributes of the anchors, attributes of the keys) -> [N, M] bool
Positives = Callable[[About, About], Array]

MAX_COUNT = 46340  # slices of a volume; its square is the largest below 2^31
_WORDS = 3
_FRACTION_BITS = 95  # of a position: words of weight 2^-31, 2^-63, 2^-95


def same(rows: Array, keys: Array) -> Array:
    """True where row and key carry the same value, e.g. slice number or partition.

    Args:
        rows: [N] integer.
        keys: [M] integer.

    Returns:
        [N, M] bool.
    """
    return rows[:, None] == keys[None, :]


def near_exact(
    index: Array,
    count: Array,
    key_index: Array,
    key_count: Array,
    *,
    threshold: float | Fraction,
) -> Array:
    """True where positions differ by less than `threshold`, in rational arithmetic.

    |(i + 1) / D - (k + 1) / D'| < n / d, multiplied out to integers of 64 bits:
    d * |(i + 1) * D' - (k + 1) * D| < n * D * D'. Nothing is rounded.

    Args:
        index: [N] int32, slices of the anchors, from 0.
        count: [N] int32, slices of their volumes, at most MAX_COUNT.
        key_index: [M] int32, like `index`, of the keys.
        key_count: [M] int32, like `count`, of the keys.
        threshold: > 0; a float means the decimal that it is written as, 0.1 is 1/10.

    Returns:
        [N, M] bool.

    Raises:
        UserError: the threshold is not positive or has ten or more decimals.
    """
    limit = exact_limit(threshold)
    index, count = index[:, None], count[:, None]  # [N, 1]
    key_index, key_count = key_index[None, :], key_count[None, :]  # [1, M]
    difference = jnp.abs((index + 1) * key_count - (key_index + 1) * count)
    distance = _wide_product(limit.denominator, difference.astype(jnp.uint32))
    bound = _wide_product(limit.numerator, (count * key_count).astype(jnp.uint32))
    return _less(distance, bound)


def exact_limit(threshold: float | Fraction) -> Fraction:
    """The threshold of `near_exact` as a fraction of 32-bit numbers.

    Raises:
        UserError: as `near_exact`.
    """
    _check_threshold(threshold)
    # No two positions differ by 1 or more; so the numerator stays in 32 bits too.
    limit = Fraction(1) if threshold > 1 else Fraction(str(threshold))
    if limit.denominator >= 2**32:
        raise UserError(
            f"position_threshold is {threshold}; exact comparison takes at most 9"
            " decimals: round it or use threshold_mode 'float64'."
        )
    return limit


def near_float64(bits: Array, key_bits: Array, *, threshold: float) -> Array:
    """True where |p - q| < threshold holds in IEEE float64, decided without float64.

    The code of Zeng et al. compares in float64: 0.3 - 0.2 < 0.1 holds, 0.2 - 0.1 < 0.1
    does not; float32 decides otherwise. Here the exact |p - q| is compared with the
    smallest distance that float64 does not round below the threshold.

    Args:
        bits: [N, 3] uint32, float64 positions of the anchors in (0, 1] as fixed point
            words of weight 2^-31, 2^-63 and 2^-95.
        key_bits: [M, 3] uint32, like `bits`, of the keys.
        threshold: > 0.

    Returns:
        [N, M] bool.

    Raises:
        UserError: the threshold is not positive.
    """
    _check_threshold(threshold)
    limit = _first_far(float(threshold))
    limit_words = [jnp.uint32(limit >> shift & 0xFFFFFFFF) for shift in (64, 32, 0)]
    p = [bits[:, None, word] for word in range(_WORDS)]  # of [N, 1]
    q = [key_bits[None, :, word] for word in range(_WORDS)]  # of [1, M]
    p_below = _less(p, q)
    forward, backward = _subtract(p, q), _subtract(q, p)
    distance = [
        jnp.where(p_below, b, f) for f, b in zip(forward, backward, strict=True)
    ]
    return _less(distance, limit_words)


def _check_threshold(threshold: float | Fraction) -> None:
    if not threshold > 0:
        raise UserError(
            f"position_threshold is {threshold}; expected > 0, for example 0.35."
        )


def _first_far(threshold: float) -> int:
    """The smallest distance that float64 does not round below threshold, times 2^95.

    Rounding is monotone, so the midpoint of the threshold and the double before it
    decides; the midpoint itself goes to whichever of the two has an even mantissa.
    """
    if threshold > 1:  # farther than any two positions
        return 2 ** (32 * _WORDS) - 1
    before = math.nextafter(threshold, 0.0)
    midpoint = (Fraction(threshold) + Fraction(before)) / 2 * 2**_FRACTION_BITS
    before_is_even = struct.pack("<d", before)[0] % 2 == 0
    return math.floor(midpoint) + 1 if before_is_even else math.ceil(midpoint)


def _less(a: list[Array], b: list[Array]) -> Array:
    """Whether a < b, for numbers given as uint32 words, the highest first."""
    less = a[-1] < b[-1]
    for a_word, b_word in zip(a[-2::-1], b[-2::-1], strict=True):
        less = (a_word < b_word) | ((a_word == b_word) & less)
    return less


def _subtract(a: list[Array], b: list[Array]) -> list[Array]:
    """The words of a - b, the highest first; only meaningful where a >= b."""
    borrow = jnp.uint32(0)
    words = []
    for a_word, b_word in zip(a[::-1], b[::-1], strict=True):
        words.append(a_word - b_word - borrow)
        borrow = ((a_word < b_word) | ((a_word == b_word) & (borrow > 0))).astype(
            jnp.uint32
        )
    return words[::-1]


def _wide_product(factor: int, array: Array) -> list[Array]:
    """The 64-bit product of factor < 2^32 and a uint32 array, as [high, low] words."""
    factor_high, factor_low = jnp.uint32(factor >> 16), jnp.uint32(factor & 0xFFFF)
    high, low = array >> 16, array & 0xFFFF
    bottom = factor_low * low
    middle = factor_high * low + (bottom >> 16)  # cannot overflow: (2^16 - 1) * 2^16
    other_middle = factor_low * high + (middle & 0xFFFF)
    top = factor_high * high + (middle >> 16) + (other_middle >> 16)
    return [top, (other_middle << 16) | (bottom & 0xFFFF)]
