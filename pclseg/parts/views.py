"""How a network embeds several views of a batch, and what its settings must be."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.errors import UserError
from pclseg.losses.contrastive import unit_length
from pclseg.methods.base import Batch
from pclseg.parts.passes import check_draws_by_row, train_pass
from pclseg.parts.settings import require
from pclseg.state import TrainState, Tree

Array = jax.Array


def check_views(model: Any, views: str) -> None:
    """Raises UserError for unknown `views`, or "concat" where rows must be slices."""
    known = views in ("separate", "concat")
    require("views", repr(views), "'separate' or 'concat'", known)
    if views == "concat" and getattr(model, "bn_groups", 1) > 1:
        # Which rows are neighbours would depend on the number of devices.
        raise UserError(
            f"model.bn_groups is {model.bn_groups}, but method.views is 'concat';"
            " groups need views='separate'."
        )
    if views == "concat":
        check_draws_by_row(model, "views", views, "views='separate'")


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
    model: Any,
    params: Tree,
    model_state: Tree,
    images: Sequence[Array],
    *,
    views: str,
    key: Array,
) -> tuple[Array, Tree]:
    """Embeds some views of a batch in training mode.

    Args:
        model: images [B, H, W, C] -> embedding [B, ..., D], with batch statistics.
        params: of the model.
        model_state: before the step.
        images: [B, H, W, C] each.
        views: "separate", one forward pass a view with its own batch statistics, or
            "concat", one pass over all.
        key: of the step.

    Returns:
        [len(images) * B, ..., D] float32 unit length, view after view; batch statistics
        after it.
    """
    embeddings = []
    groups = images if views == "separate" else (jnp.concatenate(images),)
    for number, group in enumerate(groups):
        z, model_state = train_pass(
            model, params, model_state, group, key=key, number=number
        )
        embeddings.append(z)
    return unit_length(jnp.concatenate(embeddings)), model_state


def embed_groups_in_turn(
    embed: Callable[[Any, Array, Array], tuple[Array, Tree]],
    model: Any,
    images: Array,
    rows: Array,
    *,
    num_views: int,
    axis_name: str | None,
) -> tuple[Array, Tree]:
    """`embed` of the whole batch, one of the model's `bn_groups` at a time.

    The activations of a group are given up once its embeddings are there, and are
    computed again for the gradient: memory is that of one group, whatever the batch.
    Gao et al. 2021, arXiv 2101.06983. The result is that of all groups together.

    Args:
        embed: (model, images [C, ...], rows [C]) -> embeddings [num_views * C, D], view
            after view; batch statistics after it.
        model: with `bn_groups`, a multiple of the number of devices.
        images: [B, H, W, C], the batch of this device.
        rows: [B] int32, numbers of its slices in the global batch.
        num_views: of `embed`.
        axis_name: of the pmapped step, or None.

    Returns:
        [num_views * B, D], view after view; batch statistics after the first group of
        the global batch, as `layers.BatchNorm` keeps them.

    Raises:
        ValueError: a group would lie on two devices.
    """
    devices = parallel.num_devices(axis_name)
    if model.bn_groups % devices:
        raise ValueError(
            f"bn_groups is {model.bn_groups}; groups in turn need a multiple of the"
            f" {devices} devices."
        )
    groups = model.bn_groups // devices
    alone = model.clone(bn_groups=1, axis_name=None)

    def embed_group(group: tuple[Array, Array]) -> tuple[Array, Tree]:
        z, model_state = embed(alone, *group)
        return z.reshape(num_views, -1, z.shape[-1]), model_state

    cut = jax.tree.map(
        lambda x: x.reshape(groups, len(x) // groups, *x.shape[1:]), (images, rows)
    )
    z, model_states = jax.lax.map(jax.checkpoint(embed_group), cut)
    first = jax.tree.map(lambda x: x[0], model_states)
    z = jnp.swapaxes(z, 0, 1).reshape(num_views * len(images), -1)
    return z, parallel.of_first(first, axis_name)


def embed_slices(model: Any) -> Callable[[TrainState, Array], Array]:
    """`Method.embed` of a model that embeds whole slices."""

    def embed(state: TrainState, images: Array) -> Array:
        variables = {"params": state.params, **state.model_state}
        return unit_length(model.apply(variables, images, train=False))

    return embed
