"""Segmentation in which an EMA teacher sets the targets of unlabelled slices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.augment import Augment, sample_keys
from pclseg.losses.distillation import squared_difference
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts import ema, segmenter
from pclseg.parts.passes import train_pass
from pclseg.parts.settings import require
from pclseg.parts.supervision import check_dice_weight, labelled_loss
from pclseg.state import TrainState, Tree

# (keys [B], values [B, H, W, C]) -> the same, moved; equal keys move equally, and what
# comes from outside the image is 0
Transform = Callable[[Array, Array], Array]


def consistency(
    *,
    model: Any,
    augment: Augment,
    transform: Transform,
    axis_name: str | None,
    max_weight: float,
    ramp_steps: int,
    max_decay: float,
    noise_std: float,
    dice_weight: float = 0.0,
    needs_square: bool = False,
) -> Method:
    """The method shared by mean teacher and TCSM, which differ in `transform` only.

    CE(student(x), y) + w(step) * mean((T p_student(u) - p_teacher(T u + noise))^2)

    with p the softmax of the logits, x the augmented labelled slices, u the unlabelled
    ones as they are cut, and T drawn for each of them. Gradient reaches the student
    only. Every pass is normalised by its own batch, the teacher's too.

    Args:
        model: images [B, H, W, C] -> logits [B, H, W, K], with batch statistics.
        augment: moves labelled images and their labels alike.
        transform: T.
        axis_name: of the pmapped step, or None.
        max_weight: of the consistency; >= 0.
        ramp_steps: see `ramp_up`; >= 1.
        max_decay: of the teacher, see `ema.decay`; in [0, 1).
        noise_std: of the Gaussian noise on the teacher's input, in standard deviations
            of a volume's intensities; >= 0.
        dice_weight: share of the Dice loss of labelled slices, which takes the place of
            cross entropy.
        needs_square: whether T moves square images only.

    Raises:
        UserError: a setting out of its range.
    """
    require("max_weight", max_weight, ">= 0", max_weight >= 0)
    require("ramp_steps", ramp_steps, "1 or more", ramp_steps >= 1)
    require("max_decay", max_decay, "0 <= max_decay < 1", 0 <= max_decay < 1)
    require("noise_std", noise_std, ">= 0", noise_std >= 0)
    check_dice_weight(dice_weight)

    def init(key: Array, batch: Batch) -> tuple[Tree, Tree, Tree]:
        params, model_state = segmenter.start(model, key, batch)
        return params, model_state, {"teacher": ema.copy_of(params, model_state)}

    def targets(
        teacher: Tree, images: Array, noise_keys: Array, key: Array
    ) -> tuple[Array, Tree]:
        """The teacher's probabilities, and the teacher after this pass."""
        draw = functools.partial(jax.random.normal, shape=images.shape[1:])
        noisy = images + noise_std * jax.vmap(draw)(noise_keys)
        logits, teacher = ema.teacher_pass(
            model, teacher, noisy, key=key, number=2, mode="train"
        )
        return jax.nn.softmax(logits), teacher

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        augment_key, transform_key, noise_key = jax.random.split(key, 3)
        rows = parallel.row_ids(len(batch["image"]), axis_name)
        images, labels = augment(
            sample_keys(augment_key, rows), batch["image"], batch["label"]
        )
        logits, model_state = train_pass(
            model, params, state.model_state, images, key=key
        )
        supervised, metrics = labelled_loss(
            logits, labels, dice_weight=dice_weight, axis_name=axis_name
        )

        unlabelled = batch["unlabelled_image"]
        rows = parallel.row_ids(len(unlabelled), axis_name)
        move = functools.partial(transform, sample_keys(transform_key, rows))
        logits, model_state = train_pass(
            model, params, model_state, unlabelled, key=key, number=1
        )
        student_probs = move(jax.nn.softmax(logits))
        teacher_probs, teacher = targets(
            state.method_state["teacher"],
            move(unlabelled),
            sample_keys(noise_key, rows),
            key,
        )
        inside = move(jnp.ones_like(unlabelled))
        difference = squared_difference(student_probs, teacher_probs, inside).mean()
        weight = ramp_up(state.step, max_weight=max_weight, ramp_steps=ramp_steps)
        metrics |= {
            "consistency": difference,
            "consistency_weight": weight,
        }
        value = supervised + weight * difference
        return value, Aux(model_state, {"teacher": teacher}, metrics)

    def after_step(state: TrainState) -> TrainState:
        decay = ema.decay(state.step - 1, max_decay=max_decay)
        return ema.follow(state, decay=decay, mode="train")

    return Method(
        batch_keys=frozenset({"image", "label", "unlabelled_image"}),
        init=init,
        loss=loss,
        after_step=after_step,
        predict=functools.partial(segmenter.predict, model),
        also_predict={"teacher": functools.partial(segmenter.predict_teacher, model)},
        needs_square=needs_square,
    )


def ramp_up(step: Array, *, max_weight: float, ramp_steps: int) -> Array:
    """Weight of the consistency, max_weight * exp(-5 (1 - min(step, E) / E)^2).

    Laine & Aila 2017, arXiv 1610.02242.

    Args:
        step: integer, from 0.
        max_weight: from step E on.
        ramp_steps: E.
    """
    left = 1 - jnp.minimum(step, ramp_steps) / ramp_steps
    return max_weight * jnp.exp(-5 * jnp.square(left))
