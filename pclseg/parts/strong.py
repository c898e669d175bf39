"""The strong view of slices: what a student sees where its teacher sees them as is."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pclseg import augment, parallel
from pclseg.augment import Augment
from pclseg.errors import UserError
from pclseg.parts import mixing
from pclseg.parts.settings import require

Array = jax.Array

MIXES = ("cutmix", "classmix", "cutout", "none")


def strong_view(settings: Mapping[str, Any]) -> Augment:
    """The augmentation of settings `method.strong`.

    Raises:
        UserError: what `augment.make` refuses, or one that moves pixels, whose labels
            would not be where they were.
    """
    named = isinstance(settings.get("name"), str)
    require("strong", dict(settings), "a section with a name, a text", named)
    try:
        view = augment.make(**settings)
    except UserError as error:
        raise UserError(f"method.strong: {error}") from error
    if augment.moves_pixels(view):
        raise UserError(
            f"method.strong.name is {settings['name']!r}, which moves pixels; expected"
            " an augmentation that does not, such as 'photometric'."
        )
    return view


def mix(
    how: str,
    keys: Array,
    image: Array,
    label: Array,
    confidence: Array,
    *,
    num_classes: int,
    axis_name: str | None,
) -> tuple[Array, Array, Array]:
    """Slices with a part of the next slice of the global batch, all three alike.

    Args:
        how: one of `MIXES`: "cutmix", a rectangle of half the area is the next one's;
            "classmix", all but half of the classes of a slice are; "cutout", the
            rectangle is nobody's: 0 in the image, label K, confidence 0; "none".
        keys: [B] keys.
        image: [B, H, W, C] float.
        label: [B, H, W] integer class ids in 0..K-1.
        confidence: [B, H, W] float.
        num_classes: K.
        axis_name: of the pmapped step, or None.

    Returns:
        The three.

    Raises:
        UserError: there is no next slice.
    """
    own = image, label, confidence
    if how == "none":
        return own
    alone = len(image) * parallel.num_devices(axis_name) == 1
    if alone and how != "cutout":
        raise UserError(
            f"method.mix_mode is {how!r}, but a step has one unlabelled slice; expected"
            " data.unlabelled_batch_size of 2 or more, or 'cutout' or 'none'."
        )
    if how == "classmix":
        mask = mixing.half_of_classes(keys, label, num_classes)
    else:
        mask = mixing.rectangles(keys, image.shape[1:3])
    if how == "cutout":
        other = (
            jnp.zeros_like(image),
            jnp.full_like(label, num_classes),
            jnp.zeros_like(confidence),
        )
    else:
        other = mixing.of_next_row(own, axis_name)
    image, label, confidence = (
        mixing.mixed(mask, mine, its) for mine, its in zip(own, other, strict=True)
    )
    return image, label, confidence
