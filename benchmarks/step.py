"""A training step: slices a second and share of the device, against PyTorch.

python benchmarks/step.py [--stage pretrain|finetune] [--size cpu|paper] [--out FILE]

cpu: width 32, 128 x 128, 16 slices; paper: width 48, 352 x 352, 32 slices (fine-tuning:
10). All ways in one process, in turns; medians. Without PyTorch and batchgenerators
only pclseg is measured. FLOP are those of the convolutions, three times the forward
ones; the ceilings are a bfloat16 matrix product and a copy, measured here too.
`--slices 16384 --groups 128` is a large batch, whose groups are embedded in turn.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measuring
import ml_collections
import numpy as np

from pclseg import parallel
from pclseg.building import build_method
from pclseg.config import load_config, settings
from pclseg.data.slices import position, position_bits
from pclseg.train import optimizer
from pclseg.train.step import init_state, make_train_step

SIZES = {
    "cpu": dict(width=32, crop=128, pretrain=16, finetune=10, shrink=0.5, groups=1),
    "paper": dict(width=48, crop=352, pretrain=32, finetune=10, shrink=1.0, groups=1),
}
CLASSES = 4
Way = Callable[[], object]


def main(argv: list[str]) -> None:
    """Measures, prints a table, and writes the numbers where asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--stage", choices=("pretrain", "finetune"), default="pretrain")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--steps", type=int, default=4, help="of a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--only", nargs="+", help="ways with one of these in their name"
    )
    parser.add_argument("--slices", type=int, help="of a batch, instead of the size's")
    parser.add_argument("--groups", type=int, default=1, help="embedded in turn")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--trace", type=Path, help="FILE.json.gz of the first way")
    measuring.add_out(parser)
    args = parser.parse_args(argv)
    size = SIZES[args.size] | {"groups": args.groups}
    if args.slices:
        size[args.stage] = args.slices
    ways, planned = {}, {}
    for name, make in chosen(candidates(args, size), args.only).items():
        measuring.tell(f"compiling {name}")
        ways[name], planned[name] = make()
        look = measuring.in_turns({name: ways[name]}, repeats=1)[name]
        measuring.tell(f"{name}: {1e3 * look / args.steps:.1f} ms, at a first look")
    seconds = measuring.in_turns(ways, repeats=args.repeats)
    if args.trace:
        trace(next(iter(ways.values())), args.trace)
    ceilings = measure_ceilings()
    batch = size[args.stage]
    flop = step_flop(args.stage, size)
    rows = []
    for name, value in seconds.items():
        step = value / args.steps
        row = {
            "way": name,
            "step_ms": 1e3 * step,
            "slices_per_s": batch / step,
            "tflop_per_s": 1e-12 * flop / step,
            "flop_share": flop / step / ceilings["flop_per_s"],
        }
        if plan := planned[name]:
            floor = max(
                flop / ceilings["flop_per_s"],
                2**30 * plan["gib_moved"] / ceilings["bytes_per_s"],
            )
            row |= {**plan, "roofline_share": floor / step}
        rows.append(row)
    print(text(rows))
    given = {"stage": args.stage, "size": {"name": args.size, **size}}
    workers = {"workers": args.workers}
    measuring.save(args.out, {**given, **workers, "ceilings": ceilings, "rows": rows})


def candidates(args: argparse.Namespace, size: dict[str, Any]) -> dict[str, Callable]:
    """{way: function that makes it, with what the compiler plans for a step of it}."""
    ways = {
        f"pclseg {dtype}, {augment}": lambda dtype=dtype, augment=augment: ours(
            args.stage, size, args.steps, dtype=dtype, augment=augment == "augmented"
        )
        for dtype in ("float32", "bfloat16")
        for augment in ("augmented", "no augmentation")
    }
    if importlib.util.find_spec("torch"):
        ways["torch eager, no augmentation"] = lambda: theirs(args, size, best=False)
        ways["torch best, no augmentation"] = lambda: theirs(args, size, best=True)
        if importlib.util.find_spec("batchgenerators"):
            ways["torch eager, augmented"] = lambda: theirs_fed(args, size)
    return ways


def chosen(ways: dict[str, Callable], only: list[str] | None) -> dict[str, Callable]:
    """Those with one of these texts in their name, in the order of the texts."""
    return {
        name: make
        for text in only or [""]
        for name, make in ways.items()
        if text in name
    }


def ours(
    stage: str, size: dict[str, Any], steps: int, *, dtype: str, augment: bool
) -> tuple[Way, dict[str, float]]:
    """`steps` steps of pclseg on one device, as its loop runs them."""
    config = stage_config(stage, size, dtype=dtype, augment=augment)
    run, compiled = steps_on(jax.devices()[:1], config, example(stage, size), steps)
    cost = compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    moved, held = cost.get("bytes accessed"), compiled.memory_analysis()
    if not moved or held is None:
        return run, {}
    gib = {"gib_moved": moved, "gib_held": held.temp_size_in_bytes}
    return run, {name: value / 2**30 for name, value in gib.items()}


def steps_on(
    devices: Sequence[jax.Device],
    config: ml_collections.ConfigDict,
    host: dict[str, np.ndarray],
    steps: int,
) -> tuple[Way, jax.stages.Compiled]:
    """`steps` steps of a stage on a batch that is split among devices, and one step."""
    method = build_method(config)
    tx, _ = optimizer.make(
        batch_size=len(host["image"]),
        total_steps=10**6,
        **settings(config.optimizer, "batch_size", "total_steps"),
    )
    key = jax.random.key(0)
    shown = {name: value[:1] for name, value in host.items()}
    state = jax.jit(lambda: init_state(method, tx, key, shown))()
    state = parallel.replicate(state, devices)
    batch = measuring.split(parallel.shard(host, len(devices)), devices)
    step = parallel.pmap_step(make_train_step(method, tx, parallel.AXIS), devices)
    compiled = step.lower(state, batch, key).compile()  # a call would compile again

    def run() -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, batch, key)
        jax.block_until_ready(metrics["loss"])

    return run, compiled


def stage_config(
    stage: str, size: dict[str, Any], *, dtype: str, augment: bool
) -> ml_collections.ConfigDict:
    """The stage of `configs/pcl_acdc.py` at a size of this benchmark."""
    config = load_config("configs/pcl_acdc.py:size=paper")[stage]
    config.model.width, config.model.dtype = size["width"], dtype
    if (groups := size["groups"]) > 1:
        config.model.bn_groups, config.method.groups_in_turn = groups, True
    none, spatial = dict(name="none"), measuring.spatial(shrink=size["shrink"])
    config.augment = ml_collections.ConfigDict(spatial if augment else none)
    return config


def example(stage: str, size: dict[str, Any]) -> dict[str, np.ndarray]:
    """A batch of noise."""
    generator = np.random.default_rng(0)
    number, crop = size[stage], size["crop"]
    image = generator.normal(size=(number, crop, crop, 1)).astype(np.float32)
    if stage == "finetune":
        return {"image": image, "label": (image[..., 0] > 0).astype(np.int32)}
    index = np.arange(number, dtype=np.int32) % 10
    return {"image": image, "position_bits": position_bits(position(index, 10))}


def theirs(
    args: argparse.Namespace, size: dict[str, Any], *, best: bool
) -> tuple[Way, dict[str, float]]:
    """The same in PyTorch, on a batch that lies on the device."""
    import torch

    step, device = their_step(args.stage, size, best=best)
    shown = example(args.stage, size)
    image = torch.from_numpy(shown["image"]).permute(0, 3, 1, 2).to(device)
    form = torch.channels_last if best else torch.contiguous_format
    image = image.contiguous(memory_format=form)
    if args.stage == "finetune":
        rest = [torch.from_numpy(shown["label"]).long().to(device)]
    else:
        positions = torch.arange(len(image), dtype=torch.float64) % 10 / 10 + 0.1
        rest = [image.clone(), positions.to(device)]

    def run() -> None:
        for _ in range(args.steps):
            loss = step(image, *rest)
        loss.item()

    return run, {}


def theirs_fed(
    args: argparse.Namespace, size: dict[str, Any]
) -> tuple[Way, dict[str, float]]:
    """Eager PyTorch fed by workers that augment with batchgenerators."""
    import peer

    step, device = their_step(args.stage, size, best=False)
    labels = args.stage == "finetune"
    dataset = peer.Views(size["crop"], shrink=size["shrink"], labels=labels)
    batches = peer.loader(dataset, size[args.stage], args.workers)
    measured = max(args.steps, args.workers)

    def run() -> float:
        for _ in range(peer.PREFETCH * args.workers):
            next(batches)  # made while others were measured
        start = time.perf_counter()
        for _ in range(measured):
            batch = [x.to(device, non_blocking=True) for x in next(batches)]
            loss = step(*batch)
        loss.item()
        return (time.perf_counter() - start) / measured * args.steps

    return run, {}


def their_step(stage: str, size: dict[str, Any], *, best: bool):
    """The peer's step, and its device."""
    import peer
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if stage == "pretrain":
        return peer.pretraining_step(size["width"], device, best=best), device
    step = peer.segmentation_step(size["width"], CLASSES, device, best=best)
    return step, device


def step_flop(stage: str, size: dict[str, Any]) -> float:
    """Of the convolutions of a step: forward, and twice that for the gradients."""
    width, pixels = size["width"], size["crop"] ** 2
    channels = [1, *(width * 2**level for level in range(5))]
    forward = 0.0
    for level in range(5):
        here = pixels / 4**level
        a, b = channels[level], channels[level + 1]
        forward += 2 * 9 * here * (a * b + b * b)
        if stage == "finetune" and level < 4:
            forward += 2 * 9 * here * (2 * b * b + b * b)
            forward += 2 * here * 2 * b * b  # the transposed convolution
    if stage == "finetune":
        forward += 2 * pixels * width * CLASSES
    images = size[stage] * (2 if stage == "pretrain" else 1)
    return 3 * forward * images


def measure_ceilings() -> dict[str, float]:
    """A large bfloat16 matrix product, and a copy that counts reads and writes."""
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    rows = 2**26 if on_cpu else 2**30
    long = jnp.arange(rows, dtype=jnp.float32)
    product = jax.jit(lambda x: x @ x)
    copy = jax.jit(lambda x: x + 1)
    seconds = measuring.in_turns(
        {
            "product": lambda: jax.block_until_ready(product(a)),
            "copy": lambda: jax.block_until_ready(copy(long)),
        },
        repeats=10,
    )
    return {
        "flop_per_s": 2 * size**3 / seconds["product"],
        "bytes_per_s": 8 * rows / seconds["copy"],
    }


def trace(way: Way, path: Path) -> None:
    """Keeps what the device and the host did during one measurement."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            way()
        (found,) = Path(folder).rglob("*.trace.json.gz")
        shutil.copyfile(found, path)


def text(rows: list[dict[str, Any]]) -> str:
    """The table; ratios of speed to the first way."""
    head = [
        "way",
        "ms a step",
        "slices/s",
        "speed",
        "TFLOP/s",
        "of FLOP",
        "of roofline",
    ]
    lines = []
    for row in rows:
        share = row.get("roofline_share")
        lines.append(
            [
                row["way"],
                f"{row['step_ms']:.1f}",
                f"{row['slices_per_s']:.0f}",
                f"{rows[0]['step_ms'] / row['step_ms']:.2f}",
                f"{row['tflop_per_s']:.2f}",
                f"{row['flop_share']:.0%}",
                f"{share:.0%}" if share else "-",
            ]
        )
    return measuring.table(head, lines)


if __name__ == "__main__":
    main(sys.argv[1:])
