"""From a config to what runs: the volumes, the splits, and every stage ready to train."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from pclseg import augment, methods, models, parallel
from pclseg.batch import KEYS
from pclseg.data import datasets, prepare, slices, splits
from pclseg.data.datasets.base import Dataset
from pclseg.data.headers import header_infos
from pclseg.data.plan import Plan
from pclseg.data.tfds_store import CaseInfo
from pclseg.errors import UserError
from pclseg.methods.base import Batch, Method
from pclseg.named import checked_call
from pclseg.state import TrainState
from pclseg.train import optimizer
from pclseg.train.step import init_state
from pclseg.train.transfer import transfer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training, built and not yet run.

    Attributes:
        name: its section of the config.
        config: that section.
        method: what is minimised.
        tx: the optimiser.
        schedule: step -> learning rate.
        plan: which slices each step takes.
        num_steps: of the whole stage.
        key: its random key.
        axis_name: of the pmapped step.
    """

    name: str
    config: ml_collections.ConfigDict
    method: Method
    tx: optax.GradientTransformation
    schedule: Callable[[int], Any]
    plan: Plan
    num_steps: int
    key: jax.Array
    axis_name: str | None

    def example(self, num_rows: int) -> Batch:
        """A batch of zeros with `num_rows` slices, for shapes."""
        height, width = self.config.data.crop_size
        shapes = {
            "image": (height, width, 1),
            "label": (height, width),
            "position_bits": (3,),
        }
        return {
            key: np.zeros((num_rows, *shapes.get(key, ())), KEYS[key][0])
            for key in self.method.batch_keys
        }

    def init(self) -> TrainState:
        """The state before the first step, from the stage's own key."""
        init = jax.jit(
            lambda key: init_state(self.method, self.tx, key, self.example(1))
        )
        return init(self.key)

    def abstract(self) -> TrainState:
        """Shapes and dtypes of `init()`, without computing it."""
        return jax.eval_shape(
            lambda key: init_state(self.method, self.tx, key, self.example(1)), self.key
        )


def open_dataset(data: ml_collections.ConfigDict) -> Dataset:
    """Lists the cases of `config.data`; nothing is decoded.

    The phantom, which pclseg makes itself, is written where it is missing.

    Raises:
        UserError: unknown dataset, missing folder or files.
    """
    settings = {"raw_dir": data.raw_dir, **_plain(data.options)}
    datasets.generate(data.name, **settings)
    return datasets.make(data.name, **settings)


def prepare_dataset(
    data: ml_collections.ConfigDict, dataset: Dataset, report: Callable[[str], None]
) -> Path:
    """Prepares the volumes, once; returns the store's folder."""
    settings = {key: _plain(value) for key, value in data.prepare.items()}
    return checked_call(
        prepare.prepare,
        "config.data.prepare",
        dataset=dataset,
        store_dir=Path(data.store_dir),
        report=report,
        **settings,
    )


def make_splits(
    data: ml_collections.ConfigDict, infos: Sequence[CaseInfo]
) -> dict[str, Any]:
    """The splits of `config.data.split`: the user's file, or seeded folds."""
    labelled = _patients(info for info in infos if info.labelled)
    unlabelled = [name for name in _patients(infos) if name not in set(labelled)]
    split = data.split
    if split.file:
        return splits.read_splits(
            Path(split.file), labelled, unlabelled, draw_seed=split.draw_seed
        )
    return splits.make_splits(
        labelled,
        unlabelled,
        folds=split.folds,
        fold_seed=split.fold_seed,
        draw_seed=split.draw_seed,
    )


def _patients(infos: Any) -> list[str]:
    return list(dict.fromkeys(info.patient for info in infos))


def rows_of(
    infos: Sequence[CaseInfo], split: splits.Split, subset: str, *, transductive: bool
) -> list[int]:
    """Rows of the store that a subset holds.

    Args:
        infos: of the store.
        split: who is in which part.
        subset: "train", every volume that pre-training may see, once; "labelled", the
            labelled volumes of the drawn patients; "validation" and "test", labelled ones.
        transductive: pre-training may see the images of validation and test patients.

    Raises:
        UserError: an unknown subset.
    """
    if subset == "train":
        allowed = set(splits.pretraining_patients(split, transductive=transductive))
        return [
            row
            for row, info in enumerate(infos)
            if info.patient in allowed and not info.in_series
        ]
    members = {
        "labelled": split.labelled,
        "validation": split.validation,
        "test": split.test,
    }
    if subset not in members:
        raise UserError(
            f"subset {subset!r} is unknown; known are: train, {', '.join(members)}."
        )
    chosen = set(members[subset])
    return [
        row
        for row, info in enumerate(infos)
        if info.patient in chosen and info.labelled
    ]


def build_stage(
    config: ml_collections.ConfigDict,
    name: str,
    infos: Sequence[CaseInfo],
    split: splits.Split,
    num_classes: int,
    devices: Sequence[jax.Device],
) -> Stage:
    """Builds the stage `name` of `config`.

    Args:
        config: of the run.
        name: one of `config.stages`.
        infos: of the store, or what the file headers promise.
        split: of the run's fold.
        num_classes: of the dataset, background included.
        devices: that the step will run on.

    Raises:
        UserError: a setting that is unknown, missing or does not fit the data.
    """
    here = f"config.{name}"
    stage = config[name]
    wanted = stage.model.get("num_classes", num_classes)
    if wanted != num_classes:
        raise UserError(
            f"{here}.model.num_classes is {wanted}, but the dataset has {num_classes} classes,"
            f" background included; set --{here}.model.num_classes={num_classes}."
        )
    axis_name = parallel.AXIS
    number = zlib.crc32(name.encode())  # the same stage draws the same in every arm
    method = methods.make(
        model=models.make(axis_name=axis_name, **_plain(stage.model)),
        augment=augment.make(**_plain(stage.augment)),
        axis_name=axis_name,
        **_plain(stage.method),
    )
    rows = rows_of(
        infos, split, stage.data.subset, transductive=config.data.transductive
    )
    if not rows:
        raise UserError(f"{here}.data.subset={stage.data.subset!r} holds no volume.")
    plan = Plan(
        table=slices.slice_table(infos, rows),
        seed=config.seed + number,
        batch_size=stage.data.batch_size,
        crop_size=tuple(stage.data.crop_size),
        random_crop=stage.data.random_crop,
        shuffle=True,
        last_batch=stage.data.last_batch,
    )
    num_steps = stage.train.steps or math.ceil(
        stage.train.epochs * plan.steps_per_epoch
    )
    tx, schedule = checked_call(
        optimizer.make,
        f"{here}.optimizer",
        total_steps=num_steps,
        **_plain(stage.optimizer),
    )
    return Stage(
        name=name,
        config=stage,
        method=method,
        tx=tx,
        schedule=schedule,
        plan=plan,
        num_steps=num_steps,
        key=jax.random.fold_in(jax.random.key(config.seed), number),
        axis_name=axis_name,
    )


def plan_data(
    data: ml_collections.ConfigDict,
) -> tuple[Dataset, tuple[CaseInfo, ...], splits.Split, dict[str, Any]]:
    """The dataset, what its headers promise, and the splits; no voxel is read.

    Raises:
        UserError: files that are missing or unreadable, folds that do not work out.
    """
    dataset = open_dataset(data)
    infos = header_infos(
        dataset, slice_axis=data.prepare.slice_axis, spacing=tuple(data.prepare.spacing)
    )
    all_splits = make_splits(data, infos)
    split = splits.select(
        all_splits, fold=data.split.fold, labelled=data.split.labelled
    )
    return dataset, infos, split, all_splits


def build_stages(
    config: ml_collections.ConfigDict,
    infos: Sequence[CaseInfo],
    split: splits.Split,
    num_classes: int,
    devices: Sequence[jax.Device],
) -> dict[str, Stage]:
    """Builds every stage of the config and checks that their weights fit each other."""
    stages = {
        name: build_stage(config, name, infos, split, num_classes, devices)
        for name in config.stages
    }
    check_transfers(stages)
    return stages


def check_transfers(stages: Mapping[str, Stage]) -> None:
    """Checks that every stage fits the earlier one it starts from, before any is trained.

    Raises:
        UserError: with the first leaf that differs.
    """
    for stage in stages.values():
        if source := stages.get(stage.config.init_from):
            transfer(
                weights(source.abstract()), weights(stage.abstract()), prefix="encoder"
            )


def weights(state: TrainState) -> dict[str, Any]:
    """Parameters and batch statistics of a state, as `transfer` takes them."""
    return {"params": state.params, "batch_stats": state.model_state["batch_stats"]}


def describe(stage: Stage, devices: Sequence[jax.Device]) -> str:
    """What a dry run prints of a stage: data, steps, shapes, parameters, memory."""
    plan, state = stage.plan, stage.abstract()
    batch_size = plan.batch_size
    lines = [
        f"{stage.name}: method {stage.config.method.name}, {stage.plan.num_slices} slices of"
        f" {stage.plan.num_volumes} volumes",
        f"  batch {batch_size} slices of {plan.crop_size[0]}x{plan.crop_size[1]} on"
        f" {len(devices)} device(s), {plan.steps_per_epoch} steps an epoch,"
        f" {stage.num_steps} steps",
        f"  parameters {_count(state.params):,}; state {_bytes(state) / 2**20:.1f} MiB",
        f"  activations kept for the gradient"
        f" {_residual_bytes(stage, devices) / 2**20:.1f} MiB a device",
    ]
    for name, value in sorted(stage.example(batch_size).items()):
        lines.append(f"  batch[{name!r}] {value.dtype} {list(value.shape)}")
    if positives := stage.method.positives:
        names = (stage.method.batch_keys | {"index"}) - {"image"}
        batches = [slices.attributes(plan.rows(step), names) for step in range(5)]
        numbers = np.concatenate([np.asarray(positives(batch)) for batch in batches])
        lines.append(
            f"  positives per anchor: mean {numbers.mean():.1f}, least {numbers.min()}, most"
            f" {numbers.max()} of {2 * batch_size - 1} keys (first 5 steps)"
        )
    return "\n".join(lines)


def _residual_bytes(stage: Stage, devices: Sequence[jax.Device]) -> int:
    """Bytes of what one device's share of the forward pass keeps for the backward pass."""

    def backward(state: TrainState, batch: Batch, key: jax.Array) -> Any:
        return jax.vjp(
            lambda p: stage.method.loss(p, state, batch, key)[0], state.params
        )[1]

    batch = parallel.shard(stage.example(stage.plan.batch_size), len(devices))
    kept = jax.eval_shape(
        parallel.pmap_shares(backward, devices), stage.abstract(), batch, stage.key
    )
    return _bytes(kept) // len(devices)


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
