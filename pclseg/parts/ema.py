"""A teacher whose weights are an exponential moving average of the student's.

Tarvainen & Valpola 2017, arXiv 1703.01780. The teacher is kept in the method's state as
{"params": ..., "batch_stats": ...}. Only `params` are averaged. Batch statistics are
the teacher's own, moved by its own passes, as in the authors' code: statistics of the
activations that its weights cause, where an average of the student's would be those of
older weights.
"""

import jax
import jax.numpy as jnp
import optax

from pclseg.methods.base import Array
from pclseg.state import TrainState, Tree


def copy_of(params: Tree, model_state: Tree) -> Tree:
    """A teacher equal to the student, in memory of its own."""
    return jax.tree.map(jnp.copy, {"params": params, **model_state})


def current(teacher: Tree, state: TrainState) -> Tree:
    """The teacher to use in a step: before the first one, the student itself.

    What `Method.init` copied may not be the student any more: `init_from` puts the
    weights of an earlier stage into the student alone.
    """
    student = {"params": state.params, **state.model_state}
    is_first = state.step == 0
    return jax.tree.map(lambda s, t: jnp.where(is_first, s, t), student, teacher)


def decay(step: Array, *, max_decay: float) -> Array:
    """min(1 - 1 / (step + 1), max_decay): the mean of all students so far, at first.

    Args:
        step: integer, the step just taken, from 0; so the first copies the student.
        max_decay: in [0, 1).
    """
    return jnp.minimum(1 - 1 / (step + 1), max_decay)


def follow(teacher: Tree, state: TrainState, *, max_decay: float) -> Tree:
    """The teacher after a step: decay * teacher + (1 - decay) * student.

    Args:
        teacher: {"params", "batch_stats"}.
        state: after the optimiser's update, which has counted the step.
        max_decay: in [0, 1).
    """
    rate = 1 - decay(state.step - 1, max_decay=max_decay)
    params = optax.incremental_update(state.params, teacher["params"], rate)
    return {**teacher, "params": params}
