"""From a config to what runs: every stage, ready to train."""

import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from pclseg import augment, cohort, methods, models, parallel, recorded
from pclseg.batch import KEYS, UNLABELLED
from pclseg.config import settings
from pclseg.data import check_pipeline, slices, splits
from pclseg.data.datasets.base import Dataset
from pclseg.data.plan import Plan
from pclseg.data.tfds_store import CaseInfo
from pclseg.errors import UserError
from pclseg.files import read_json
from pclseg.methods.base import Batch, Method
from pclseg.named import checked_call
from pclseg.state import TrainState
from pclseg.train import optimizer
from pclseg.train.checkpoint import load_state
from pclseg.train.step import init_state
from pclseg.train.transfer import transfer, variables

PRETRAINED = "pretrained.json"  # ends a run that predicts nothing
_UNLABELLED_FROM = "train"  # subset of the stream without labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training, built and not yet run.

    Attributes:
        name: its section of the config.
        config: that section.
        method: what is minimised.
        tx: the optimiser.
        schedule: step -> learning rate.
        channels: of the images.
        plan: which slices each step takes.
        unlabelled: the same for the stream without labels, or None.
        num_steps: of the whole stage.
        key: its random key.
        axis_name: of the pmapped step.
    """

    name: str
    config: ml_collections.ConfigDict
    method: Method
    tx: optax.GradientTransformation
    schedule: Callable[[int], Any]
    channels: int
    plan: Plan
    unlabelled: Plan | None
    num_steps: int
    key: jax.Array
    axis_name: str | None

    def subsets(self) -> tuple[str, ...]:
        """The parts of the split whose images this stage sees."""
        return (
            self.config.data.subset,
            *([_UNLABELLED_FROM] if self.unlabelled else []),
        )

    def label_subsets(self) -> tuple[str, ...]:
        """The parts of the split whose labels this stage sees."""
        learns = "label" in self.method.batch_keys
        return (self.config.data.subset,) if learns else ()

    def remarks(self) -> list[str]:
        """Settings that do not go with the number of steps, a line each."""
        method, warmup = self.config.method, self.config.optimizer.warmup_steps
        said = []
        if warmup > self.num_steps / 2:
            why = "the learning rate stays far below its peak"
            said.append(("optimizer.warmup_steps", warmup, why))
        ramp = method.get("ramp_steps", 0)
        if ramp > self.num_steps:
            why = "the consistency stays below its weight"
            said.append(("method.ramp_steps", ramp, why))
        moving = any(
            name.endswith("_temperature") and np.ptp(value) > 0
            for name, value in method.items()
        )
        for name, counts in (("entropy_steps", True), ("temperature_period", moving)):
            if counts and method.get(name, self.num_steps) != self.num_steps:
                why = "it is meant to be the same number"
                said.append((f"method.{name}", method[name], why))
        steps = f"but there are {self.num_steps} steps"
        return [f"{self.name}: {key} is {n}, {steps}: {why}." for key, n, why in said]

    def example(self, num_rows: int | None = None) -> Batch:
        """A batch for shapes: zeros, but `num_slices` as it is.

        Args:
            num_rows: of every stream; None for the batch sizes of the config.
        """
        height, width = self.plan.crop_size
        shapes = {
            "image": (height, width, self.channels),
            "label": (height, width),
            "position_bits": (3,),
        }
        batch: Any = {}
        for key in self.method.batch_keys:
            own = key.removeprefix(UNLABELLED)
            plan = self.plan if own == key else self.unlabelled
            rows = num_rows or (plan or self.plan).batch_size
            batch[key] = np.zeros((rows, *shapes.get(own, ())), KEYS[own][0])
        if "num_slices" in batch:
            batch["num_slices"] += self.plan.num_slices
        return batch

    def init(self) -> TrainState:
        """The state before the first step, from the stage's own key."""
        init = jax.jit(
            lambda key: init_state(self.method, self.tx, key, self.example(1))
        )
        return init(self.key)

    @functools.cached_property
    def abstract(self) -> TrainState:
        """Shapes and dtypes of `init()`, without computing it."""
        return jax.eval_shape(
            lambda key: init_state(self.method, self.tx, key, self.example(1)), self.key
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outline:
    """A run as its config and the headers of its files promise it; no voxel is read.

    Attributes:
        dataset: cases and classes.
        infos: what the store will say of its volumes.
        split: of the run's fold.
        all_splits: of every fold, for `splits.json`.
        stages: by name, in their order.
    """

    dataset: Dataset
    infos: tuple[CaseInfo, ...]
    split: splits.Split
    all_splits: dict[str, Any]
    stages: dict[str, Stage]


def outline(config: ml_collections.ConfigDict) -> Outline:
    """Builds what can be built before voxels are read.

    Raises:
        UserError: a setting that is unknown, missing or does not fit; files that are
            missing or whose headers are damaged; folds that do not work out; weights to
            start from that do not fit.
    """
    for name in config.stages:  # first what needs no files
        with _about(f"config.{name}"):
            build_method(config[name])
    check_pipeline(config.data.pipeline)
    dataset, infos, split, all_splits = cohort.plan_data(config.data)
    stages = build_stages(config, infos, split, len(dataset.class_names))
    check_sources(stages, split, transductive=config.data.transductive)
    return Outline(
        dataset=dataset,
        infos=infos,
        split=split,
        all_splits=all_splits,
        stages=stages,
    )


def build_stage(
    config: ml_collections.ConfigDict,
    name: str,
    infos: Sequence[CaseInfo],
    split: splits.Split,
    num_classes: int,
) -> Stage:
    """Builds the stage `name` of `config`.

    Args:
        config: of the run.
        name: one of `config.stages`.
        infos: of the store, or what the file headers promise.
        split: of the run's fold.
        num_classes: of the dataset, background included.

    Raises:
        UserError: a setting that is unknown, missing or does not fit the data.
    """
    stage = config[name]
    method = build_method(stage)
    _check_fits(stage, method, num_classes)
    number = zlib.crc32(name.encode())  # the same stage draws the same in every arm

    def plan_of(subset: str, **choices: Any) -> Plan:
        transductive = config.data.transductive
        rows = cohort.rows_of(infos, split, subset, transductive=transductive)
        return Plan(
            table=slices.slice_table(infos, rows),
            crop_size=tuple(stage.data.crop_size),
            random_crop=stage.data.random_crop,
            shuffle=True,
            **choices,
        )

    plan = plan_of(
        stage.data.subset,
        seed=config.seed + number,
        batch_size=stage.data.batch_size,
        sampling=stage.data.sampling,
        last_batch=stage.data.last_batch,
    )
    if method.min_volumes and plan.num_partitioned < method.min_volumes:
        raise UserError(
            f"method {stage.method.name!r} compares {method.min_volumes} volumes or"
            f" more, but only {plan.num_partitioned} of {slices.PARTITIONS} or more"
            " slices take part; add volumes, or use another method."
        )
    unlabelled = None
    if stage.data.unlabelled_batch_size:
        unlabelled = plan_of(
            _UNLABELLED_FROM,
            seed=config.seed + zlib.crc32(f"{name}, unlabelled".encode()),
            batch_size=stage.data.unlabelled_batch_size,
            sampling="slices",
            last_batch="fill",
        )
    num_steps = stage.train.steps or stage.train.epochs * plan.steps_per_epoch
    tx, schedule = checked_call(
        optimizer.make,
        "optimizer",
        batch_size=plan.batch_size,
        total_steps=num_steps,
        **settings(stage.optimizer, "batch_size", "total_steps"),
    )
    return Stage(
        name=name,
        config=stage,
        method=method,
        tx=tx,
        schedule=schedule,
        channels=infos[0].channels,
        plan=plan,
        unlabelled=unlabelled,
        num_steps=num_steps,
        key=jax.random.fold_in(jax.random.key(config.seed), number),
        axis_name=parallel.AXIS,
    )


def _check_fits(
    stage: ml_collections.ConfigDict, method: Method, num_classes: int
) -> None:
    """Raises UserError where method, model, subset and classes do not go together."""
    what, subset = stage.method.name, stage.data.subset
    classes = stage.model.get("num_classes", 0)
    if method.predict is not None and not classes:
        raise UserError(
            f"method {what!r} segments, but model {stage.model.name!r} has no"
            " num_classes; use one that has, such as model.name='unet2d'."
        )
    if method.embed is not None and stage.data.batch_size < 2:
        raise UserError(
            f"data.batch_size is 1, but method {what!r} compares the slices of a batch;"
            " expected 2 or more."
        )
    if method.embed is not None and classes:
        raise UserError(
            f"method {what!r} embeds whole slices, but model {stage.model.name!r}"
            " segments; use one that does not, such as model.name='unet2d_contrast'."
        )
    if classes and num_classes < 2:
        raise UserError(
            f"method {what!r} learns from labels, but the dataset has none; name the"
            " label files in config.data.options, or pre-train alone:"
            " --config.stages=\"('pretrain',)\"."
        )
    if classes and classes != num_classes:
        raise UserError(
            f"model.num_classes is {classes}, but the dataset has {num_classes}"
            f" classes, background included; set model.num_classes={num_classes}."
        )
    height, width = stage.data.crop_size
    if method.needs_square and height != width:
        raise UserError(
            f"data.crop_size is {(height, width)}, but method {what!r} turns slices by"
            f" 90 degrees; set it to a square, such as {(max(height, width),) * 2}."
        )
    volumes = method.min_volumes
    if volumes and (
        stage.data.sampling != "partitions"
        or stage.data.batch_size < volumes * slices.PARTITIONS
    ):
        raise UserError(
            f"data.sampling is {stage.data.sampling!r} and data.batch_size is"
            f" {stage.data.batch_size}, but method {what!r} needs"
            f" {volumes} or more volumes with a slice of every partition; set"
            " data.sampling=partitions and data.batch_size to"
            f" {volumes * slices.PARTITIONS} or more."
        )
    unlabelled = stage.data.unlabelled_batch_size
    if unlabelled and "unlabelled_image" not in method.batch_keys:
        raise UserError(
            f"data.unlabelled_batch_size is {unlabelled}, but method {what!r} takes no"
            " stream of unlabelled slices; set it to 0."
        )
    if not unlabelled and "unlabelled_image" in method.batch_keys:
        raise UserError(
            f"data.unlabelled_batch_size is 0, but method {what!r} takes a stream of"
            " unlabelled slices; set it to 10, say."
        )
    if "label" in method.batch_keys and subset != "labelled":
        raise UserError(
            f"data.subset is {subset!r}, but method {what!r} learns from labels; set"
            " data.subset=labelled, and config.data.split.labelled to the number of"
            " patients."
        )


def build_method(stage: ml_collections.ConfigDict) -> Method:
    """The method of a stage's config, with its model and augmentation."""
    return methods.make(
        model=models.make(
            axis_name=parallel.AXIS, **settings(stage.model, "axis_name")
        ),
        augment=augment.make(**settings(stage.augment)),
        axis_name=parallel.AXIS,
        **settings(stage.method, "model", "augment", "axis_name"),
    )


@contextlib.contextmanager
def _about(key: str) -> Iterator[None]:
    """Puts a key of the config in front of a UserError that is raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def build_stages(
    config: ml_collections.ConfigDict,
    infos: Sequence[CaseInfo],
    split: splits.Split,
    num_classes: int,
) -> dict[str, Stage]:
    """Builds every stage of the config and checks that their weights fit each other.

    The arguments are those of `build_stage`, as are the errors.
    """
    stages = {}
    for name in config.stages:
        with _about(f"config.{name}"):
            stages[name] = build_stage(config, name, infos, split, num_classes)
            _ = stages[name].abstract  # what its method refuses, it refuses here
    check_transfers(stages)
    return stages


def check_transfers(stages: Mapping[str, Stage]) -> None:
    """Checks that every stage fits the earlier one it starts from.

    Raises:
        UserError: with the first leaf that differs.
    """
    for name, stage in stages.items():
        if source := stages.get(stage.config.init_from):
            with _about(f"config.{name}.init_from={source.name}"):
                transfer(
                    weights(source.abstract),
                    weights(stage.abstract),
                    parts=stage.config.init_parts,
                )


def check_sources(
    stages: Mapping[str, Stage], split: splits.Split, *, transductive: bool
) -> None:
    """Checks the stages of other runs that stages start from.

    Raises:
        UserError: an unfinished stage, other shapes, or patients that this run holds
            out.
    """
    for name, stage in stages.items():
        source = stage.config.init_from
        if source and source not in stages:
            with _about(f"config.{name}.init_from"):
                seen_patients(Path(source), split, transductive=transductive)
                _, earlier = source_variables(Path(source))
                transfer(
                    earlier,
                    weights(stage.abstract),
                    parts=stage.config.init_parts,
                )


def is_finished(folder: Path) -> bool:
    """Whether the stage in `folder`, RUN/STAGE, came to its end and its end is there.

    A damaged checkpoint that the user deleted leaves an older one, which is none.
    """
    path = folder / "done.json"
    if not path.is_file():
        return False
    done = recorded.read_checked(path, {"steps": recorded.is_whole})
    return (folder / "checkpoints" / str(done["steps"])).is_dir()


def is_run_finished(workdir: Path) -> bool:
    """Whether the run scored its cases or, where no stage predicts, is pre-trained."""
    if (workdir / "summary.json").is_file():
        return True
    path = workdir / PRETRAINED
    if not path.is_file():
        return False
    pretrained = recorded.read_checked(path, {"stages": recorded.are_texts})
    return all(is_finished(workdir / stage) for stage in pretrained["stages"])


def check_finished(folder: Path) -> None:
    """Raises UserError unless the stage in `folder` is finished."""
    if not is_finished(folder):
        raise UserError(
            f"{folder} is not finished, or its last checkpoint is gone; run that stage"
            " first."
        )


def seen_patients(
    folder: Path, split: splits.Split, *, transductive: bool
) -> dict[str, list[str]]:
    """Patients whose images and labels the weights in `folder`, RUN/STAGE, have seen.

    Returns:
        {"images": everyone, "labels": those of them whose labels were learnt from}.

    Raises:
        UserError: this run validates or tests on one of them, and either it is not
            `transductive` or the labels were seen too.
    """
    if not (folder / "patients.json").is_file():
        raise UserError(
            f"{folder} is no folder RUN/STAGE of a run: it holds no patients.json."
        )
    seen = read_json(folder / "patients.json")
    if not isinstance(seen, dict):
        raise UserError(
            f"{folder} is of an earlier version, which did not record whose labels the"
            " weights saw; train that stage again in a new folder."
        )
    held_out = {*split.validation, *split.test}
    if told := sorted(held_out.intersection(seen["labels"])):
        raise UserError(
            f"{folder} was trained on the labels of {len(told)} patients that this run"
            f" validates or tests on, {told[0]} first; its scores would mean nothing:"
            " use weights of the same fold."
        )
    leaked = sorted(held_out.intersection(seen["images"]))
    if leaked and not transductive:
        raise UserError(
            f"{folder} was trained on {len(leaked)} patients that this run validates or"
            f" tests on, {leaked[0]} first; use weights of the same fold, or set"
            " --config.data.transductive=True."
        )
    return seen


def source_variables(folder: Path) -> tuple[int, dict[str, Any]]:
    """Step and what can be transferred of the finished stage in `folder`, RUN/STAGE.

    Raises:
        UserError: it is not finished, or its checkpoint is damaged.
    """
    check_finished(folder)
    step, state = load_state(folder / "checkpoints")
    parts = (state["params"], state["model_state"], state["method_state"])
    return step, variables(*parts)


def weights(state: TrainState) -> dict[str, Any]:
    """What can be transferred of a state."""
    return variables(state.params, state.model_state, state.method_state)
