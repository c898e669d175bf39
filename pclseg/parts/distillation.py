"""Distillation of similarities: a student compares slices as an EMA teacher does.

Both compare a slice, which they see in different views, with those that a bank holds of
the teacher; the student learns the teacher's distribution over the bank. You et al.
2023, arXiv 2206.02307, after Tejankar et al. 2021, arXiv 2010.10974.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.augment import Augment, sample_keys
from pclseg.batch import UNLABELLED
from pclseg.errors import UserError
from pclseg.losses.contrastive import unit_length
from pclseg.losses.distillation import kl_divergence, similarity_log_probs
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts import bank, ema, segmenter
from pclseg.parts.passes import train_pass
from pclseg.parts.settings import require
from pclseg.parts.strong import strong_view
from pclseg.parts.supervision import labelled_loss
from pclseg.parts.temperature import schedule
from pclseg.parts.views import embed_slices
from pclseg.state import TrainState, Tree


def distillation(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    supervised: bool,
    global_weight: float,
    local_weight: float,
    strong: Mapping[str, Any],
    bank_size: int,
    student_temperature: Sequence[float],
    teacher_temperature: Sequence[float],
    temperature_period: int,
    reverse_kl: bool,
    teacher_momentum: float,
    teacher_mode: str,
) -> Method:
    """The method shared by the stages of global and of local distillation.

    sum over names n of weight_n * mean over slices and windows of
    KL(softmax_a cos(z_t, a) / t_t || softmax_a cos(z_s, a) / t_s), a in the bank of n

    and, if `supervised`, `labelled_loss`, half Dice, of labelled slices. The teacher
    sees what `augment` makes of a slice, the student that after `strong`. A batch
    enters the bank after its loss, so it never meets itself; empty places do not count.

    Args:
        model: with `as_teacher` and `as_student`, images [B, H, W, C] -> `Outputs`.
        augment: moves images, and their labels alike; for both views the same.
        axis_name: of the pmapped step, or None.
        supervised: whether there is a stream of labelled slices beside that of all.
        global_weight: of the embeddings of whole slices, >= 0; k1 of the paper.
        local_weight: of those of windows, >= 0; k2. Of no meaning for a model without.
        strong: settings of the augmentation of the student's view; it moves nothing.
        bank_size: entries of a bank.
        student_temperature: t_s, see `temperature.schedule`.
        teacher_temperature: t_t, likewise.
        temperature_period: of both, in steps.
        reverse_kl: whether to take KL(student || teacher).
        teacher_momentum: of the teacher, in [0, 1).
        teacher_mode: "eval" or "train", see `ema`.

    Raises:
        UserError: a setting out of its range.
    """
    require("global_weight", global_weight, ">= 0", global_weight >= 0)
    require("local_weight", local_weight, ">= 0", local_weight >= 0)
    require("bank_size", bank_size, "1 or more", bank_size >= 1)
    ema.check_teacher(momentum=teacher_momentum, mode=teacher_mode)
    weights = {"global": global_weight, "local": local_weight}
    strengthen = strong_view(strong)
    student_at = schedule(
        "student_temperature", student_temperature, period=temperature_period
    )
    teacher_at = schedule(
        "teacher_temperature", teacher_temperature, period=temperature_period
    )
    streams = ("", UNLABELLED) if supervised else ("",)

    def init(key: Array, batch: Batch) -> tuple[Tree, Tree, Tree]:
        if not hasattr(model, "as_student"):
            raise UserError(
                f"the model {type(model).__name__} does not distil; use model.name="
                + repr("unet2d_distill_local" if supervised else "unet2d_distill")
                + "."
            )
        said, variables = model.init_with_output(
            key, batch["image"], train=False, method="as_student"
        )
        params = variables["params"]
        model_state = {"batch_stats": variables["batch_stats"]}
        rows = {name: jnp.float32(z[0]) for name, z in said.embeddings.items()}
        method_state = {
            "teacher": ema.copy_of(params, model_state),
            "bank": bank.empty(bank_size, **rows),
        }
        return params, model_state, method_state

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        model_state, teacher = state.model_state, state.method_state["teacher"]
        keys = jax.random.split(key, len(streams))
        students, teachers = [], []
        value, metrics = jnp.float32(0), {}
        for number, (stream, stream_key) in enumerate(zip(streams, keys, strict=True)):
            images = batch[f"{stream}image"]
            rows = parallel.row_ids(len(images), axis_name)
            weak_key, strong_key = jax.random.split(stream_key)
            label = batch["label"] if supervised and not stream else None
            weak, label = augment(sample_keys(weak_key, rows), images, label)
            seen, _ = strengthen(sample_keys(strong_key, rows), weak, None)
            student, model_state = train_pass(
                model,
                params,
                model_state,
                seen,
                key=key,
                number=number,
                method="as_student",
            )
            taught, teacher = ema.teacher_pass(
                model,
                teacher,
                weak,
                key=key,
                number=len(streams) + number,
                mode=teacher_mode,
                method="as_teacher",
            )
            students.append(student.embeddings)
            teachers.append(taught.embeddings)
            if label is not None:
                value, metrics = labelled_loss(
                    student.logits, label, dice_weight=0.5, axis_name=axis_name
                )

        stored = state.method_state["bank"]
        filled = bank.there(stored)
        student_t, teacher_t = student_at(state.step), teacher_at(state.step)
        metrics |= {"student_temperature": student_t, "teacher_temperature": teacher_t}
        for name, entries in stored.rows.items():
            own, its = (
                jnp.concatenate([said[name] for said in each])
                for each in (students, teachers)
            )
            term = kl_divergence(
                similarity_log_probs(its, entries, filled, temperature=teacher_t),
                similarity_log_probs(own, entries, filled, temperature=student_t),
                reverse=reverse_kl,
            ).mean()
            value += weights[name] * term
            metrics[f"{name}_distillation"] = term
        for said in parallel.all_gather(teachers, axis_name):
            rows = {name: unit_length(z) for name, z in said.items()}
            stored = bank.pushed(stored, **rows)
        method_state = {"teacher": teacher, "bank": stored}
        return value, Aux(model_state, method_state, metrics)

    def after_step(state: TrainState) -> TrainState:
        return ema.follow(state, decay=teacher_momentum, mode=teacher_mode)

    return Method(
        batch_keys=frozenset(
            {"image", "label", f"{UNLABELLED}image"} if supervised else {"image"}
        ),
        init=init,
        loss=loss,
        after_step=after_step,
        **_uses(model, supervised=supervised),
    )


def _uses(model: Any, *, supervised: bool) -> dict[str, Any]:
    """What a trained network is good for, as fields of `Method`."""
    if not supervised:
        return {"embed": embed_slices(model)}
    teacher = functools.partial(segmenter.predict_teacher, model)
    return {
        "predict": functools.partial(segmenter.predict, model),
        "also_predict": {"teacher": teacher},
    }
