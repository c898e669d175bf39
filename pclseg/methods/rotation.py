"""Rotation: by which quarter turn was the slice rotated?

Gidaris et al. 2018, arXiv 1803.07728.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pclseg import parallel
from pclseg.augment import Augment, moves_pixels, sample_keys
from pclseg.errors import UserError
from pclseg.losses.contrastive import at_least_float32, unit_length
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts.passes import train_pass
from pclseg.state import TrainState, Tree

TURNS = 4


def make(*, model: Any, augment: Augment, axis_name: str | None) -> Method:
    """Classifies by which of four quarter turns every slice was rotated.

    loss = mean over slices and turns r of -log softmax(logits(turn(image, r)))[r]

    All four turns of a slice are in one forward pass, so batch statistics are those of
    4B images. They follow each other, slice after slice: which images are neighbours
    does not depend on the number of devices.

    Args:
        model: images [B, H, H, C] -> logits [B, 4], with batch statistics; its
            `features` gives the pooled centre.
        augment: of the slice before it is turned; it moves nothing, since after a
            rotation, as in "spatial", the answer would be a matter of chance.
        axis_name: of the pmapped step, or None.

    Raises:
        UserError: the model does not tell four classes apart, or `augment` moves
            pixels; `init` raises it for slices that are not square.
    """
    out_dim = getattr(model, "out_dim", TURNS)
    if out_dim != TURNS:
        raise UserError(
            f"model.out_dim is {out_dim}; method 'rotation' tells {TURNS} quarter turns"
            f" apart and expects {TURNS}."
        )
    if moves_pixels(augment):
        raise UserError(
            "augment.name is one that moves pixels; method 'rotation' asks how"
            " a slice was turned and expects one that does not: use 'none'."
        )

    def init(key: Array, batch: Batch) -> tuple[Tree, Tree, Tree]:
        height, width = batch["image"].shape[1:3]
        if height != width:
            raise UserError(
                f"data.crop_size is {height} x {width}; method 'rotation' turns slices"
                " by 90 degrees and expects a square."
            )
        variables = model.init(key, batch["image"], train=False)
        return variables["params"], {"batch_stats": variables["batch_stats"]}, {}

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        rows = parallel.row_ids(len(batch["image"]), axis_name)
        images, _ = augment(sample_keys(key, rows), batch["image"], None)
        logits, model_state = train_pass(
            model, params, state.model_state, quarter_turns(images), key=key
        )
        turns = jnp.tile(jnp.arange(TURNS), len(images))
        logits = at_least_float32(logits)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, turns).mean()
        right = jax.lax.stop_gradient(logits).argmax(axis=-1) == turns
        metrics = {"accuracy": right.mean(dtype=jnp.float32)}
        return value, Aux(model_state, state.method_state, metrics)

    def embed(state: TrainState, images: Array) -> Array:
        variables = {"params": state.params, **state.model_state}
        features = model.apply(variables, images, train=False, method="features")
        return unit_length(features)

    return Method(batch_keys=frozenset({"image"}), init=init, loss=loss, embed=embed)


def quarter_turns(images: Array) -> Array:
    """Every image, turned counter-clockwise by 0, 90, 180 and 270 degrees.

    Args:
        images: [B, H, H, C].

    Returns:
        [4B, H, H, C]: the four of the first image, then those of the next.
    """
    turned = [jnp.rot90(images, turn, axes=(1, 2)) for turn in range(TURNS)]
    return jnp.stack(turned, axis=1).reshape(-1, *images.shape[1:])
