"""Segmentation with pseudo-labels of an EMA teacher and contrast of pixels.

Stage iii of You et al. 2023, arXiv 2206.02307 (ACTION), on which ACTION++ builds.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pclseg import parallel
from pclseg.augment import Augment, sample_keys
from pclseg.batch import UNLABELLED
from pclseg.errors import UserError
from pclseg.losses.anatomical import anatomical_contrast
from pclseg.losses.distillation import confident_share
from pclseg.losses.segmentation import pixel_cross_entropy
from pclseg.methods.base import Array, Aux, Batch, Method
from pclseg.parts import ema, segmenter
from pclseg.parts.passes import train_pass
from pclseg.parts.settings import require
from pclseg.parts.strong import MIXES, mix, strong_view
from pclseg.parts.supervision import labelled_loss
from pclseg.parts.temperature import schedule
from pclseg.state import TrainState, Tree


class LabelledPixels(NamedTuple):
    """The labelled pixels of the global batch that are embedded, in one row.

    Attributes:
        features: [N, D] float, the student's, of any length.
        taught: [N, D] float, the teacher's.
        label: [N] integer class ids in 0..K-1.
        prob: [N] float32, the student's probability of that class.
    """

    features: Array
    taught: Array
    label: Array
    prob: Array


class LabelledContrast(NamedTuple):
    """A further loss of labelled pixels, with a state of its own.

    Attributes:
        init: (D, dimension of the features, K) -> its state, a dict.
        loss: (pixels, its state, step, key) -> (scalar, state after it, metrics).
    """

    init: Callable[[int, int], Tree]
    loss: Callable[
        [LabelledPixels, Tree, Array, Array], tuple[Array, Tree, dict[str, Array]]
    ]


def pseudo_labelled(
    *,
    model: Any,
    augment: Augment,
    axis_name: str | None,
    labelled_contrast: LabelledContrast | None,
    strong: Mapping[str, Any],
    mix_mode: str,
    pseudo_weight: float,
    pseudo_pixels: str,
    contrast_weight: float,
    contrast_temperature: Sequence[float],
    temperature_period: int,
    num_anchors: int,
    num_negatives: int,
    sure_threshold: float,
    hard_threshold: float,
    teacher_momentum: float,
    teacher_mode: str,
) -> Method:
    """The method shared by ACTION and ACTION++, which differ in `labelled_contrast`.

    L_sup + pseudo_weight * L_unsup + contrast_weight * L_anco (+ labelled contrast):

    - L_sup, `labelled_loss`, half Dice, of labelled slices as `augment` moves them;
    - L_unsup, cross entropy of the strong views of unlabelled slices against the
      teacher's labels of the weak ones, each slice weighed by the share of its pixels
      of which the teacher is sure, `hard_threshold` or more;
    - L_anco, `anatomical_contrast` of the pixels of both; those of unlabelled slices
      count whose confidence is `sure_threshold` or more; hard are those to whose class
      the student gives less than `hard_threshold`.

    Labelled and unlabelled slices go through the student one after the other, each
    normalised by their own batch. Gradient reaches the student only.

    Args:
        model: "unet2d_dense", with `dense`: images -> logits, features of pixels.
        augment: moves images, and labels alike.
        axis_name: of the pmapped step, or None.
        labelled_contrast: of labelled pixels, or None.
        strong: settings of the augmentation that makes the strong view.
        mix_mode: of `strong.MIXES`, before it.
        pseudo_weight: >= 0.
        pseudo_pixels: "all", L_unsup is a mean over all pixels with a pseudo-label, or
            "wrong", over those whose cross entropy is not 0 in float32, as in the
            authors' code.
        contrast_weight: >= 0.
        contrast_temperature: of L_anco, see `temperature.schedule`.
        temperature_period: in steps.
        num_anchors: of a class and step.
        num_negatives: of an anchor.
        sure_threshold: theta_w of the paper.
        hard_threshold: theta_s.
        teacher_momentum: of the teacher, in [0, 1).
        teacher_mode: "eval" or "train", see `ema`.

    Raises:
        UserError: a setting out of its range.
    """
    require(
        "mix_mode", repr(mix_mode), f"one of: {', '.join(MIXES)}", mix_mode in MIXES
    )
    require("pseudo_weight", pseudo_weight, ">= 0", pseudo_weight >= 0)
    known = pseudo_pixels in ("all", "wrong")
    require("pseudo_pixels", repr(pseudo_pixels), "'all' or 'wrong'", known)
    require("contrast_weight", contrast_weight, ">= 0", contrast_weight >= 0)
    require("num_anchors", num_anchors, "1 or more", num_anchors >= 1)
    require("num_negatives", num_negatives, "1 or more", num_negatives >= 1)
    for name, threshold in (
        ("sure_threshold", sure_threshold),
        ("hard_threshold", hard_threshold),
    ):
        require(name, threshold, "0..1", 0 <= threshold <= 1)
    ema.check_teacher(momentum=teacher_momentum, mode=teacher_mode)
    strengthen = strong_view(strong)
    temperature_at = schedule(
        "contrast_temperature", contrast_temperature, period=temperature_period
    )

    def init(key: Array, batch: Batch) -> tuple[Tree, Tree, Tree]:
        if not hasattr(model, "dense"):
            raise UserError(
                f"the model {type(model).__name__} does not embed pixels; use"
                " model.name='unet2d_dense'."
            )
        (_, features), variables = model.init_with_output(
            key, batch["image"], train=False, method="dense"
        )
        params = variables["params"]
        model_state = {"batch_stats": variables["batch_stats"]}
        method_state = {"teacher": ema.copy_of(params, model_state)}
        if labelled_contrast:
            own = labelled_contrast.init(features.shape[-1], model.num_classes)
            method_state["labelled_contrast"] = own
        return params, model_state, method_state

    def pseudo_labels(
        teacher: Tree, weak: Array, keys: tuple[Array, Array], key: Array
    ) -> tuple[tuple[Array, Array, Array], Tree]:
        """The strong view, its labels and their confidences; the teacher after it."""
        mix_keys, strong_keys = keys
        logits, teacher = ema.teacher_pass(
            model, teacher, weak, key=key, number=2, mode=teacher_mode
        )
        probs = jax.nn.softmax(logits)
        seen, label, confidence = mix(
            mix_mode,
            mix_keys,
            weak,
            probs.argmax(axis=-1),
            probs.max(axis=-1),
            num_classes=model.num_classes,
            axis_name=axis_name,
        )
        seen, _ = strengthen(strong_keys, seen, None)
        return (seen, label, confidence), teacher

    def loss(
        params: Tree, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Aux]:
        weak_key, rest_key, mix_key, strong_key, pixel_key = jax.random.split(key, 5)
        rows = parallel.row_ids(len(batch["image"]), axis_name)
        images, labels = augment(
            sample_keys(weak_key, rows), batch["image"], batch["label"]
        )
        unlabelled = batch[f"{UNLABELLED}image"]
        rows = parallel.row_ids(len(unlabelled), axis_name)
        weak, _ = augment(sample_keys(rest_key, rows), unlabelled, None)
        (seen, pseudo, confidence), teacher = pseudo_labels(
            state.method_state["teacher"],
            weak,
            (sample_keys(mix_key, rows), sample_keys(strong_key, rows)),
            key,
        )
        dense_pass = functools.partial(
            train_pass, model, params, key=key, method="dense"
        )
        (logits, features), model_state = dense_pass(
            state.model_state, images, number=0
        )
        (logits_u, features_u), model_state = dense_pass(model_state, seen, number=1)

        supervised, metrics = labelled_loss(
            logits, labels, dice_weight=0.5, axis_name=axis_name
        )
        valid = pseudo < model.num_classes
        unsupervised = pseudo_cross_entropy(
            logits_u,
            pseudo,
            valid,
            confident_share(confidence, valid, threshold=hard_threshold),
            count_zeros=pseudo_pixels == "all",
            axis_name=axis_name,
        )
        temperature = temperature_at(state.step)
        sure = valid & (confidence >= sure_threshold)
        pixels, pixels_u = (
            embedded_pixels(*of_stream, stride=model.stride, axis_name=axis_name)
            for of_stream in (
                (features, logits, labels),
                (features_u, logits_u, jnp.where(sure, pseudo, model.num_classes)),
            )
        )
        joined = [jnp.concatenate(pair) for pair in zip(pixels, pixels_u, strict=True)]
        contrast_key, labelled_key = jax.random.split(pixel_key)
        contrast = anatomical_contrast(
            joined[0],
            joined[1],
            joined[2] < hard_threshold,
            contrast_key,
            num_classes=model.num_classes,
            num_anchors=num_anchors,
            num_negatives=num_negatives,
            temperature=temperature,
        )
        value = supervised + pseudo_weight * unsupervised + contrast_weight * contrast
        metrics |= {
            "pseudo_cross_entropy": unsupervised,
            "sure_pixels": sure.mean(),
            "anatomical_contrast": contrast,
            "contrast_temperature": temperature,
        }
        method_state = {"teacher": teacher}
        if labelled_contrast:
            (_, taught), teacher = ema.teacher_pass(
                model,
                teacher,
                images,
                key=key,
                number=3,
                mode=teacher_mode,
                method="dense",
            )
            own = LabelledPixels(
                features=pixels[0],
                taught=parallel.all_gather(in_one_row(taught), axis_name),
                label=pixels[1],
                prob=pixels[2],
            )
            more, kept, said = labelled_contrast.loss(
                own, state.method_state["labelled_contrast"], state.step, labelled_key
            )
            value, metrics = value + more, {**metrics, **said}
            method_state = {"teacher": teacher, "labelled_contrast": kept}
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


def embedded_pixels(
    features: Array, logits: Array, label: Array, *, stride: int, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """The pixels that have features, of all devices, in one row.

    Args:
        features: [B, H / stride, W / stride, D] float.
        logits: [B, H, W, K] float.
        label: [B, H, W] integer class ids in 0..K; K is none.
        stride: pixels from one with features to the next.
        axis_name: of the pmapped step, or None.

    Returns:
        Features [N, D], labels [N], and [N] float32, the probability that the logits
        give to the label, without gradient; 0 of none.
    """
    label = label[:, ::stride, ::stride]
    probs = jax.nn.softmax(jax.lax.stop_gradient(logits[:, ::stride, ::stride]))
    index = label[..., None].astype(jnp.int32)
    prob = jnp.take_along_axis(probs, index, axis=-1, mode="fill", fill_value=0)
    rows = in_one_row(features), label.reshape(-1), prob.reshape(-1)
    return parallel.all_gather(rows, axis_name)


def in_one_row(features: Array) -> Array:
    """[B, H, W, D] -> [B H W, D]."""
    return features.reshape(-1, features.shape[-1])
