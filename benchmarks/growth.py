"""What preparation and training cost as volumes, or slices a volume, grow.

python benchmarks/growth.py [--volumes 24] [--slices 24] [--factors 1 4 16]
    [--out FILE.json] [--config.KEY=VALUE ...]

Phantoms are generated, and every measurement is `pclseg.main` in a process of its own:
its seconds from start to end, imports included, and the most memory that was resident,
of the process and with its workers. Steps are compiled beforehand; their time is what
the loop reports. All in turns; medians. Files come from the page cache. What is there
from the start, some seconds and 0.5 to 1 GiB, hides growth: "more" is without it, the
MiB that a further MiB of pixels, as float32, costs. A training holds the pixels of its
part of the split alone. Preparation writes its store after its workers have ended.
"""

import argparse
import concurrent.futures
import importlib.util
import math
import multiprocessing
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import measuring
import program

from pclseg.data.datasets import phantom
from pclseg.data.tfds_store import open_store

CONFIG = "configs/pcl_phantom.py"
SEED = 0
MIB = 2**20
PREPARE = "prepare"  # the first of what is measured; the others are pipelines


def main(argv: list[str]) -> None:
    """Measures, prints a table, and writes the numbers where asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--volumes", type=int, default=24, help="to begin with")
    parser.add_argument("--slices", type=int, default=24, help="of a volume, likewise")
    parser.add_argument("--pixels", type=int, default=128, help="of a side of a slice")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 4, 16])
    pipelines = ["tf", "numpy", "device"]
    parser.add_argument("--pipelines", nargs="*", choices=pipelines, default=pipelines)
    parser.add_argument("--steps", type=int, default=40, help="of a training")
    parser.add_argument("--repeats", type=int, default=3)
    measuring.add_out(parser)
    args, overrides = parser.parse_known_args(argv)
    if "tf" in args.pipelines and not importlib.util.find_spec("tensorflow"):
        measuring.tell("tf is left out: there is no TensorFlow")
        args.pipelines.remove("tf")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "compiled"
        for number, (volumes, slices) in enumerate(sizes(args)):
            measuring.tell(f"{volumes} volumes of {slices} slices")
            shape = (slices, args.pixels, args.pixels)
            data = Path(folder) / str(number)
            write_phantom(data / "raw", volumes, shape)
            rows += measure(args, data, cache, volumes, overrides, warm_up=not number)
            shutil.rmtree(data)
    print(text(rows))
    names = ("pixels", "steps", "repeats")
    given = {name: vars(args)[name] for name in names} | {"overrides": overrides}
    measuring.save(args.out, {**given, "rows": rows})


def sizes(args: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Pairs of volumes and slices: the smallest, more volumes, more slices."""
    first, *more = sorted(args.factors)
    yield args.volumes * first, args.slices * first
    yield from ((args.volumes * factor, args.slices * first) for factor in more)
    yield from ((args.volumes * first, args.slices * factor) for factor in more)


def write_phantom(folder: Path, volumes: int, shape: tuple[int, int, int]) -> None:
    """Writes volumes of `shape`, [Z, H, W], in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        pool.submit(generate, folder, volumes, shape).result()


def generate(folder: Path, volumes: int, shape: tuple[int, int, int]) -> None:
    """`phantom.generate` with volumes of another shape."""
    phantom.SHAPE = shape
    phantom.generate(folder, volumes=volumes, seed=SEED)


def measure(
    args: argparse.Namespace,
    data: Path,
    cache: Path,
    volumes: int,
    overrides: Sequence[str],
    *,
    warm_up: bool,
) -> list[dict[str, Any]]:
    """A row of preparation and one of every pipeline, of the phantom in `data`."""
    command = [
        f"--config={CONFIG}",
        "--config.stages=('pretrain',)",
        f"--config.data.raw_dir={data / 'raw'}",
        f"--config.data.options.volumes={volumes}",
        f"--config.data.options.seed={SEED}",
        "--config.pretrain.train.epochs=0",
        f"--config.pretrain.train.steps={args.steps}",
        f"--config.pretrain.train.log_every={max(args.steps // 4, 1)}",
        f"--config.pretrain.train.checkpoint_every={args.steps}",
        *overrides,
    ]
    runs: dict[str, list[dict[str, float]]] = {}
    for repeat in range(-1 if warm_up else 0, args.repeats):
        store = f"--config.data.store_dir={data / f'prepared {repeat}'}"
        for way in (PREPARE, *args.pipelines):
            workdir = data / f"{way} {repeat}"
            run = [*command, store, f"--workdir={workdir}"]
            if way == PREPARE:
                usage = program.run([*run, "--stages=prepare"], cache=cache)
                speed = {}
            else:
                run += ["--stages=pretrain", f"--config.data.pipeline={way}"]
                usage = program.run(run, cache=cache)
                speed = program.training_speed(workdir / "pretrain")
            took = {
                "seconds": usage.seconds,
                "main_mib": usage.main_mib,
                "all_mib": usage.all_mib,
                **speed,
            }
            said = f"{usage.seconds:.1f} s, {usage.all_mib:.0f} MiB"
            measuring.tell(f"{way}: {said}{', warm-up' if repeat < 0 else ''}")
            if repeat >= 0:
                runs.setdefault(way, []).append(took)
    (path,) = (data / "prepared 0").glob("*/metadata.json")
    infos = open_store(path.parent).infos
    about = {
        "volumes": volumes,
        "slices": infos[0].shape[0],
        "pixels_mib": sum(math.prod(info.shape) for info in infos) * 4 / MIB,
    }
    return [
        {"way": way, **about, **{name: median(took, name) for name in took[0]}}
        for way, took in runs.items()
    ]


def median(took: Sequence[dict[str, float]], name: str) -> float:
    """Of one number of several runs."""
    return statistics.median(each[name] for each in took)


def text(rows: list[dict[str, Any]]) -> str:
    """The table, way after way; ratios and what is more are to its first row."""
    head = ["what", "volumes", "of slices", "pixels MiB", "s", "ratio", "slices/s"]
    head += ["main MiB", "more", "with workers MiB", "more"]
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        first, *_ = own = [row for row in rows if row["way"] == way]
        for row in own:
            added = row["pixels_mib"] - first["pixels_mib"]
            more = {
                name: f"{(row[name] - first[name]) / added:.2f}" if added else "-"
                for name in ("main_mib", "all_mib")
            }
            rate = row.get("slices_per_second")
            lines.append(
                [
                    way,
                    str(row["volumes"]),
                    str(row["slices"]),
                    f"{row['pixels_mib']:.0f}",
                    f"{row['seconds']:.1f}",
                    f"{row['seconds'] / first['seconds']:.2f}",
                    f"{rate:.1f}" if rate else "-",
                    f"{row['main_mib']:.0f}",
                    more["main_mib"],
                    f"{row['all_mib']:.0f}",
                    more["all_mib"],
                ]
            )
    return measuring.table(head, lines)


if __name__ == "__main__":
    main(sys.argv[1:])
