"""Labelled and unlabelled slices of a step, as methods with pseudo-labels use them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.augment import Augment, sample_keys
from pclseg.batch import UNLABELLED
from pclseg.methods.base import Array, Batch
from pclseg.parts.strong import mix
from pclseg.state import Tree


class Shown(NamedTuple):
    """Slices of this device before any network but the teacher that labels them.

    Attributes:
        images: [B, H, W, C] float, as the student sees them.
        before: the same before the strong view, where there is one.
        label: [B, H, W] integer class ids in 0..K, pseudo-labels where there are no
            others; K is none.
        confidence: [B, H, W] float, the teacher's in its label; 1 for others.
    """

    images: Array
    before: Array
    label: Array
    confidence: Array


class Stream(NamedTuple):
    """Slices of this device and what the networks make of them.

    Attributes:
        images, before, label, confidence: of `Shown`.
        logits: [B, H, W, K] float, the student's.
        features: [B, H / stride, W / stride, D] float, the student's.
        taught: (logits, features), the teacher's of the same images; empty where no
            term asks for them.
    """

    images: Array
    before: Array
    label: Array
    confidence: Array
    logits: Array
    features: Array
    taught: tuple[Array, ...] = ()


def show(
    batch: Batch,
    keys: tuple[Array, Array, Array, Array],
    teach: Callable[[Array], tuple[Array, Tree]],
    *,
    augment: Augment,
    strengthen: Augment,
    mix_mode: str,
    num_classes: int,
    axis_name: str | None,
) -> tuple[Shown, Shown, Tree]:
    """Labelled slices, strong views of the others with pseudo-labels, the teacher.

    Args:
        batch: with "image", "label" and the image of the unlabelled stream.
        keys: of augmentation, labelled and not, of mixing and of the strong views.
        teach: images -> the teacher's logits, the teacher after them.
        augment: moves images, and labels alike.
        strengthen: makes the strong view, after mixing.
        mix_mode: of `strong.MIXES`.
        num_classes: K.
        axis_name: of the pmapped step, or None.

    Raises:
        UserError: there is no next slice to mix with.
    """
    labelled_key, rest_key, mix_key, strong_key = keys
    rows = parallel.row_ids(len(batch["image"]), axis_name)
    images, label = augment(
        sample_keys(labelled_key, rows), batch["image"], batch["label"]
    )
    unlabelled = batch[f"{UNLABELLED}image"]
    rows = parallel.row_ids(len(unlabelled), axis_name)
    weak, _ = augment(sample_keys(rest_key, rows), unlabelled, None)
    logits, teacher = teach(weak)
    probs = jax.nn.softmax(logits)
    mixed, pseudo, confidence = mix(
        mix_mode,
        sample_keys(mix_key, rows),
        weak,
        probs.argmax(axis=-1),
        probs.max(axis=-1),
        num_classes=num_classes,
        axis_name=axis_name,
    )
    strong, _ = strengthen(sample_keys(strong_key, rows), mixed, None)
    known = jnp.ones(label.shape, confidence.dtype)
    return (
        Shown(images, images, label, known),
        Shown(strong, mixed, pseudo, confidence),
        teacher,
    )
