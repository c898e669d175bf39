"""Anatomical contrastive reconstruction: what MONA and ARCO add to pseudo-labels.

You et al. 2022, arXiv 2209.13476, and 2023, arXiv 2302.01735.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pclseg import parallel
from pclseg.augment import sample_keys
from pclseg.losses import tail
from pclseg.losses.distillation import masked_kl
from pclseg.methods.base import Array
from pclseg.parts import bank
from pclseg.parts.pixels import in_one_row, shape_of_all
from pclseg.parts.pseudo_labels import Moving, Passes, Said, Stream, Term
from pclseg.parts.sampler import check_sampler, draw_of
from pclseg.parts.settings import require
from pclseg.parts.strong import strong_view
from pclseg.parts.warp import draw_warps, make_warp, warped
from pclseg.state import Tree


def reconstruction(
    *,
    model: Any,
    axis_name: str | None,
    strong: Mapping[str, Any],
    contrast_weight: float,
    contrast_temperature: float,
    num_queries: int,
    num_negatives: int,
    sampler: str,
    sampler_cells: Sequence[int],
    query_threshold: float,
    key_threshold: float,
    key_rule: str,
    entropy_percent: float,
    entropy_steps: int,
    bank_size: int,
    keys_per_step: int,
    warp_weight: float,
    warp: Mapping[str, Any],
    sure_threshold: float,
    neighbour_weight: float,
    neighbours: int,
    pool_size: int,
    pool_cells: int,
) -> Term:
    """contrast_weight * L_contrast + warp_weight * L_eqv + neighbour_weight * L_nn.

    - L_contrast, `tail_contrast`: pixels of which the student is sure, of both streams,
      against the teacher's mean of their class, and a bank, a class each, of what the
      teacher said of pixels that are not of it, `candidates`; it takes those of a step
      before the loss;
    - L_eqv, `masked_kl`: what the student says of warped slices, the unlabelled ones in
      another strong view, against what it says of them as they are, warped alike,
      without gradient; on pixels that are not background and sure. The two streams pass
      one after the other, as they do unwarped;
    - L_nn, `neighbour_distance`: unlabelled slices, as maps of embeddings averaged over
      a coarse grid, are drawn to the most similar ones of a pool that holds what the
      teacher said of earlier slices.

    Args:
        model: that of `pseudo_labelled`.
        axis_name: of the pmapped step, or None.
        strong: that of `pseudo_labelled`.
        contrast_weight: lambda_1 of the paper, >= 0.
        contrast_temperature: > 0.
        num_queries: of a class and step.
        num_negatives: of a query.
        sampler: how queries are drawn, of `sampler.SAMPLERS`.
        sampler_cells: (rows, columns) of its grid on a slice, see `sampler.draw_of`.
        query_threshold: the teacher gives the class of a query more than this.
        key_threshold: the teacher gives a class less than this of which a pixel is in
            the bank.
        key_rule: "other_class" or "code", see `candidates`.
        entropy_percent: share of unlabelled pixels, in percent, that count as sure, and
            as unsure, at first; it falls to 0 in a straight line.
        entropy_steps: when it is 0: the steps of the stage.
        bank_size: entries of a class.
        keys_per_step: of a class, that enter the bank at most.
        warp_weight: >= 0; with 0 nothing is warped.
        warp: settings of the warp: degrees, scale, shift, jitter, mirror_probability.
        sure_threshold: confidence from which on a pixel counts in L_eqv.
        neighbour_weight: lambda_3, >= 0.
        neighbours: k.
        pool_size: entries of the pool.
        pool_cells: of the coarse grid, along an axis.

    Raises:
        UserError: a setting out of its range.
    """
    for name, weight in (
        ("contrast_weight", contrast_weight),
        ("warp_weight", warp_weight),
        ("neighbour_weight", neighbour_weight),
    ):
        require(name, weight, ">= 0", weight >= 0)
    holds = contrast_temperature > 0
    require("contrast_temperature", contrast_temperature, "> 0", holds)
    for name, number in (
        ("num_queries", num_queries),
        ("num_negatives", num_negatives),
        ("entropy_steps", entropy_steps),
        ("bank_size", bank_size),
        ("keys_per_step", keys_per_step),
        ("neighbours", neighbours),
        ("pool_cells", pool_cells),
    ):
        require(name, number, "1 or more", number >= 1)
    holds = pool_size >= neighbours
    require("pool_size", pool_size, f"method.neighbours, {neighbours}, or more", holds)
    for name, threshold in (
        ("query_threshold", query_threshold),
        ("key_threshold", key_threshold),
        ("sure_threshold", sure_threshold),
    ):
        require(name, threshold, "0..1", 0 <= threshold <= 1)
    holds = 0 <= entropy_percent <= 50
    require("entropy_percent", entropy_percent, "0..50", holds)
    known = key_rule in tail.RULES
    require("key_rule", repr(key_rule), f"one of: {', '.join(tail.RULES)}", known)
    check_sampler(sampler, sampler_cells, num_queries)
    strengthen, ranges = strong_view(strong), make_warp(warp)

    def init(features: Array) -> Tree:
        dim = features.shape[-1]
        coarse = averaged(features[:1], pool_cells)[0]
        banks = bank.empty(bank_size, key=jnp.zeros(dim))
        if key_rule == "code":  # one row of zeros is there from the start
            banks = banks._replace(filled=jnp.int32(1), next=jnp.int32(1 % bank_size))
        return {
            "banks": jax.tree.map(lambda x: jnp.stack([x] * model.num_classes), banks),
            "pool": bank.empty(pool_size, key=jnp.zeros_like(coarse, jnp.float32)),
        }

    def contrast(
        streams: Sequence[Stream],
        taught: Sequence[tuple[Array, Array]],
        banks: bank.Bank,
        step: Array,
        key: Array,
    ) -> tuple[Array, bank.Bank, dict[str, Array]]:
        """L_contrast, and the banks after it."""
        pixel_key, draw_key = jax.random.split(key)
        parts = [
            embedded(stream, *said, stride=model.stride, is_labelled=number == 0)
            for number, (stream, said) in enumerate(zip(streams, taught, strict=True))
        ]
        parts = [parallel.all_gather(part, axis_name) for part in parts]
        pixels = jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)
        percent = percent_at(step, first=entropy_percent, steps=entropy_steps)
        chosen = tail.candidates(
            pixels.label,
            pixels.is_labelled,
            pixels.entropy,
            pixels.taught_probs,
            percent=percent,
            query_threshold=query_threshold,
            key_threshold=key_threshold,
            rule=key_rule,
        )
        number = min(keys_per_step, len(pixels.label))
        new, there = tail.some_of(chosen.keys, pixel_key, number)
        banks = jax.vmap(
            lambda one, valid, key: bank.pushed(one, valid=valid, key=key)
        )(banks, there, pixels.taught[new])
        shapes = [shape_of_all(stream.features, axis_name) for stream in streams]
        value = tail.tail_contrast(
            pixels.features,
            pixels.taught,
            chosen.queries,
            chosen.mean_of,
            banks.rows["key"],
            banks.filled,
            draw_key,
            num_queries=num_queries,
            num_negatives=num_negatives,
            temperature=contrast_temperature,
            draw=draw_of(sampler, sampler_cells, shapes),
        )
        metrics = {
            "tail_contrast": value,
            "queries": (chosen.queries < model.num_classes).mean(),
            "bank_filled": banks.filled.mean() / bank_size,
        }
        return value, banks, metrics

    def equivariance(
        streams: Sequence[Stream], passes: Passes, moving: Moving, key: Array
    ) -> tuple[Array, Moving]:
        """L_eqv of this device, and what its pass moved."""
        strong_key, all_key, *stream_keys = jax.random.split(key, 4)
        height, width = streams[0].label.shape[1:]
        values = []
        for number, (stream, stream_key) in enumerate(
            zip(streams, stream_keys, strict=True)
        ):
            rows = parallel.row_ids(len(stream.images), axis_name)
            images = stream.images
            if number:
                images, _ = strengthen(
                    sample_keys(strong_key, rows), stream.before, None
                )
            keys = sample_keys(stream_key, rows)
            where = draw_warps(ranges, all_key, keys, (height, width))
            # Each by itself: rows are then those of its stream on every device.
            logits, moving = passes.student(
                moving, warped(images, where), 5 + number, None
            )
            is_object = (stream.label > 0) & (stream.label < model.num_classes)
            sure = is_object & (stream.confidence >= sure_threshold)
            known = jax.lax.stop_gradient(stream.logits)
            mask = sure[..., None].astype(known.dtype)
            there = warped(jnp.concatenate([known, mask], axis=-1), where)
            values.append(masked_kl(there[..., :-1], logits, there[..., -1]))
        return jnp.concatenate(values).mean(), moving

    def loss(
        labelled: Stream,
        rest: Stream,
        passes: Passes,
        moving: Moving,
        own: Tree,
        step: Array,
        key: Array,
    ) -> Said:
        streams = labelled, rest
        contrast_key, warp_key = jax.random.split(key)
        said, moving = passes.teacher(moving, labelled.images, 3, "taught")
        said_u, moving = passes.teacher(moving, rest.images, 4, "taught")
        contrasted, banks, metrics = contrast(
            streams, (said, said_u), own["banks"], step, contrast_key
        )
        value = contrast_weight * contrasted
        if warp_weight > 0:
            apart, moving = equivariance(streams, passes, moving, warp_key)
            value += warp_weight * apart
            metrics["equivariance"] = apart
        student, teacher = (
            averaged(features, pool_cells) for features in (rest.features, said_u[1])
        )
        pool = own["pool"]
        far = tail.neighbour_distance(
            student, teacher, pool.rows["key"], bank.there(pool), neighbours=neighbours
        ).mean()
        value += neighbour_weight * far
        metrics["neighbour_distance"] = far
        pool = bank.pushed(pool, key=parallel.all_gather(teacher, axis_name))
        return Said(value, {"banks": banks, "pool": pool}, moving, metrics)

    return Term(init, loss)


def percent_at(step: Array, *, first: float, steps: int) -> Array:
    """From `first` at step 0 to 0 at `steps` and beyond, in a straight line."""
    return first * jnp.maximum(1 - step / steps, 0.0)


class Pixels(NamedTuple):
    """Pixels that have features, in one row.

    Attributes:
        features: [N, D] float, the student's.
        taught: [N, D] float, the teacher's.
        label: [N] integer class ids in 0..K; K is none.
        is_labelled: [N] bool, whether it is no pseudo-label.
        entropy: [N] float, of the student, without gradient.
        taught_probs: [N, K] float, the teacher's.
    """

    features: Array
    taught: Array
    label: Array
    is_labelled: Array
    entropy: Array
    taught_probs: Array


def embedded(
    stream: Stream,
    taught_logits: Array,
    taught: Array,
    *,
    stride: int,
    is_labelled: bool,
) -> Pixels:
    """Those of a stream.

    Args:
        stream: of this device.
        taught_logits: [B, H, W, K] float, the teacher's.
        taught: [B, H / stride, W / stride, D] float, its features.
        stride: pixels from one with features to the next.
        is_labelled: whether the labels are no pseudo-labels.
    """
    label = stream.label[:, ::stride, ::stride].reshape(-1)
    probs, taught_probs = (
        in_one_row(jax.nn.softmax(jax.lax.stop_gradient(x[:, ::stride, ::stride])))
        for x in (stream.logits, taught_logits)
    )
    return Pixels(
        features=in_one_row(stream.features),
        taught=in_one_row(taught),
        label=label,
        is_labelled=jnp.full(label.shape, is_labelled),
        entropy=tail.entropy(probs),
        taught_probs=taught_probs,
    )


def averaged(features: Array, cells: int) -> Array:
    """Means over a grid of cells, as a vector; cells of a side overlap or not by one.

    Args:
        features: [B, h, w, D] float.
        cells: along an axis, less where there are fewer pixels.

    Returns:
        [B, cells * cells * D] float32, of any length.
    """
    rows, columns = (
        jnp.asarray(_means(size, min(cells, size)), jnp.float32)
        for size in features.shape[1:3]
    )
    features = features.astype(jnp.float32)
    coarse = jnp.einsum("ih,bhwd,jw->bijd", rows, features, columns)
    return coarse.reshape(len(features), -1)


def _means(size: int, cells: int) -> np.ndarray:
    """[cells, size] weights of the pixels floor(i size / cells) up to ceil(...)."""
    cell, pixel = np.arange(cells)[:, None], np.arange(size)[None]
    first, end = cell * size // cells, -(-(cell + 1) * size // cells)
    inside = (first <= pixel) & (pixel < end)
    return inside / inside.sum(axis=1, keepdims=True)
