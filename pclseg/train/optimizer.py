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
# Of LARS, You et al. 2017, arXiv 1708.03888: trust in the size of a layer.
_TRUST = 1e-3
_POWERS = {"linear": 1.0, "sqrt": 0.5}  # of the batch, in the learning rate
# What is left of the peak when this share, 0..1, of the stage is over.
_SHAPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "cosine": lambda share: 0.5 * (1.0 + jnp.cos(jnp.pi * share)),
    "poly": lambda share: (1.0 - share) ** 0.9,  # Chen et al., arXiv 1606.00915
}


def make(
    *,
    name: str,
    peak_lr: float,
    min_lr: float,
    schedule: str = "cosine",
    lr_batch_size: int,
    lr_scaling: str,
    momentum: float,
    weight_decay: float,
    warmup_steps: int,
    frozen: Sequence[str],
    batch_size: int,
    total_steps: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its schedule.

    With "sgd", "nesterov" and "adam", weight decay is L2 added to the gradient of all
    parameters, biases and normalisation included, before momentum or Adam's moments:
    not the decoupled decay of AdamW. With the two for large batches it is that of their
    papers and of kernels alone, biases and normalisation excluded:

    - "lars", You et al. 2017, arXiv 1708.03888, as SimCLR uses it: the update of every
      kernel w is lr * 0.001 |w| / |g| * g with g = gradient + weight_decay w, and
      goes into the momentum;
    - "lamb", You et al. 2020, arXiv 1904.00962: lr * |w| / |u| * u with u = Adam's
      direction + weight_decay w.

    Args:
        name: "sgd" (no Nesterov, no dampening), "nesterov" (SGD with that momentum, as
            PyTorch computes it), "adam", "lars" or "lamb".
        peak_lr: learning rate at the top of the schedule.
        min_lr: floor of the learning rate.
        schedule: at step T of N "cosine", 0.5 peak (1 + cos(pi T / N)), or "poly", peak
            (1 - T / N)^0.9.
        lr_batch_size: slices of the batches that these two rates are for; 0 where they
            are for whatever the batch is.
        lr_scaling: both rates grow with batch_size / lr_batch_size ("linear", Goyal et
            al. 2017, arXiv 1706.02677) or with its square root ("sqrt").
        momentum: of SGD, Nesterov and LARS; the first beta of Adam and LAMB.
        weight_decay: factor of the parameters in the gradient.
        warmup_steps: steps of linear warm-up; 0 for none.
        frozen: top-level modules of the network, such as "encoder", whose parameters
            stay as they are. Running averages of batch normalisation are no parameters:
            they move wherever a network is applied in training mode.
        batch_size: slices of a global batch.
        total_steps: steps of the whole stage.

    Returns:
        The optax transformation, and step -> learning rate, a float scalar.

    Raises:
        UserError: for an unknown name, or a stage without steps; from `init` of the
            transformation, for a module in `frozen` that the network lacks.
    """
    growth = (batch_size / (lr_batch_size or batch_size)) ** _POWERS[lr_scaling]
    learning_rate = _schedule(
        _SHAPES[schedule],
        peak_lr=peak_lr * growth,
        min_lr=min_lr * growth,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
    )
    rate = optax.scale_by_learning_rate(learning_rate)
    decay = optax.add_decayed_weights(weight_decay)
    kernel_decay = optax.add_decayed_weights(weight_decay, mask=_are_kernels)
    adam = optax.scale_by_adam(momentum, _BETA2, _EPSILON)
    chains = {
        "adam": (decay, adam, rate),
        "sgd": (decay, optax.trace(momentum), rate),
        "nesterov": (decay, optax.trace(momentum, nesterov=True), rate),
        "lars": (kernel_decay, _by_size(_TRUST), rate, optax.trace(momentum)),
        "lamb": (adam, kernel_decay, _by_size(1.0), rate),
    }
    if name not in chains:
        known = ", ".join(chains)
        raise UserError(f"optimizer.name is {name!r}; known optimizers are: {known}.")
    freeze = [_freeze(frozen)] if frozen else []
    return optax.chain(*chains[name], *freeze), learning_rate


def _are_kernels(params: Any) -> Any:
    """False for biases and for what normalisation scales and shifts by."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _by_size(trust: float) -> optax.GradientTransformation:
    """Updates of kernels as long as the kernels, times `trust`."""
    ratio = optax.scale_by_trust_ratio(trust_coefficient=trust)
    return optax.masked(ratio, _are_kernels)


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


def _schedule(
    shape: Callable[[jax.Array], jax.Array],
    *,
    peak_lr: float,
    min_lr: float,
    warmup_steps: int,
    total_steps: int,
) -> optax.Schedule:
    """lr(T) = max(peak shape(T / N), min) for steps T = 0, 1, ..., N - 1.

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
        lr = jnp.maximum(peak_lr * shape(share), min_lr)
        return lr * jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)

    return schedule
