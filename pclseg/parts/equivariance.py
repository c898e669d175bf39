"""The term of a loss that asks warped slices for warped predictions.

You et al. 2022, arXiv 2209.13476 (MONA).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.augment import sample_keys
from pclseg.losses.distillation import masked_kl
from pclseg.methods.base import Array
from pclseg.parts.pseudo_labels import Student, Term, TermResult, stateless
from pclseg.parts.settings import require
from pclseg.parts.streams import Stream
from pclseg.parts.strong import strong_view
from pclseg.parts.warp import draw_warps, make_warp, warped
from pclseg.state import Tree


def equivariance_term(
    *,
    axis_name: str | None,
    strong: Mapping[str, Any],
    warp_weight: float,
    warp: Mapping[str, Any],
    sure_threshold: float,
) -> Term:
    """warp_weight * L_eqv, `masked_kl` of slices and their warps.

    What the student says of warped slices, the unlabelled ones in another strong view,
    stands against what it says of them as they are, warped alike, without gradient; on
    pixels that are not background and sure. The two streams pass one after the other,
    as they do unwarped.

    Args:
        axis_name: of the pmapped step, or None.
        strong: that of `pseudo_labelled`.
        warp_weight: >= 0.
        warp: settings of the warp: degrees, scale, shift, jitter, mirror_probability.
        sure_threshold: confidence from which on a pixel counts.

    Raises:
        UserError: a setting out of its range.
    """
    require("warp_weight", warp_weight, ">= 0", warp_weight >= 0)
    require("sure_threshold", sure_threshold, "0..1", 0 <= sure_threshold <= 1)
    strengthen, ranges = strong_view(strong), make_warp(warp)

    def loss(
        labelled: Stream,
        rest: Stream,
        student: Student,
        model_state: Tree,
        own: Tree,
        step: Array,
        key: Array,
    ) -> TermResult:
        del step
        height, width = rest.label.shape[1:]
        strong_key, all_key, labelled_key, rest_key = jax.random.split(key, 4)
        rows = parallel.row_ids(len(rest.images), axis_name)
        seen, _ = strengthen(sample_keys(strong_key, rows), rest.before, None)
        values = []
        # Each by itself: rows are then those of its stream on every device.
        for number, stream, images, stream_key in (
            (5, labelled, labelled.images, labelled_key),
            (6, rest, seen, rest_key),
        ):
            rows = parallel.row_ids(len(images), axis_name)
            keys = sample_keys(stream_key, rows)
            where = draw_warps(ranges, all_key, keys, (height, width))
            logits, model_state = student(model_state, warped(images, where), number)
            is_object = (stream.label > 0) & (stream.label < stream.logits.shape[-1])
            sure = is_object & (stream.confidence >= sure_threshold)
            known = jax.lax.stop_gradient(stream.logits)
            mask = sure[..., None].astype(known.dtype)
            there = warped(jnp.concatenate([known, mask], axis=-1), where)
            values.append(masked_kl(there[..., :-1], logits, there[..., -1]))
        value = jnp.concatenate(values).mean()
        return TermResult(value, own, model_state, {"equivariance": value})

    return Term(warp_weight, stateless, loss)
