"""Time and memory of the contrastive loss and its gradient, by every way.

python benchmarks/loss.py [--sizes 1024 4096 ...] [--dim 128] [--devices 4]
    [--out FILE.json]

Dense and blocks on one device; with `--devices` also dense, blocks and ring on so many,
which have equal parts of the embeddings. In one process, in turns; medians. Memory is
what XLA plans for the step, on one device. With PyTorch also its broadcast cosine,
[N, 1, D] against [1, N, D], whose memory is told on a GPU only. A way is left out where
it takes more than `--most_gib`.

Without a GPU or TPU the devices are virtual and share the cores: a way on several of
them is then no faster than on one, and shows what the splitting costs.
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

from pclseg import parallel
from pclseg.losses.contrastive import unit_length
from pclseg.losses.positives import near_float64
from pclseg.parts.similarities import contrast_all

ON_ONE, ON_SEVERAL = ("dense", "blocks"), ("dense", "blocks", "ring")


def main(argv: list[str]) -> None:
    """Measures, prints a table, and writes the numbers where asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    sizes = [1024, 2048, 4096, 8192, 16384, 32768]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most_gib", type=float, default=12.0)
    measuring.add_out(parser)
    args = parser.parse_args(argv)
    jax.config.update("jax_num_cpu_devices", args.devices)
    if args.devices > jax.device_count():
        parser.error(f"--devices is {args.devices}, there are {jax.device_count()}")
    rows = [measure(size, args) for size in args.sizes]
    print(text(rows))
    measuring.save(args.out, {"dim": args.dim, "rows": rows})


def measure(size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and planned MiB a device of every way for `size` embeddings."""
    row: dict[str, Any] = {"embeddings": size}
    ways: dict[str, Callable[[], object]] = {}
    some = [(way, 1) for way in ON_ONE]
    if args.devices > 1:
        some += [(way, args.devices) for way in ON_SEVERAL]
    for way, devices in some:
        name = f"{way} {devices}"
        measuring.tell(f"compiling {name}, {size} embeddings")
        compiled, given = compiled_step(way, devices, inputs(size, args.dim))
        mib = compiled.memory_analysis().temp_size_in_bytes / 2**20
        row[name] = {"mib": mib}
        if devices * mib <= args.most_gib * 1024:
            ways[name] = lambda f=compiled, x=given: jax.block_until_ready(f(*x))
    # At least the product, its gradient and one array between them are held at once.
    if 3 * 4 * size**2 * args.dim <= args.most_gib * 2**30:
        ways |= broadcast(np.array(inputs(size, args.dim)[0]), row)
    seconds = measuring.in_turns(ways, repeats=args.repeats)
    for name, value in seconds.items():
        row.setdefault(name, {})["ms"] = 1e3 * value
    return row


def compiled_step(way: str, devices: int, given: Any) -> tuple[Any, Any]:
    """The compiled step on so many devices, and its arguments placed there."""
    if devices == 1:
        return jax.jit(step(way, None)).lower(*given).compile(), given
    on = jax.devices()[:devices]
    given = measuring.split(parallel.shard(jax.tree.map(np.array, given), devices), on)
    mapped = jax.pmap(step(way, parallel.AXIS), parallel.AXIS, devices=on)
    return mapped.lower(*given).compile(), given


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


def step(way: str, axis_name: str | None):
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
            axis_name=axis_name,
        )
        return loss.mean()

    return jax.value_and_grad(mean_loss)


def text(rows: list[dict[str, Any]]) -> str:
    """The table; ratios are to dense on one device."""
    head = ["N", "way, devices", "ms", "time / dense", "MiB a device", "memory / dense"]
    lines = []
    for row in rows:
        dense = row["dense 1"]
        for name in [key for key in row if key != "embeddings"]:
            lines.append(
                [
                    str(row["embeddings"]),
                    name,
                    number(row[name].get("ms"), 1),
                    ratio(row[name].get("ms"), dense.get("ms")),
                    number(row[name].get("mib"), 1),
                    ratio(row[name].get("mib"), dense.get("mib")),
                ]
            )
    return measuring.table(head, lines)


def number(value: float | None, digits: int = 0) -> str:
    """With so many digits behind the point; "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def ratio(value: float | None, dense: float | None) -> str:
    """Two digits behind the point, and 1/N below a tenth; "-" if one is unknown."""
    if value is None or dense is None:
        return "-"
    return f"1/{dense / value:.0f}" if value < 0.1 * dense else f"{value / dense:.2f}"


if __name__ == "__main__":
    main(sys.argv[1:])
