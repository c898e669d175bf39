"""The training step: one pure function for every method."""

from collections.abc import Callable

import jax
import optax

from pclseg import parallel
from pclseg.methods.base import Array, Batch, Method
from pclseg.state import TrainState

TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    method: Method, tx: optax.GradientTransformation, axis_name: str | None
) -> TrainStep:
    """Builds `train_step(state, batch, key) -> (state, metrics)`.

    The key is folded with the step, so that a resumed run repeats itself, and is the
    same on all devices: methods draw one key per row of the global batch, so that the
    number of devices does not change what is drawn. Metrics are float scalars, means
    over devices.
    """

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(key, state.step)
        loss_and_grad = jax.value_and_grad(method.loss, has_aux=True)
        (loss, aux), grads = loss_and_grad(state.params, state, batch, key)
        grads, model_state, metrics = parallel.all_mean(
            (grads, aux.model_state, {"loss": loss, **aux.metrics}), axis_name
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            model_state=model_state,
            method_state=aux.method_state,
        )
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return method.after_step(state), metrics

    return train_step


def init_state(
    method: Method, tx: optax.GradientTransformation, key: Array, batch: Batch
) -> TrainState:
    """The state before the first step; `batch` gives shapes."""
    params, model_state, method_state = method.init(key, batch)
    return TrainState(
        step=jax.numpy.int32(0),
        params=params,
        opt_state=tx.init(params),
        model_state=model_state,
        method_state=method_state,
    )
