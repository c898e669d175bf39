"""What the benchmarks share: measuring in turns, and saying where it was measured."""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pclseg import parallel, rundir
from pclseg.config import load_config

PEERS = ("torch", "batchgenerators")


def in_turns(
    ways: Mapping[str, Callable[[], object]], *, repeats: int
) -> dict[str, float]:
    """Median seconds of every way, all run once and then `repeats` times in turns.

    A way returns when its work is done, or how many seconds it took.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            took = way()
            if repeat:  # the first one warms up
                end = time.perf_counter()
                seconds[name].append(took if isinstance(took, float) else end - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def split(batch: Any, devices: Sequence[jax.Device]) -> Any:
    """Places a batch that `parallel.shard` has reshaped: a share on every device."""
    mesh = jax.sharding.Mesh(np.asarray(devices), (parallel.AXIS,))
    spec = jax.sharding.PartitionSpec(parallel.AXIS)
    return jax.device_put(batch, jax.sharding.NamedSharding(mesh, spec))


def spatial(*, shrink: float) -> dict[str, Any]:
    """The augmentation of `configs/pcl_acdc.py`; `shrink` is 1 for 1.25 mm a pixel."""
    section = load_config("configs/pcl_acdc.py:size=paper").pretrain.augment.to_dict()
    for name, power in (("elastic_alpha", 2), ("elastic_sigma", 1)):
        section[name] = tuple(shrink**power * value for value in section[name])
    return section


def add_out(parser: argparse.ArgumentParser) -> None:
    """Adds the option of `save`."""
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")


def save(out: Path | None, numbers: Mapping[str, Any]) -> None:
    """Writes numbers with device, versions, commit and date, where asked."""
    if out:
        text = json.dumps({**about(), **numbers}, indent=1)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")


def about() -> dict[str, Any]:
    """Device, versions, commit and date."""
    return {
        "device": str(jax.devices()[0].device_kind),
        "devices": jax.device_count(),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        **{name: version for name in PEERS if (version := rundir.version(name))},
        "commit": rundir.commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def tell(line: str) -> None:
    """Says on stderr how far it is."""
    print(line, file=sys.stderr, flush=True)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
