"""A bank of what was seen last: first in, first out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Bank(NamedTuple):
    """Rows of some arrays; part of a method's state, and so of every checkpoint.

    Attributes:
        rows: a dict of arrays [N, ...].
        filled: int32 scalar, how many rows are there, from row 0.
        next: int32 scalar, which row is written next.
    """

    rows: dict[str, Array]
    filled: Array
    next: Array


def empty(size: int, **like: Array) -> Bank:
    """A bank of `size` rows, none of them there.

    Args:
        size: N.
        like: arrays of the shape and dtype of a row.
    """
    rows = {
        name: jnp.zeros((size, *row.shape), row.dtype) for name, row in like.items()
    }
    return Bank(rows, jnp.int32(0), jnp.int32(0))


def pushed(bank: Bank, *, valid: Array | None = None, **rows: Array) -> Bank:
    """The bank after some rows, in place of its oldest; no gradient goes through them.

    Args:
        bank: of N rows.
        valid: [B] bool, rows that enter; None for all.
        rows: [B, ...] each, of all devices in their order; of more than N the last N
            stay.
    """
    size = next(iter(bank.rows.values())).shape[0]
    count = next(iter(rows.values())).shape[0]
    valid = jnp.ones(count, bool) if valid is None else valid
    number = jnp.cumsum(valid)  # from 1
    total = number[-1]
    enters = valid & (number > total - size)
    place = jnp.where(enters, (bank.next + number - 1) % size, size)
    new = {
        name: stored.at[place].set(
            jax.lax.stop_gradient(rows[name]).astype(stored.dtype), mode="drop"
        )
        for name, stored in bank.rows.items()
    }
    filled = jnp.minimum(bank.filled + total, size).astype(jnp.int32)
    return Bank(new, filled, ((bank.next + total) % size).astype(jnp.int32))


def there(bank: Bank) -> Array:
    """[N] bool: which rows are there."""
    size = next(iter(bank.rows.values())).shape[0]
    return jnp.arange(size) < bank.filled
