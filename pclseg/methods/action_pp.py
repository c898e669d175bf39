"""ACTION++: ACTION, and labelled pixels pulled to centres of their classes.

You et al. 2023, arXiv 2304.02689. All temperatures may rise and fall (`schedule`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from pclseg.augment import Augment
from pclseg.losses.centres import (
    assigned_centres,
    centre_contrast,
    moved_means,
    simplex_centres,
    solved_centres,
)
from pclseg.losses.contrastive import unit_length
from pclseg.losses.sampling import Draw
from pclseg.methods.base import Array, Method
from pclseg.parts import bank
from pclseg.parts.anatomical import anatomical_term
from pclseg.parts.pixels import pixels_of, prob_of_label, shape_of_all
from pclseg.parts.pseudo_labels import (
    Stream,
    Student,
    Term,
    TermResult,
    pseudo_labelled,
)
from pclseg.parts.sampler import check_sampler, draw_of
from pclseg.parts.settings import require
from pclseg.parts.temperature import schedule
from pclseg.state import Tree

MODES = ("mean", "code", "paper")
_UNIFORMITY = 0.5  # at this temperature descent comes to the simplex, where one fits


def make(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    strong: Mapping[str, Any],
    mix_mode: str,
    pseudo_weight: float,
    pseudo_pixels: str,
    contrast_weight: float,
    contrast_temperature: Sequence[float],
    temperature_period: int,
    num_anchors: int,
    num_negatives: int,
    sampler: str,
    sampler_cells: Sequence[int],
    sure_threshold: float,
    hard_threshold: float,
    teacher_momentum: float,
    teacher_mode: str,
    labelled_weight: float,
    labelled_temperature: Sequence[float],
    labelled_anchors: int,
    anchors_below: float,
    bank_size: int,
    centre_weight: float,
    centre_mode: str,
    centres: str,
    centre_seed: int,
    mean_rate: float,
) -> Method:
    """The loss of ACTION + labelled_weight * L_aaco.

    The arguments are those of `pseudo_labelled`, `anatomical_term` and
    `centre_term`; the model is "unet2d_dense".
    """
    contrast = anatomical_term(
        model=model,
        axis_name=axis_name,
        contrast_weight=contrast_weight,
        contrast_temperature=contrast_temperature,
        temperature_period=temperature_period,
        num_anchors=num_anchors,
        num_negatives=num_negatives,
        sampler=sampler,
        sampler_cells=sampler_cells,
        sure_threshold=sure_threshold,
        hard_threshold=hard_threshold,
    )
    centred = centre_term(
        model=model,
        axis_name=axis_name,
        sampler=sampler,
        sampler_cells=sampler_cells,
        labelled_weight=labelled_weight,
        labelled_temperature=labelled_temperature,
        temperature_period=temperature_period,
        labelled_anchors=labelled_anchors,
        anchors_below=anchors_below,
        bank_size=bank_size,
        centre_weight=centre_weight,
        centre_mode=centre_mode,
        centres=centres,
        centre_seed=centre_seed,
        mean_rate=mean_rate,
    )
    return pseudo_labelled(
        model=model,
        augment=augment,
        axis_name=axis_name,
        terms={"anatomical_contrast": contrast, "labelled_contrast": centred},
        supervised_weight=1.0,
        strong=strong,
        mix_mode=mix_mode,
        pseudo_weight=pseudo_weight,
        pseudo_pixels=pseudo_pixels,
        hard_threshold=hard_threshold,
        teacher_momentum=teacher_momentum,
        teacher_mode=teacher_mode,
    )


def centre_term(
    *,
    model: Any,
    axis_name: str | None,
    sampler: str,
    sampler_cells: Sequence[int],
    labelled_weight: float,
    labelled_temperature: Sequence[float],
    temperature_period: int,
    labelled_anchors: int,
    anchors_below: float,
    bank_size: int,
    centre_weight: float,
    centre_mode: str,
    centres: str,
    centre_seed: int,
    mean_rate: float,
) -> Term:
    """labelled_weight * L_aaco, supervised adaptive anatomical contrast.

    L_aaco is `centre_contrast`: anchors are labelled pixels of the student; own keys
    and the bank are what the teacher says of the same and of earlier ones. Class means
    move, centres are assigned to them, the loss is taken, then the bank takes the keys.

    Args:
        model: that of `pseudo_labelled`.
        axis_name: of the pmapped step, or None.
        sampler: how anchors are drawn, of `sampler.SAMPLERS`.
        sampler_cells: (rows, columns) of its grid on a slice, see `sampler.draw_of`.
        labelled_weight: lambda_sa, >= 0.
        labelled_temperature: of L_aaco, see `temperature.schedule`.
        temperature_period: in steps.
        labelled_anchors: of a class that is there, and step.
        anchors_below: anchors are drawn from pixels to whose class the student gives
            less than this; more than 1 for all pixels.
        bank_size: entries, of all classes together.
        centre_weight: lambda_a, of the centres, >= 0.
        centre_mode: "mean", "code" or "paper", see `centre_contrast`.
        centres: "simplex", in closed form, or "solved", by descent; the latter also
            where there are more classes than dimensions + 1.
        centre_seed: of the rotation of the simplex, or of where descent begins.
        mean_rate: of the class means, in (0, 1].

    Raises:
        UserError: a setting out of its range.
    """
    require("labelled_weight", labelled_weight, ">= 0", labelled_weight >= 0)
    require("labelled_anchors", labelled_anchors, "1 or more", labelled_anchors >= 1)
    require("anchors_below", anchors_below, "> 0", anchors_below > 0)
    require("bank_size", bank_size, "1 or more", bank_size >= 1)
    require("centre_weight", centre_weight, ">= 0", centre_weight >= 0)
    known = centre_mode in MODES
    require("centre_mode", repr(centre_mode), f"one of: {', '.join(MODES)}", known)
    known = centres in ("simplex", "solved")
    require("centres", repr(centres), "'simplex' or 'solved'", known)
    require("centre_seed", centre_seed, "0 or more", centre_seed >= 0)
    require("mean_rate", mean_rate, "0 < rate <= 1", 0 < mean_rate <= 1)
    check_sampler(sampler, sampler_cells, labelled_anchors)
    temperature_at = schedule(
        "labelled_temperature", labelled_temperature, period=temperature_period
    )

    def init(features: Array) -> Tree:
        num_classes, dim = model.num_classes, features.shape[-1]
        return {
            "centres": class_centres(centres, num_classes, dim, seed=centre_seed),
            "means": jnp.zeros((num_classes, dim)),
            "seen": jnp.zeros(num_classes, bool),
            "assigned": jnp.arange(num_classes, dtype=jnp.int32),
            "bank": bank.empty(bank_size, key=jnp.zeros(dim), label=jnp.int32(0)),
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
        del rest, student
        num_classes = model.num_classes
        pixels = pixels_of(labelled, stride=model.stride, axis_name=axis_name)
        _, taught = pixels.taught
        shape = shape_of_all(labelled.features, axis_name)
        drawn, label = draw_anchors(
            draw_of(sampler, sampler_cells, [shape]),
            jnp.where(prob_of_label(pixels) < anchors_below, pixels.label, num_classes),
            key,
            num_classes=num_classes,
            number=labelled_anchors,
        )
        anchors, keys = (
            unit_length(features[drawn]) for features in (pixels.features, taught)
        )
        means, seen = moved_means(
            own["means"],
            own["seen"],
            anchors,
            jnp.where(label < 0, num_classes, label),
            rate=mean_rate,
        )
        assigned = assigned_centres(means, own["centres"])
        stored = own["bank"]
        temperature = temperature_at(step)
        terms = centre_contrast(
            anchors,
            keys,
            label,
            stored.rows["key"],
            stored.rows["label"],
            bank.there(stored),
            own["centres"],
            assigned,
            temperature=temperature,
            centre_weight=centre_weight,
            mode=centre_mode,
        )
        after = {
            "centres": own["centres"],
            "means": means,
            "seen": seen,
            "assigned": assigned,
            "bank": bank.pushed(stored, valid=label >= 0, key=keys, label=label),
        }
        metrics = {
            "class_contrast": terms.to_class,
            "centre_contrast": terms.to_centre,
            "centres_moved": (assigned != own["assigned"]).mean(),
            "labelled_temperature": temperature,
        }
        value = terms.to_class + terms.to_centre
        return TermResult(value, after, model_state, metrics)

    return Term(labelled_weight, init, loss, teacher_sees=frozenset({"labelled"}))


def class_centres(how: str, num_classes: int, dim: int, *, seed: int) -> Array:
    """[K, D] float32: `simplex_centres` where asked for and possible, else solved."""
    if how == "simplex" and dim >= num_classes - 1:
        return jnp.asarray(simplex_centres(num_classes, dim, seed=seed), jnp.float32)
    return solved_centres(num_classes, dim, temperature=_UNIFORMITY, seed=seed)


def draw_anchors(
    draw: Draw, label: Array, key: Array, *, num_classes: int, number: int
) -> tuple[Array, Array]:
    """Pixels of every class, with replacement.

    Args:
        draw: of them.
        label: [N] integer in 0..K; K may not be drawn.
        key: random.
        num_classes: K.
        number: n, of a class.

    Returns:
        [K n] int32 pixels and [K n] int32 labels; -1 of a class without pixels.
    """
    drawn = draw(label, key, num_classes, number)
    label = jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), number)
    return drawn.pixels.reshape(-1), jnp.where(drawn.count[label] > 0, label, -1)
