"""Segmentation with pseudo-labels of an EMA teacher, and terms that methods add.

Stage iii of You et al. 2023, arXiv 2206.02307 (ACTION), on which ACTION++, MONA and
ARCO build: they differ in their terms.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.augment import Augment
from pclseg.batch import UNLABELLED
from pclseg.errors import UserError
from pclseg.losses.distillation import confident_share
from pclseg.losses.segmentation import pixel_cross_entropy
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts import ema, segmenter
from pclseg.parts.passes import train_pass
from pclseg.parts.settings import require
from pclseg.parts.streams import Stream, show
from pclseg.parts.strong import MIXES, strong_view
from pclseg.parts.supervision import labelled_loss
from pclseg.state import TrainState, Tree

_FEW = 0.1  # of the share that a class has of labelled pixels


class TermResult(NamedTuple):
    """What a term comes to.

    Attributes:
        value: scalar, before its weight; averaged over devices.
        own: the term's state after the step, equal on all devices.
        model_state: the student's after the passes of the term.
        metrics: float scalars to log.
    """

    value: Array
    own: Tree
    model_state: Tree
    metrics: dict[str, Array]


# A further pass of the student: (model state, images, number) -> (logits, model state
# after it). No other pass of the step has its number; 0 to 4 are taken.
Student = Callable[[Tree, Array, int], tuple[Array, Tree]]


class Term(NamedTuple):
    """A further term of the loss, perhaps with a state.

    Attributes:
        weight: in the loss; a term of weight 0 is not computed, and has no state.
        init: features of a batch [B, h, w, D] -> its state, a dict.
        loss: (labelled, rest, student, model state, own state, step, key) -> what it
            comes to.
        teacher_sees: the streams of which the term wants to know the teacher's
            `taught`.
    """

    weight: float
    init: Callable[[Array], Tree]
    loss: Callable[[Stream, Stream, Student, Tree, Tree, Array, Array], TermResult]
    teacher_sees: frozenset[Literal["labelled", "rest"]] = frozenset()


def stateless(features: Array) -> Tree:
    """The state of a term without any."""
    del features
    return {}


def pseudo_labelled(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    terms: Mapping[str, Term],
    supervised_weight: float,
    strong: Mapping[str, Any],
    mix_mode: str,
    pseudo_weight: float,
    pseudo_pixels: str,
    hard_threshold: float,
    teacher_momentum: float,
    teacher_mode: str,
) -> Method:
    """The method shared by ACTION, ACTION++ and MONA, which differ in their terms.

    supervised_weight * L_sup + pseudo_weight * L_unsup + terms:

    - L_sup, `labelled_loss`, half Dice, of labelled slices as `augment` moves them;
    - L_unsup, cross entropy of the strong views of unlabelled slices against the
      teacher's labels of the weak ones, each slice weighed by the share of its pixels
      of which the teacher is sure, `hard_threshold` or more.

    Labelled and unlabelled slices go through the student one after the other, each
    normalised by their own batch. Gradient reaches the student only.

    Args:
        model: with `dense`: images -> logits, features of pixels, as the student says
            them; and `taught`, as the teacher does.
        augment: moves images, and labels alike.
        axis_name: of the pmapped step, or None.
        terms: by the name of their state.
        supervised_weight: >= 0.
        strong: settings of the augmentation that makes the strong view.
        mix_mode: of `strong.MIXES`, before it.
        pseudo_weight: >= 0.
        pseudo_pixels: "all", L_unsup is a mean over all pixels with a pseudo-label, or
            "wrong", over those whose cross entropy is not 0 in float32, as in the
            authors' code.
        hard_threshold: theta_s of the paper.
        teacher_momentum: of the teacher, in [0, 1).
        teacher_mode: "eval" or "train", see `ema`.

    Raises:
        UserError: a setting out of its range.
    """
    holds = mix_mode in MIXES
    require("mix_mode", repr(mix_mode), f"one of: {', '.join(MIXES)}", holds)
    require("supervised_weight", supervised_weight, ">= 0", supervised_weight >= 0)
    require("pseudo_weight", pseudo_weight, ">= 0", pseudo_weight >= 0)
    known = pseudo_pixels in ("all", "wrong")
    require("pseudo_pixels", repr(pseudo_pixels), "'all' or 'wrong'", known)
    require("hard_threshold", hard_threshold, "0..1", 0 <= hard_threshold <= 1)
    ema.check_teacher(momentum=teacher_momentum, mode=teacher_mode)
    strengthen = strong_view(strong)
    teach = functools.partial(ema.teacher_pass, model, mode=teacher_mode)
    # Numbered before some are left out, so that the others draw as they do beside them.
    counted = [
        (number, name, term)
        for number, (name, term) in enumerate(terms.items())
        if term.weight
    ]
    asked = {stream for _, _, term in counted for stream in term.teacher_sees}

    def init(key: Array, batch: Batch) -> tuple[Tree, Tree, Tree]:
        if not hasattr(model, "dense"):
            raise UserError(
                f"the model {type(model).__name__} does not embed pixels; use"
                " model.name='unet2d_dense' or 'unet2d_pyramid'."
            )
        (_, features), variables = model.init_with_output(
            key, batch["image"], train=False, method="dense"
        )
        params = variables["params"]
        model_state = {"batch_stats": variables["batch_stats"]}
        method_state = {"teacher": ema.copy_of(params, model_state)}
        own = {name: term.init(features) for _, name, term in counted}
        method_state |= {name: state for name, state in own.items() if state}
        return params, model_state, method_state

    def segmentation_loss(
        labelled: Stream, rest: Stream
    ) -> tuple[Array, dict[str, Array]]:
        supervised, metrics = labelled_loss(
            labelled.logits, labelled.label, dice_weight=0.5, axis_name=axis_name
        )
        valid = rest.label < model.num_classes
        unsupervised = pseudo_cross_entropy(
            rest.logits,
            rest.label,
            valid,
            confident_share(rest.confidence, valid, threshold=hard_threshold),
            count_zeros=pseudo_pixels == "all",
            axis_name=axis_name,
        )
        metrics["pseudo_cross_entropy"] = unsupervised
        metrics |= class_shares("labelled", labelled.label, model.num_classes)
        metrics |= class_shares("pseudo", rest.label, model.num_classes)
        return supervised_weight * supervised + pseudo_weight * unsupervised, metrics

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        *view_keys, term_key = jax.random.split(key, 5)
        teacher = state.method_state["teacher"]
        shown, shown_rest, teacher = show(
            batch,
            tuple(view_keys),
            functools.partial(teach, teacher, key=key, number=2),
            augment=augment,
            strengthen=strengthen,
            mix_mode=mix_mode,
            num_classes=model.num_classes,
            axis_name=axis_name,
        )

        def student(
            model_state: Tree, images: Array, number: int, method: str | None = None
        ) -> tuple[Any, Tree]:
            return train_pass(
                model,
                params,
                model_state,
                images,
                key=key,
                number=number,
                method=method,
            )

        said, model_state = student(state.model_state, shown.images, 0, "dense")
        said_rest, model_state = student(model_state, shown_rest.images, 1, "dense")
        streams = [Stream(*shown, *said), Stream(*shown_rest, *said_rest)]
        for place, name in enumerate(("labelled", "rest")):
            if name in asked:
                taught, teacher = teach(
                    teacher,
                    streams[place].images,
                    key=key,
                    number=3 + place,
                    method="taught",
                )
                streams[place] = streams[place]._replace(taught=taught)
        labelled, rest = streams

        value, metrics = segmentation_loss(labelled, rest)
        method_state = {}
        for number, name, term in counted:
            more, own, model_state, more_metrics = term.loss(
                labelled,
                rest,
                student,
                model_state,
                state.method_state.get(name, {}),
                state.step,
                jax.random.fold_in(term_key, number),
            )
            value += term.weight * more
            metrics |= more_metrics
            if own:
                method_state[name] = own
        method_state["teacher"] = teacher
        return value, Aux(model_state, method_state, metrics)

    def after_step(state: TrainState) -> TrainState:
        return ema.follow(state, decay=teacher_momentum, mode=teacher_mode)

    return Method(
        batch_keys=frozenset({"image", "label", f"{UNLABELLED}image"}),
        init=init,
        loss=loss,
        after_step=after_step,
        predict=functools.partial(segmenter.predict, model),
        also_predict={"teacher": functools.partial(segmenter.predict_teacher, model)},
        diagnose=warn_of_lost_classes,
    )


def class_shares(name: str, label: Array, num_classes: int) -> dict[str, Array]:
    """NAME_share_k: the share of pixels of class k, 1..K-1, among those of any.

    Args:
        name: what the labels are.
        label: [B, H, W] integer class ids in 0..K; K is none.
        num_classes: K.
    """
    number = jnp.maximum((label < num_classes).sum(), 1)
    return {
        f"{name}_share_{kind}": (label == kind).sum() / number
        for kind in range(1, num_classes)
    }


def warn_of_lost_classes(metrics: Mapping[str, float]) -> str | None:
    """A warning when pseudo-labels lack a class, which the network then unlearns."""
    lost = []
    for key, pseudo in metrics.items():
        _, found, kind = key.partition("pseudo_share_")
        known = metrics[f"labelled_share_{kind}"] if found else 0.0
        if pseudo < _FEW * known:
            lost.append(f"class {kind} ({pseudo:.2%} of pixels, of labels {known:.2%})")
    if not lost:
        return None
    return (
        f"the pseudo-labels have almost nothing of {', '.join(lost)}; if it stays so,"
        " the network unlearns it: try to start from weights of PCL, or a lower"
        " method.pseudo_weight."
    )


def pseudo_cross_entropy(
    logits: Array,
    label: Array,
    valid: Array,
    weight: Array,
    *,
    count_zeros: bool,
    axis_name: str | None,
) -> Array:
    """Mean over pixels of weight_b * cross entropy against pseudo-labels.

    Args:
        logits: [B, H, W, K] float.
        label: [B, H, W] integer class ids.
        valid: [B, H, W] bool, pixels that have one.
        weight: [B] float, of the slices.
        count_zeros: whether pixels count whose cross entropy is exactly 0.
        axis_name: of the pmapped step, or None.

    Returns:
        Scalar, whose mean over devices is the mean over valid pixels of the global
        batch; 0 where there is none.
    """
    each = pixel_cross_entropy(logits, jnp.where(valid, label, 0))
    counted = valid if count_zeros else valid & (each > 0)
    total = jnp.where(counted, weight[:, None, None] * each, 0.0).sum()
    number = parallel.all_mean(counted.sum().astype(total.dtype), axis_name)
    return total / jnp.where(number > 0, number, 1.0)
