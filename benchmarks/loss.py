"""Time and memory of the contrastive loss and its gradient: dense against blockwise.

python benchmarks/loss.py [--sizes 1024 4096 ...] [--dim 128] [--out FILE.json]

In one process, in turns; medians. Memory is what XLA plans for the step. With PyTorch
also its broadcast cosine, [N, 1, D] against [1, N, D], whose memory is told on a GPU
only. A way is left out where it takes more than `--most_gib`.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measuring
import numpy as np

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
    measuring.add_out(parser)
    args = parser.parse_args(argv)
    rows = [measure(size, args) for size in args.sizes]
    print(text(rows))
    measuring.save(args.out, {"dim": args.dim, "rows": rows})


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
    ways: dict[str, Callable[[], object]] = {
        way: lambda f=f: jax.block_until_ready(f(z, about)) for way, f in steps.items()
    }
    # At least the product, its gradient and one array between them are held at once.
    if 3 * 4 * size**2 * args.dim <= args.most_gib * 2**30:
        ways |= broadcast(np.array(z), row)
    seconds = measuring.in_turns(ways, repeats=args.repeats)
    for way, value in seconds.items():
        row.setdefault(way, {})["ms"] = 1e3 * value
    return row


def broadcast(z: np.ndarray, row: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """The peer's loss and its gradient; its memory goes into `row`."""
    if not importlib.util.find_spec("torch"):
        return {}
    import peer
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    views = torch.from_numpy(z).to(device).requires_grad_()
    positions = torch.rand(len(z) // 2, dtype=torch.float64, device=device)

    def run() -> None:
        loss = peer.contrast(views, positions, broadcast=True)
        (gradient,) = torch.autograd.grad(loss, views)
        gradient.sum().item()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        mib = torch.cuda.max_memory_allocated() / 2**20
        row["broadcast"] = {"mib": mib}
        torch.cuda.empty_cache()
    return {"broadcast": run}


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


def text(rows: list[dict[str, Any]]) -> str:
    """The table; ratios are blocks / dense."""
    head = ["N", "dense ms", "blocks ms", "time", "dense MiB", "blocks MiB", "memory"]
    lines = []
    for row in rows:
        dense, blocks, peers = (row.get(way, {}) for way in (*WAYS, "broadcast"))
        both = "ms" in dense and "ms" in blocks
        lines.append(
            [
                str(row["embeddings"]),
                number(dense.get("ms"), 2),
                number(blocks.get("ms"), 2),
                number(blocks["ms"] / dense["ms"] if both else None, 2),
                number(dense["mib"]),
                number(blocks["mib"]),
                f"1/{dense['mib'] / blocks['mib']:.0f}",
                number(peers.get("ms"), 2),
                number(peers.get("mib")),
            ]
        )
    return measuring.table([*head, "broadcast ms", "broadcast MiB"], lines)


def number(value: float | None, digits: int = 0) -> str:
    """With so many digits behind the point; "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main(sys.argv[1:])
