"""What a dry run prints: all that is known of a run before its first step."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from pclseg import cohort, parallel
from pclseg.building import Outline, Stage
from pclseg.data import slices
from pclseg.methods.base import Batch
from pclseg.state import TrainState

STEPS = 5  # whose batches are looked at for positives


def describe(
    config: ml_collections.ConfigDict, outline: Outline, devices: Sequence[jax.Device]
) -> str:
    """Lines about volumes, split and every stage."""
    dataset, split = outline.dataset, outline.split
    labelled = sum(info.labelled for info in outline.infos)
    axes = sorted({info.geometry.slice_axis for info in outline.infos})
    counts = [info.shape[0] for info in outline.infos]
    lines = [
        f"dataset {dataset.name}: {len(outline.infos)} volumes, {labelled} labelled,"
        f" classes {', '.join(dataset.class_names)}",
        f"slices along axis {' and '.join(map(str, axes))} (0 to the right, 1 to the"
        f" front, 2 up), {min(counts)} to {max(counts)} a volume",
        f"split: fold {config.data.split.fold}; {len(split.train)} training patients,"
        f" {len(split.labelled)} of them labelled ({', '.join(split.labelled)});"
        f" {len(split.validation)} validation, {len(split.test)} test,"
        f" {len(split.unlabelled)} without label",
        *cohort.remarks(config.data, outline.infos, split),
    ]
    for stage in outline.stages.values():
        lines += _stage_lines(stage, devices)
    return "\n".join(lines)


def _stage_lines(stage: Stage, devices: Sequence[jax.Device]) -> list[str]:
    plan, state = stage.plan, stage.abstract
    height, width = plan.crop_size
    activations = _residual_bytes(stage, devices) / 2**20
    lines = [
        f"{stage.name}: method {stage.config.method.name}, {plan.num_slices} slices of"
        f" {plan.num_volumes} volumes",
        f"  batch {plan.batch_size} slices of {height}x{width} on {len(devices)}"
        f" device(s), {plan.steps_per_epoch} steps an epoch, {stage.num_steps} steps",
        f"  parameters {_count(state.params):,}; state {_bytes(state) / 2**20:.1f} MiB",
        f"  activations kept for the gradient {activations:.1f} MiB a device",
    ]
    for name, value in sorted(stage.example().items()):
        lines.append(f"  batch[{name!r}] {value.dtype} {list(value.shape)}")
    return lines + _positives_lines(stage) + [f"  {line}" for line in stage.remarks()]


def _positives_lines(stage: Stage) -> list[str]:
    """How many positives the anchors of the first batches have."""
    if stage.method.positives is None:
        return []
    names = (stage.method.batch_keys | {"index"}) - {"image"}
    counts = []
    for step in range(STEPS):
        batch: Any = slices.attributes(stage.plan.rows(step), names)
        counts.append(np.asarray(stage.method.positives(batch)))
    number = np.concatenate(counts)
    return [
        f"  positives per anchor: mean {number.mean():.1f}, least {number.min()}, most"
        f" {number.max()} of {len(counts[0]) - 1} keys (first {STEPS} steps)"
    ]


def _residual_bytes(stage: Stage, devices: Sequence[jax.Device]) -> int:
    """Bytes that one device keeps of the forward pass for the backward pass."""

    def backward(state: TrainState, batch: Batch, key: jax.Array) -> Any:
        return jax.vjp(
            lambda p: stage.method.loss(p, state, batch, key)[0], state.params
        )[1]

    own = len(parallel.local(devices))
    batch = parallel.shard(stage.example(), len(devices))
    batch = jax.tree.map(lambda x: x[:own], batch)
    kept = jax.eval_shape(
        parallel.pmap_shares(backward, devices, others=1),
        stage.abstract,
        batch,
        stage.key,
    )
    return _bytes(kept) // own


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
