"""How a network embeds several views of a batch, and what its settings must be."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pclseg.errors import UserError
from pclseg.losses.contrastive import unit_length
from pclseg.methods.base import Batch
from pclseg.state import TrainState, Tree

Array = jax.Array


def check_positive(**settings: float) -> None:
    """Raises UserError unless all settings of the method are above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise UserError(f"method.{name} is {value}; expected > 0.")


def check_views(model: Any, views: str) -> None:
    """Raises UserError for unknown `views`, or "concat" of a model with BN groups."""
    if views not in ("separate", "concat"):
        raise UserError(f"method.views is {views!r}; expected 'separate' or 'concat'.")
    if views == "concat" and getattr(model, "bn_groups", 1) > 1:
        # Which rows are neighbours would depend on the number of devices.
        raise UserError(
            f"model.bn_groups is {model.bn_groups}, but method.views is 'concat';"
            " groups need views='separate'."
        )


def init_network(
    model: Any, *, num_axes: int, expected: str
) -> Callable[[Array, Batch], tuple[Tree, Tree, Tree]]:
    """`Method.init` of a method whose whole state is that of its network.

    It raises UserError, naming the model `expected`, unless the model's result has
    `num_axes`: [B, D] for embeddings of slices, [B, R, D] for those of regions.
    """

    def init(key: Array, batch: Batch) -> tuple[Tree, Tree, Tree]:
        z, variables = model.init_with_output(key, batch["image"], train=False)
        if z.ndim != num_axes:
            raise UserError(
                f"method.name does not go with this model; use model.name={expected!r}."
            )
        return variables["params"], {"batch_stats": variables["batch_stats"]}, {}

    return init


def embed_views(
    model: Any, params: Tree, model_state: Tree, images: Sequence[Array], *, views: str
) -> tuple[Array, Tree]:
    """Embeds some views of a batch in training mode.

    Args:
        model: images [B, H, W, 1] -> embedding [B, ..., D], with batch statistics.
        params: of the model.
        model_state: before the step.
        images: [B, H, W, 1] each.
        views: "separate", one forward pass a view with its own batch statistics, or
            "concat", one pass over all.

    Returns:
        [len(images) * B, ..., D] float32 unit length, view after view; batch statistics
        after it.
    """
    embeddings = []
    for group in images if views == "separate" else (jnp.concatenate(images),):
        z, model_state = model.apply(
            {"params": params, **model_state},
            group,
            train=True,
            mutable=["batch_stats"],
        )
        embeddings.append(z)
    return unit_length(jnp.concatenate(embeddings)), model_state


def embed_slices(model: Any) -> Callable[[TrainState, Array], Array]:
    """`Method.embed` of a model that embeds whole slices."""

    def embed(state: TrainState, images: Array) -> Array:
        variables = {"params": state.params, **state.model_state}
        return unit_length(model.apply(variables, images, train=False))

    return embed
