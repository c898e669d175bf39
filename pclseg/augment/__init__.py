"""Random augmentation on the device, one recipe a file; `ls` is the list."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pclseg.errors import UserError
from pclseg.named import make_named

# f(keys [B], images [B, H, W, C], labels [B, H, W] or None) -> (images, labels); labels
# come out as they went in, an array or None, which Callable cannot say
Augment = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
Range = Sequence[float]  # (low, high)


def make(name: str, **kwargs: object) -> Augment:
    """Makes the augmentation of file `augment/<name>.py`.

    Raises:
        UserError: no such augmentation; the nearest name is given.
    """
    return make_named(
        "augmentation", __name__, __path__, name, hidden={"interpolation"}, **kwargs
    )


def require(name: str, value: object, expected: str, holds: bool) -> None:
    """Raises UserError unless `holds`.

    Args:
        name: of the setting.
        value: that it has.
        expected: in words.
        holds: whether the value is so.
    """
    if not holds:
        raise UserError(f"augment.{name} is {value}; expected {expected}.")


def moves_pixels(augment: Augment) -> bool:
    """Whether labels come out as other arrays than went in."""
    others = []

    def look(key: jax.Array, image: jax.Array, label: jax.Array) -> jax.Array:
        image, after = augment(key[None], image, label)
        others.append(after is not label)
        return image

    image = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
    label = jax.ShapeDtypeStruct((1, 16, 16), jnp.int32)
    jax.eval_shape(look, jax.eval_shape(jax.random.key, 0), image, label)
    return any(others)


def between(bounds: Range, number: jax.Array) -> jax.Array:
    """Takes a number in [0, 1) to [low, high)."""
    return bounds[0] + (bounds[1] - bounds[0]) * number


def sample_keys(key: jax.Array, row_ids: jax.Array) -> jax.Array:
    """A random key for every sample, independent of which device or batch holds it.

    Args:
        key: one key, typed or as raw words.
        row_ids: [B] integer, the sample's row over all devices.

    Returns:
        [B] keys.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_ids)
