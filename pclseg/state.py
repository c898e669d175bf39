"""The training state: everything that a checkpoint must hold."""

from typing import Any

import flax.struct
import jax

Tree = Any  # a pytree of arrays


class TrainState(flax.struct.PyTreeNode):
    """State of a stage after `step` optimiser steps; no leaf has a device axis.

    Attributes:
        step: int32 scalar.
        params: trainable leaves.
        opt_state: of optax.
        model_state: {"batch_stats": ...}, running statistics of the student.
        method_state: what a method keeps besides: teacher, queue, prototypes; often {}.
    """

    step: jax.Array
    params: Tree
    opt_state: Tree
    model_state: Tree
    method_state: Tree
