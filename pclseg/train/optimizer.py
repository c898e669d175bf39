"""Optimisers with PyTorch's numbers, and the learning rate of every step."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from pclseg.errors import UserError
from pclseg.named import nearest

# Of Adam, Kingma and Ba 2015, arXiv 1412.6980; the same defaults in PyTorch.
_BETA2 = 0.999
_EPSILON = 1e-8


def make(
    *,
    name: str,
    peak_lr: float,
    min_lr: float,
    momentum: float,
    weight_decay: float,
    warmup_steps: int,
    frozen: Sequence[str],
    total_steps: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its schedule.

    Weight decay is L2 added to the gradient of all parameters, biases and normalisation
    included, before momentum or Adam's moments: not the decoupled decay of AdamW.

    Args:
        name: "sgd" (no Nesterov, no dampening) or "adam".
        peak_lr: learning rate at the top of the cosine.
        min_lr: floor of the learning rate.
        momentum: of SGD; the first beta of Adam.
        weight_decay: factor of the parameters in the gradient.
        warmup_steps: steps of linear warm-up; 0 for none.
        frozen: top-level modules of the network, such as "encoder", whose parameters
            stay as they are. Running averages of batch normalisation are no parameters:
            they move wherever a network is applied in training mode.
        total_steps: steps of the whole stage.

    Returns:
        The optax transformation, and step -> learning rate, a float scalar.

    Raises:
        UserError: for an unknown name, or a stage without steps; from `init` of the
            transformation, for a module in `frozen` that the network lacks.
    """
    scale_by: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adam": lambda: optax.scale_by_adam(momentum, _BETA2, _EPSILON),
        "sgd": lambda: optax.trace(momentum),
    }
    if name not in scale_by:
        known = ", ".join(scale_by)
        raise UserError(f"optimizer.name is {name!r}; known optimizers are: {known}.")
    schedule = _cosine(
        peak_lr=peak_lr,
        min_lr=min_lr,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
    )
    tx = optax.chain(
        optax.add_decayed_weights(weight_decay),
        scale_by[name](),
        optax.scale_by_learning_rate(schedule),
        *([_freeze(frozen)] if frozen else []),
    )
    return tx, schedule


def _freeze(names: Sequence[str]) -> optax.GradientTransformation:
    """No update for the modules of these names."""

    def is_frozen(params: Any) -> dict[str, bool]:
        for name in names:
            if name not in params:
                raise UserError(
                    f"optimizer.frozen names {name!r}, but the network has:"
                    f" {', '.join(params)}.{nearest(name, params)}"
                )
        return {name: name in names for name in params}

    return optax.masked(optax.set_to_zero(), is_frozen)


def _cosine(
    *, peak_lr: float, min_lr: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """lr(T) = max(0.5 peak (1 + cos(pi T / N)), min) for steps T = 0, 1, ..., N - 1.

    During warm-up this is multiplied by (T + 1) / warmup_steps. From step N on, lr(N).
    """
    if total_steps < 1:
        raise UserError(
            f"the stage has {total_steps} steps; expected at least 1."
            " Set train.epochs or train.steps, or lower data.batch_size."
        )

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        share = jnp.asarray(jnp.minimum(step, total_steps), float) / total_steps
        lr = jnp.maximum(0.5 * peak_lr * (1.0 + jnp.cos(jnp.pi * share)), min_lr)
        return lr * jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)

    return schedule
