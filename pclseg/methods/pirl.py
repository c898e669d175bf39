"""PIRL: a slice is to look like its memory, whole and as a shuffled jigsaw puzzle.

Misra and van der Maaten 2020, arXiv 1912.01991.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.augment import Augment, sample_keys
from pclseg.errors import UserError
from pclseg.losses.contrastive import unit_length
from pclseg.losses.memory_bank import bank_nce, other_rows, updated_bank
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts import jigsaw
from pclseg.parts.collapse import spread, warn_of_equal
from pclseg.parts.passes import train_pass
from pclseg.state import TrainState, Tree

_MULTIPLE = 16  # the networks halve a patch four times
_ADVICE = (
    "a lower optimizer.peak_lr, optimizer.warmup_steps or more passes over the slices"
)


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    temperature: float,
    num_negatives: int,
    jigsaw_weight: float,
    bank_momentum: float,
    patch_size: int,
) -> Method:
    """Contrast of a slice and of its nine patches with a memory bank of all slices.

    loss = (1 - jigsaw_weight) * l(v) + jigsaw_weight * l(v_t), with l of `bank_nce`,
    v the embedding of the slice and v_t that of its patches; then v moves the slice's
    entry of the bank. The bank is in the checkpoints and receives no gradient.

    As in the code of the paper, whole slice and puzzle are augmented independently, the
    puzzle before it is cut. Negatives are drawn from all of the bank but for the
    slice's own entry, the same for v and v_t.

    Args:
        model: "unet2d_jigsaw", or what has its `pair` of embeddings.
        augment: per-sample random views.
        axis_name: of the pmapped step, or None.
        temperature: of the softmax, > 0.
        num_negatives: K, drawn with replacement for every slice, >= 1.
        jigsaw_weight: from 0 to 1.
        bank_momentum: of the moving average in the bank, from 0 to below 1.
        patch_size: side of a patch in pixels, a multiple of 16 that fits into a third
            of the slice.

    Raises:
        UserError: a value outside of these, or another model; `init` raises it for
            patches that do not fit and for a stage of a single slice.
    """
    expected = {
        "temperature": (temperature, "> 0", temperature > 0),
        "num_negatives": (num_negatives, ">= 1", num_negatives >= 1),
        "jigsaw_weight": (jigsaw_weight, "0 to 1", 0 <= jigsaw_weight <= 1),
        "bank_momentum": (bank_momentum, "0 to below 1", 0 <= bank_momentum < 1),
        "patch_size": (
            patch_size,
            f"a positive multiple of {_MULTIPLE}",
            patch_size > 0 and patch_size % _MULTIPLE == 0,
        ),
    }
    for name, (value, words, holds) in expected.items():
        if not holds:
            raise UserError(f"method.{name} is {value}; expected {words}.")
    if not hasattr(model, "pair"):
        raise UserError(
            "method 'pirl' needs a network with a head for patches; use"
            " model.name='unet2d_jigsaw'."
        )

    def init(key: Array, batch: Batch) -> tuple[Tree, Tree, Tree]:
        images, num_slices = batch["image"], int(batch["num_slices"][0])
        _check_patches_fit(patch_size, *images.shape[1:3])
        if num_slices < 2:
            raise UserError(
                "the stage has a single slice; method 'pirl' tells slices apart and"
                " expects 2 or more."
            )
        size = (patch_size, patch_size, images.shape[-1])
        shape = (len(images), jigsaw.PATCHES, *size)
        patches = jnp.zeros(shape, jnp.float32)
        variables = model.init(key, images, patches, train=False, method="pair")
        noise = jax.random.normal(
            jax.random.fold_in(key, 1), (num_slices, model.out_dim)
        )
        model_state = {"batch_stats": variables["batch_stats"]}
        return variables["params"], model_state, {"bank": unit_length(noise)}

    def embed_pair(
        params: Tree, model_state: Tree, images: Array, key: Array
    ) -> tuple[Array, Array, Tree]:
        rows = parallel.row_ids(len(images), axis_name)
        *view_keys, cut_key = jax.random.split(key, 3)
        whole, puzzle = (
            augment(sample_keys(view_key, rows), images, None)[0]
            for view_key in view_keys
        )
        patches = jigsaw.cut(sample_keys(cut_key, rows), puzzle, patch_size=patch_size)
        pair, model_state = train_pass(
            model, params, model_state, whole, patches, key=key, method="pair"
        )
        v, v_t = map(unit_length, pair)
        return v, v_t, model_state

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        bank, number = state.method_state["bank"], batch["slice"]
        pair_key, negatives_key = jax.random.split(key)
        v, v_t, model_state = embed_pair(
            params, state.model_state, batch["image"], pair_key
        )
        rows = parallel.row_ids(len(number), axis_name)
        others = other_rows(
            sample_keys(negatives_key, rows),
            number,
            num_rows=len(bank),
            count=num_negatives,
        )
        image_loss, jigsaw_loss = (
            bank_nce(u, bank[number], bank[others], temperature=temperature).mean()
            for u in (v, v_t)
        )
        value = (1.0 - jigsaw_weight) * image_loss + jigsaw_weight * jigsaw_loss
        all_numbers, all_v = parallel.all_gather((number, v), axis_name)
        bank = updated_bank(bank, all_numbers, all_v, momentum=bank_momentum)
        mean = parallel.all_mean(jax.lax.stop_gradient(value), axis_name)
        metrics = {
            "image_loss": image_loss,
            "jigsaw_loss": jigsaw_loss,
            "embedding_std": spread(all_v, None),
            "collapse_gap": jnp.abs(mean - math.log(1 + num_negatives)),
        }
        return value, Aux(model_state, {"bank": bank}, metrics)

    def embed(state: TrainState, images: Array) -> Array:
        variables = {"params": state.params, **state.model_state}
        return unit_length(model.apply(variables, images, train=False))

    return Method(
        batch_keys=frozenset({"image", "slice", "num_slices"}),
        init=init,
        loss=loss,
        embed=embed,
        diagnose=lambda metrics: warn_of_equal("slices", metrics, _ADVICE),
    )


def _check_patches_fit(patch_size: int, height: int, width: int) -> None:
    cell = min(jigsaw.cell_size(height, width))
    if patch_size > cell:
        most = cell // _MULTIPLE * _MULTIPLE
        advice = f"use {most} or less" if most else "use crops of 48 or more"
        raise UserError(
            f"method.patch_size is {patch_size}, but a third of data.crop_size"
            f" {height} x {width} has {cell} pixels; {advice}."
        )
