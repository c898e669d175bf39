"""A teacher whose weights are an exponential moving average of the student's.

Tarvainen & Valpola 2017, arXiv 1703.01780. The teacher is kept in the method's state as
{"params": ..., "batch_stats": ...}, with the leaves of the student; a stage that starts
from weights of another one gives them to both, see `pclseg.train.transfer`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pclseg.methods.base import Array
from pclseg.parts.passes import train_pass
from pclseg.parts.settings import require
from pclseg.state import TrainState, Tree

MODES = ("eval", "train")


def copy_of(params: Tree, model_state: Tree) -> Tree:
    """A teacher equal to the student, in memory of its own."""
    return jax.tree.map(jnp.copy, {"params": params, **model_state})


def decay(step: Array, *, max_decay: float) -> Array:
    """min(1 - 1 / (step + 1), max_decay): the mean of all students so far, at first.

    Args:
        step: integer, the step just taken, from 0; so the first copies the student.
        max_decay: in [0, 1).
    """
    return jnp.minimum(1 - 1 / (step + 1), max_decay)


def follow(state: TrainState, *, decay: float | Array, mode: str) -> TrainState:
    """A state whose teacher has moved: decay * teacher + (1 - decay) * student.

    Args:
        state: after the optimiser's update, with "teacher" in its method's state.
        decay: in [0, 1).
        mode: of `MODES`. "eval": batch statistics are averaged likewise. "train": they
            are the teacher's own, moved by its own passes: statistics of the
            activations that its weights cause, where an average of the student's would
            be those of older weights.
    """
    teacher = state.method_state["teacher"]
    student = {"params": state.params, **state.model_state}
    names = teacher if mode == "eval" else ("params",)
    moved = optax.incremental_update(
        {name: student[name] for name in names},
        {name: teacher[name] for name in names},
        1 - decay,
    )
    method_state = {**state.method_state, "teacher": {**teacher, **moved}}
    return state.replace(method_state=method_state)


def teacher_pass(
    model: Any,
    teacher: Tree,
    images: Array,
    *,
    key: Array,
    number: int,
    mode: str,
    method: str | None = None,
) -> tuple[Any, Tree]:
    """What a teacher gives, through which no gradient goes, and it after the pass.

    Args:
        model: with batch statistics, and perhaps dropout.
        teacher: {"params", "batch_stats"}.
        images: [B, H, W, C].
        key: of the step.
        number: of the pass in the step, see `train_pass`.
        mode: of `MODES`. "eval": normalised by the running statistics, nothing is
            dropped out; "train": as a student in training.
        method: of the model; None for its `__call__`.
    """
    teacher = jax.lax.stop_gradient(teacher)
    if mode == "eval":
        said = model.apply(teacher, images, train=False, method=method)
        return said, teacher
    params, statistics = teacher["params"], {"batch_stats": teacher["batch_stats"]}
    said, statistics = train_pass(
        model, params, statistics, images, key=key, number=number, method=method
    )
    return jax.lax.stop_gradient(said), {"params": params, **statistics}


def check_teacher(*, momentum: float, mode: str) -> None:
    """Raises UserError unless the settings `teacher_...` of a method make sense."""
    require("teacher_momentum", momentum, "0 <= momentum < 1", 0 <= momentum < 1)
    require("teacher_mode", repr(mode), "'eval' or 'train'", mode in MODES)
