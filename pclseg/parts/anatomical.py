"""The term of a loss that contrasts the pixels of both streams by their class."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from pclseg.losses.anatomical import anatomical_contrast
from pclseg.methods.base import Array
from pclseg.parts.pixels import joined, pixels_of, prob_of_label, shape_of_all
from pclseg.parts.pseudo_labels import Student, Term, TermResult, stateless
from pclseg.parts.sampler import check_sampler, draw_of
from pclseg.parts.settings import require
from pclseg.parts.streams import Stream
from pclseg.parts.temperature import schedule
from pclseg.state import Tree


def anatomical_term(
    *,
    model: Any,
    axis_name: str | None,
    contrast_weight: float,
    contrast_temperature: Sequence[float],
    temperature_period: int,
    num_anchors: int,
    num_negatives: int,
    sampler: str,
    sampler_cells: Sequence[int],
    sure_threshold: float,
    hard_threshold: float,
) -> Term:
    """contrast_weight * L_anco, `anatomical_contrast` of the pixels of both streams.

    Those of unlabelled slices count whose confidence is `sure_threshold` or more; hard,
    and so possible anchors, are those to whose class the student gives less than
    `hard_threshold`.

    Args:
        model: that of `pseudo_labelled`.
        axis_name: of the pmapped step, or None.
        contrast_weight: >= 0.
        contrast_temperature: of L_anco, see `temperature.schedule`.
        temperature_period: in steps.
        num_anchors: of a class and step.
        num_negatives: of an anchor.
        sampler: how anchors are drawn, of `sampler.SAMPLERS`.
        sampler_cells: (rows, columns) of its grid on a slice, see `sampler.draw_of`.
        sure_threshold: theta_w of the paper.
        hard_threshold: theta_s.

    Raises:
        UserError: a setting out of its range.
    """
    require("contrast_weight", contrast_weight, ">= 0", contrast_weight >= 0)
    require("num_anchors", num_anchors, "1 or more", num_anchors >= 1)
    require("num_negatives", num_negatives, "1 or more", num_negatives >= 1)
    require("sure_threshold", sure_threshold, "0..1", 0 <= sure_threshold <= 1)
    check_sampler(sampler, sampler_cells, num_anchors)
    temperature_at = schedule(
        "contrast_temperature", contrast_temperature, period=temperature_period
    )

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
        sure = (rest.label < model.num_classes) & (rest.confidence >= sure_threshold)
        rest = rest._replace(label=jnp.where(sure, rest.label, model.num_classes))
        known, others = (
            # Another term may have had the teacher asked of one stream alone; `joined`
            # wants the same of both.
            pixels_of(
                stream._replace(taught=()), stride=model.stride, axis_name=axis_name
            )
            for stream in (labelled, rest)
        )
        pixels = joined(known, others)
        temperature = temperature_at(step)
        shapes = [shape_of_all(x.features, axis_name) for x in (labelled, rest)]
        contrast = anatomical_contrast(
            pixels.features,
            pixels.label,
            prob_of_label(pixels) < hard_threshold,
            key,
            num_classes=model.num_classes,
            num_anchors=num_anchors,
            num_negatives=num_negatives,
            temperature=temperature,
            draw=draw_of(sampler, sampler_cells, shapes),
        )
        metrics = {
            "sure_pixels": sure.mean(),
            "anatomical_contrast": contrast,
            "contrast_temperature": temperature,
        }
        return TermResult(contrast, own, model_state, metrics)

    return Term(contrast_weight, stateless, loss)
