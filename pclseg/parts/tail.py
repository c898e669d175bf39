"""The term of a loss that contrasts sure pixels with banks of other classes.

You et al. 2022, arXiv 2209.13476 (MONA), and 2023, arXiv 2302.01735 (ARCO).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pclseg.losses import tail
from pclseg.losses.contrastive import unit_length
from pclseg.methods.base import Array
from pclseg.parts import bank
from pclseg.parts.collapse import spread
from pclseg.parts.pixels import joined, pixels_of, shape_of_all
from pclseg.parts.pseudo_labels import Student, Term, TermResult
from pclseg.parts.sampler import check_sampler, draw_of
from pclseg.parts.settings import require
from pclseg.parts.streams import Stream
from pclseg.state import Tree


def tail_term(
    *,
    model: Any,
    axis_name: str | None,
    contrast_weight: float,
    contrast_temperature: float,
    num_queries: int,
    num_negatives: int,
    sampler: str,
    sampler_cells: Sequence[int],
    query_threshold: float,
    key_threshold: float,
    key_rule: str,
    entropy_of: str,
    entropy_percent: float,
    entropy_steps: int,
    bank_size: int,
    keys_per_step: int,
) -> Term:
    """contrast_weight * L_contrast, `tail_contrast` of the pixels of both streams.

    Pixels of which a network is sure stand against the teacher's mean of their class,
    and a bank, a class each, of what the teacher said of pixels that are not of it,
    `candidates`; it takes those of a step before the loss.

    Args:
        model: that of `pseudo_labelled`.
        axis_name: of the pmapped step, or None.
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
        entropy_of: "student", as in the authors' code, or "teacher": whose entropy says
            of which pixels it is sure.
        entropy_percent: share of unlabelled pixels, in percent, that count as sure, and
            as unsure, at first; it falls to 0 in a straight line.
        entropy_steps: when it is 0: the steps of the stage.
        bank_size: entries of a class.
        keys_per_step: of a class, that enter the bank at most.

    Raises:
        UserError: a setting out of its range.
    """
    require("contrast_weight", contrast_weight, ">= 0", contrast_weight >= 0)
    holds = contrast_temperature > 0
    require("contrast_temperature", contrast_temperature, "> 0", holds)
    for name, number in (
        ("num_queries", num_queries),
        ("num_negatives", num_negatives),
        ("entropy_steps", entropy_steps),
        ("bank_size", bank_size),
        ("keys_per_step", keys_per_step),
    ):
        require(name, number, "1 or more", number >= 1)
    for name, threshold in (
        ("query_threshold", query_threshold),
        ("key_threshold", key_threshold),
    ):
        require(name, threshold, "0..1", 0 <= threshold <= 1)
    holds = 0 <= entropy_percent <= 50
    require("entropy_percent", entropy_percent, "0..50", holds)
    known = key_rule in tail.RULES
    require("key_rule", repr(key_rule), f"one of: {', '.join(tail.RULES)}", known)
    known = entropy_of in ("student", "teacher")
    require("entropy_of", repr(entropy_of), "one of: student, teacher", known)
    check_sampler(sampler, sampler_cells, num_queries)

    def init(features: Array) -> Tree:
        one = bank.empty(bank_size, key=jnp.zeros(features.shape[-1]))
        if key_rule == "code":  # one row of zeros is there from the start
            one = one._replace(filled=jnp.int32(1), next=jnp.int32(1 % bank_size))
        return {
            "banks": jax.tree.map(lambda x: jnp.stack([x] * model.num_classes), one)
        }

    def loss(
        labelled: Stream,
        rest: Stream,
        student: Student,
        model_state: Tree,
        own: Tree,
        step: Array,
        key: Array,
    ) -> TermResult:
        del student
        pixel_key, draw_key = jax.random.split(key)
        known, others = (
            pixels_of(stream, stride=model.stride, axis_name=axis_name)
            for stream in (labelled, rest)
        )
        pixels = joined(known, others)
        taught_probs, taught = pixels.taught
        chosen = tail.candidates(
            pixels.label,
            jnp.arange(len(pixels.label)) < len(known.label),
            tail.entropy(taught_probs if entropy_of == "teacher" else pixels.probs),
            taught_probs,
            percent=percent_at(step, first=entropy_percent, steps=entropy_steps),
            query_threshold=query_threshold,
            key_threshold=key_threshold,
            rule=key_rule,
        )
        number = min(keys_per_step, len(pixels.label))
        new, there = tail.some_of(chosen.keys, pixel_key, number)
        banks = jax.vmap(
            lambda one, valid, key: bank.pushed(one, valid=valid, key=key)
        )(own["banks"], there, taught[new])
        shapes = [shape_of_all(x.features, axis_name) for x in (labelled, rest)]
        value = tail.tail_contrast(
            pixels.features,
            taught,
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
            "embedding_std": spread(unit_length(pixels.features), None),
        }
        return TermResult(value, {"banks": banks}, model_state, metrics)

    return Term(
        contrast_weight, init, loss, teacher_sees=frozenset({"labelled", "rest"})
    )


def percent_at(step: Array, *, first: float, steps: int) -> Array:
    """From `first` at step 0 to 0 at `steps` and beyond, in a straight line."""
    return first * jnp.maximum(1 - step / steps, 0.0)
