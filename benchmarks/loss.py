"""Time and memory of the contrastive loss and its gradient: dense against blockwise.

python benchmarks/loss.py [--sizes 1024 4096 ...] [--dim 128] [--out FILE.json]

Both ways in one process, in turns; medians. Memory is what XLA plans for the step. The
dense one is left out where its plan is above `--most_gib`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pclseg.losses.contrastive import unit_length
from pclseg.losses.positives import near_float64
from pclseg.parts.similarities import contrast_all

WAYS = ("dense", "blocks")


def main(argv: list[str]) -> None:
    """Measures, prints a table, and writes the numbers where asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    sizes = [1024, 2048, 4096, 8192, 16384, 32768]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most_gib", type=float, default=12.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    rows = [measure(size, args) for size in args.sizes]
    print("| N | dense ms | blocks ms | time | dense MiB | blocks MiB | memory |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(line(row))
    if args.out:
        about = {
            "device": str(jax.devices()[0].device_kind),
            "machine": platform.processor() or platform.machine(),
            "jax": jax.__version__,
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "dim": args.dim,
        }
        text = json.dumps({**about, "rows": rows}, indent=1)
        args.out.write_text(text + "\n", encoding="utf-8")


def measure(size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and planned MiB of both ways for `size` embeddings."""
    z, about = inputs(size, args.dim)
    row: dict[str, Any] = {"embeddings": size}
    steps = {}
    for way in WAYS:
        compiled = jax.jit(step(way)).lower(z, about).compile()
        mib = compiled.memory_analysis().temp_size_in_bytes / 2**20
        row[way] = {"mib": mib}
        if mib <= args.most_gib * 1024:
            steps[way] = compiled
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for repeat in range(args.repeats + 1):
        for way, compiled in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled(z, about))
            if repeat:  # the first one warms up
                seconds[way].append(time.perf_counter() - start)
    for way, values in seconds.items():
        row[way]["ms"] = 1e3 * statistics.median(values)
    return row


def inputs(size: int, dim: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Unit vectors and, two a slice, positions of slices as PCL compares them."""
    z = unit_length(jax.random.normal(jax.random.key(0), (size, dim)))
    words = jax.random.bits(jax.random.key(1), (size // 2, 3), jnp.uint32)
    words = words.at[:, 0].set(words[:, 0] >> 1)  # positions are at most 1
    row = jnp.arange(size // 2, dtype=jnp.int32)
    about = {"row": row, "position_bits": words}
    return z, {name: jnp.concatenate([value, value]) for name, value in about.items()}


def step(way: str):
    """The mean loss and its gradient, as a function of the arguments of `inputs`."""

    def near(anchors, keys):
        bits = anchors["position_bits"], keys["position_bits"]
        return near_float64(*bits, threshold=0.1)

    def mean_loss(z, about):
        loss, _ = contrast_all(
            z,
            about,
            positives=near,
            similarities=way,
            temperature=0.1,
            base_temperature=0.07,
            axis_name=None,
        )
        return loss.mean()

    return jax.value_and_grad(mean_loss)


def line(row: dict[str, Any]) -> str:
    """One row of the table; ratios are blocks / dense."""
    dense, blocks = (row[way] for way in WAYS)
    both = "ms" in dense and "ms" in blocks
    time_ratio = f"{blocks['ms'] / dense['ms']:.2f}" if both else "-"
    cells = [
        str(row["embeddings"]),
        f"{dense['ms']:.1f}" if "ms" in dense else "-",
        f"{blocks['ms']:.1f}" if "ms" in blocks else "-",
        time_ratio,
        f"{dense['mib']:.0f}",
        f"{blocks['mib']:.0f}",
        f"1/{dense['mib'] / blocks['mib']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def commit() -> str | None:
    """Of the source tree, `-dirty` where it was changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


if __name__ == "__main__":
    main(sys.argv[1:])
