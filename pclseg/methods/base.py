"""The contract between a method and the trainer."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from pclseg.state import TrainState, Tree

Array = jax.Array
Batch = Mapping[str, Array]


class Aux(NamedTuple):
    """What a loss returns beside its value.

    Attributes:
        model_state: batch statistics after this step; averaged over devices.
        method_state: queue, prototypes, ...; must be equal on all devices.
        metrics: float scalars to log; averaged over devices.
    """

    model_state: Tree
    method_state: Tree
    metrics: Mapping[str, Array]


def _unchanged(state: TrainState) -> TrainState:
    return state


def _nothing_to_say(metrics: Mapping[str, float]) -> str | None:
    del metrics
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A training method: what to initialise, what to minimise, what to do after a step.

    Attributes:
        batch_keys: keys of the batch contract that `loss` reads; checked once.
        init: (key, batch) -> (params, model_state, method_state).
        loss: (params, state, batch, key) -> (scalar, Aux). Inside a pmapped step the
            batch holds this device's rows; `parallel` gives what lies on the others.
        after_step: state -> state, after the optimiser, e.g. the EMA of a teacher.
        predict: (state, images [B, H, W, C]) -> logits [B, H, W, K], or None.
        also_predict: other networks of the state, such as a teacher, by name; scored
            beside `predict`, whose predictions are the ones that are kept.
        embed: (state, images [B, H, W, C]) -> embedding [B, D] unit length, or None.
        positives: batch without images -> number of positives of every anchor, or None.
        min_volumes: volumes that a batch must hold, each with one slice of every
            partition (`data.sampling="partitions"`); 0 where any slices will do.
        diagnose: logged metrics -> a warning for the user, or None.
        needs_square: whether images must be as high as wide.
    """

    batch_keys: frozenset[str]
    init: Callable[[Array, Batch], tuple[Tree, Tree, Tree]]
    loss: Callable[[Tree, TrainState, Batch, Array], tuple[Array, Aux]]
    after_step: Callable[[TrainState], TrainState] = _unchanged
    predict: Callable[[TrainState, Array], Array] | None = None
    also_predict: Mapping[str, Callable[[TrainState, Array], Array]] = (
        dataclasses.field(default_factory=dict)
    )
    embed: Callable[[TrainState, Array], Array] | None = None
    positives: Callable[[Batch], Array] | None = None
    min_volumes: int = 0
    diagnose: Callable[[Mapping[str, float]], str | None] = _nothing_to_say
    needs_square: bool = False
