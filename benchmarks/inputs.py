"""The input pipelines: slices a second, and how long a pre-training waits for them.

python benchmarks/inputs.py [--config FILE] [--raw_dir DIR] [--out FILE.json]
    [--config.KEY=VALUE ...]

Alone: batches are taken and placed on the devices, in one process, pipelines in turns;
medians. The first batch comes once the volumes are read and, of "tf", TensorFlow is
imported. Training: the stage `pretrain` of the config by `pclseg.main`, every time in a
process of its own; rate and share of waiting are what its loop writes to speed.csv.
That share is of the host: the crops of "device" are cut on the device, in the queue of
the step, and are in the rate alone, as is the copy of a batch of the others. Without a
config, of the phantom, which is generated: no data is needed.
"""

import argparse
import functools
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import measuring
import ml_collections
import program

from pclseg import building, cohort
from pclseg.config import load_config, override
from pclseg.data.tfds_store import Store, open_store
from pclseg.feed import Feed, device_feed, host_feed

WAYS = {  # name: overrides
    "tf": ("--config.data.pipeline=tf",),
    "numpy": ("--config.data.pipeline=numpy",),
    "device float32": (
        "--config.data.pipeline=device",
        "--config.data.device_dtype=float32",
    ),
    "device uint8": (
        "--config.data.pipeline=device",
        "--config.data.device_dtype=uint8",
    ),
}
STAGE = "pretrain"
INTERVALS = 6  # of a training, from log line to log line


def main(argv: list[str]) -> None:
    """Measures, prints a table, and writes the numbers where asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--config", default="configs/pcl_phantom.py")
    parser.add_argument("--raw_dir", help="of the config; default: a temporary one")
    parser.add_argument("--batches", type=int, default=200, help="of a measurement")
    parser.add_argument("--steps", type=int, default=120, help="of a training")
    parser.add_argument("--repeats", type=int, default=5, help="of every pipeline")
    parser.add_argument("--trainings", type=int, default=3, help="with every pipeline")
    measuring.add_out(parser)
    args, given = parser.parse_known_args(argv)
    ways = available()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = [
            f"--config.data.raw_dir={args.raw_dir or folder / 'raw'}",
            f"--config.data.store_dir={folder / 'prepared'}",
            *given,
        ]
        # The trainings come first: each wants the devices for itself.
        trained = train(args, ways, overrides, folder)
        alone = drain(args, ways, overrides)
    rows = [{"way": way, **alone[way], **trained[way]} for way in ways]
    print(text(rows))
    sizes = {name: vars(args)[name] for name in ("config", "batches", "steps")}
    measuring.save(args.out, {**sizes, "overrides": given, "rows": rows})


def available() -> dict[str, Sequence[str]]:
    """WAYS without those whose library is missing, which it says."""
    if importlib.util.find_spec("tensorflow"):
        return dict(WAYS)
    measuring.tell("tf is left out: there is no TensorFlow")
    return {way: overrides for way, overrides in WAYS.items() if way != "tf"}


def train(
    args: argparse.Namespace,
    ways: Mapping[str, Sequence[str]],
    overrides: Sequence[str],
    folder: Path,
) -> dict[str, dict[str, float]]:
    """{way: slices a second and share of waiting, as a training reports them}."""
    run = [f"--config={args.config}", *overrides]
    run += [
        f"--config.{STAGE}.train.epochs=0",
        f"--config.{STAGE}.train.steps={args.steps}",
        f"--config.{STAGE}.train.log_every={max(args.steps // INTERVALS, 1)}",
        f"--config.{STAGE}.train.checkpoint_every={args.steps}",
    ]
    measuring.tell("preparing")
    cache = folder / "compiled"
    preparation = [f"--workdir={folder / 'run'}", "--stages=prepare"]
    program.run([*run, *preparation], cache=cache)
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(args.trainings):
        for way, choice in ways.items():
            workdir = folder / f"{way} {number}"
            training = [*choice, f"--workdir={workdir}", f"--stages={STAGE}"]
            program.run([*run, *training], cache=cache)
            speed = program.training_speed(workdir / STAGE)
            measuring.tell(
                f"training with {way}: {speed['slices_per_second']:.1f} slices/s"
            )
            measured[way].append(speed)
    return {
        way: {
            name: statistics.median(speed[name] for speed in speeds)
            for name in ("slices_per_second", "data_wait_share")
        }
        for way, speeds in measured.items()
    }


def drain(
    args: argparse.Namespace,
    ways: Mapping[str, Sequence[str]],
    overrides: Sequence[str],
) -> dict[str, dict[str, float]]:
    """{way: seconds to the first batch, slices a second} of the pipelines alone."""
    numbers, slices, runs = {}, {}, {}
    for way, choice in ways.items():
        config = load_config(args.config)
        override(config, [*overrides, *choice])
        store, stage = prepared(config)
        slices[way] = args.batches * stage.plan.batch_size
        start = time.perf_counter()
        feed = make_feed(config, store, stage)
        take(feed, 1)
        numbers[way] = {"first_batch_s": time.perf_counter() - start}
        runs[way] = functools.partial(take, feed, args.batches)
    measuring.tell("taking batches")
    seconds = measuring.in_turns(runs, repeats=args.repeats)
    for way, value in seconds.items():
        numbers[way]["slices_per_second_alone"] = slices[way] / value
    return numbers


def prepared(config: ml_collections.ConfigDict) -> tuple[Store, building.Stage]:
    """The store that the trainings used, and the stage."""
    outline = building.outline(config)
    path = cohort.prepare_dataset(config.data, outline.dataset, measuring.tell)
    store = open_store(path)
    classes = len(store.class_names)
    stage = building.build_stage(config, STAGE, store.infos, outline.split, classes)
    return store, stage


def make_feed(
    config: ml_collections.ConfigDict, store: Store, stage: building.Stage
) -> Feed:
    """The batches of the stage, without an end."""
    what: dict[str, Any] = dict(
        store=store,
        plan=stage.plan,
        unlabelled=stage.unlabelled,
        keys=stage.method.batch_keys,
        first_step=0,
        num_steps=10**9,
        devices=jax.devices(),
    )
    if config.data.pipeline == "device":
        return device_feed(dtype=config.data.device_dtype, **what)
    return host_feed(config.data.pipeline, **what)


def take(feed: Feed, number: int) -> None:
    """Takes batches and places them, two at a time on their way."""
    before = None
    for _ in range(number):
        batch = measuring.split(feed.place(next(feed.batches)), jax.devices())
        jax.block_until_ready(before)
        before = batch
    jax.block_until_ready(before)


def text(rows: list[dict[str, Any]]) -> str:
    """The table; the last column is how much faster it is alone."""
    head = ["pipeline", "first batch s", "slices/s alone", "slices/s in training"]
    lines = [
        [
            row["way"],
            f"{row['first_batch_s']:.2f}",
            f"{row['slices_per_second_alone']:.0f}",
            f"{row['slices_per_second']:.1f}",
            f"{row['data_wait_share']:.1%}",
            f"{row['slices_per_second_alone'] / row['slices_per_second']:.1f}",
        ]
        for row in rows
    ]
    return measuring.table([*head, "waiting for data", "alone / training"], lines)


if __name__ == "__main__":
    main(sys.argv[1:])
