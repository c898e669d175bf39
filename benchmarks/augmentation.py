"""Views a second of the spatial augmentation, against batchgenerators.

python benchmarks/augmentation.py [--sizes 48 128 352] [--views 64] [--out FILE.json]

The same chain with the same parameters: mirror, then with probability 0.67 one cubic
resampling of elastic deformation, rotation and scale, in pixels of the given size; of
the authors' for 352, whose deformation is shrunk with smaller ones. batchgenerators
runs in one thread, one image after the other, as in a worker of a loader; pclseg runs
on JAX's device, on a CPU with as many threads as there are cores: pin to one core with
`taskset -c 0` to compare core with core. In turns, in one process; medians.
"""

import argparse
import importlib.util
import sys
from typing import Any

import jax
import measuring
import numpy as np

from pclseg import augment


def main(argv: list[str]) -> None:
    """Measures, prints a table, and writes the numbers where asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 128, 352])
    parser.add_argument("--views", type=int, default=64, help="of a call of pclseg")
    parser.add_argument("--peer_views", type=int, default=16, help="of batchgenerators")
    parser.add_argument("--repeats", type=int, default=5)
    measuring.add_out(parser)
    args = parser.parse_args(argv)
    rows = [measure(size, args) for size in args.sizes]
    print(text(rows))
    measuring.save(args.out, {"views": args.views, "rows": rows})


def measure(size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Views a second of both."""
    shrink = size / 352
    chain = augment.make(**measuring.spatial(shrink=shrink))
    images = np.random.default_rng(0).normal(size=(args.views, size, size, 1))
    images = jax.device_put(images.astype(np.float32))
    rows = jax.numpy.arange(args.views)
    views = jax.jit(lambda key: chain(augment.sample_keys(key, rows), images, None)[0])
    key = jax.random.key(0)
    ways = {"pclseg": lambda: jax.block_until_ready(views(key))}
    if importlib.util.find_spec("batchgenerators"):
        from peer_augmentation import make_chain

        theirs = make_chain(size, shrink=shrink)
        few = np.asarray(images[: args.peer_views]).transpose(0, 3, 1, 2)

        def run() -> None:
            for image in few:
                theirs(data=image[None].copy())

        ways["batchgenerators"] = run
    seconds = measuring.in_turns(ways, repeats=args.repeats)
    number = {"pclseg": args.views, "batchgenerators": args.peer_views}
    return {"size": size} | {name: number[name] / s for name, s in seconds.items()}


def text(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = []
    for row in rows:
        theirs = row.get("batchgenerators")
        cells = [f"{theirs:.0f}", f"{row['pclseg'] / theirs:.1f}"] if theirs else []
        lines.append([str(row["size"]), f"{row['pclseg']:.0f}", *(cells or ["-", "-"])])
    return measuring.table(
        ["pixels", "pclseg views/s", "batchgenerators views/s", "ratio"], lines
    )


if __name__ == "__main__":
    main(sys.argv[1:])
