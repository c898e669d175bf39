"""A pass of a network in training mode, normalised by the batch."""

from typing import Any

import jax

from pclseg.errors import UserError
from pclseg.methods.base import Array
from pclseg.state import Tree

_DROPOUT = 0x64726F70  # far from the small numbers that splitting a key uses up


def train_pass(
    model: Any,
    params: Tree,
    model_state: Tree,
    *inputs: Array,
    key: Array,
    number: int = 0,
    method: str | None = None,
) -> tuple[Any, Tree]:
    """What the network gives, and the running statistics after it.

    Args:
        model: with batch statistics, and perhaps dropout.
        params: of the model.
        model_state: {"batch_stats": ...} before this batch.
        inputs: of the model.
        key: of the step, the same on all devices.
        number: of the pass in the step; each drops out other features.
        method: of the model; None for its `__call__`.
    """
    dropout = jax.random.fold_in(jax.random.fold_in(key, _DROPOUT), number)
    return model.apply(
        {"params": params, **model_state},
        *inputs,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": dropout},
        method=method,
    )


def check_draws_by_row(model: Any, setting: str, value: object, expected: str) -> None:
    """Raises UserError where a network drops out and its rows are no slices in turn.

    Which features are dropped depends on the row; it would then depend on how many
    devices there are, too.
    """
    if getattr(model, "drops_out", False):
        raise UserError(
            f"method.{setting} is {value!r}, but model.backbone {model.backbone!r}"
            f" drops out features row by row, which needs {expected}."
        )
