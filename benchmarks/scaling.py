"""Weak and strong scaling of a pre-training step over the devices of this machine.

python benchmarks/scaling.py [--devices 1 2 4 8] [--ways dense blocks ring] [--slices 8]
    [--size cpu|paper] [--width W] [--crop C] [--plot FILE.png] [--out FILE.json]

The step of `configs/pcl_acdc.py` without augmentation, with every way of the contrast
among devices; it is a small part of the step unless slices are many and small. Weak:
so many slices on every device; strong: as many in all as the most devices have in weak
scaling. All in one process, in turns; medians. Memory is what XLA plans for a step on
one device, beyond state and batch.

Efficiency is the speed-up over one device as a share of the ideal one, which is the
number of devices. Without a GPU or TPU the devices are virtual: they share the cores
that one of them would use alone, so no speed-up is possible, the ideal is 1, and the
efficiency shows the overhead of splitting and collectives alone, nothing of a real
interconnect. It may then exceed 1, where one device leaves cores idle.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import jax
import measuring
from step import SIZES, example, stage_config, steps_on

from pclseg.reports.drawing import COLOURS, DPI, LINE_STYLES, MARKERS

WAYS = ("dense", "blocks", "ring")
KINDS = ("weak", "strong")


def main(argv: list[str]) -> None:
    """Measures, prints a table, draws and writes where asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--slices", type=int, default=8, help="of a device, if weak")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--width", type=int, help="of the model, instead of the size's")
    parser.add_argument("--crop", type=int, help="pixels, instead of the size's")
    parser.add_argument("--steps", type=int, default=4, help="of a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="a .png, .svg or .webp file")
    measuring.add_out(parser)
    args = parser.parse_args(argv)
    jax.config.update("jax_num_cpu_devices", max(args.devices))
    virtual = jax.default_backend() == "cpu"
    found = jax.device_count()
    args.devices = sorted({1, *args.devices})
    if args.devices[-1] > found:
        measuring.tell(f"there are {found} devices; more are left out")
        args.devices = [number for number in args.devices if number <= found]
    rows = [row for kind in KINDS for row in measure(kind, args, virtual=virtual)]
    print(text(rows))
    if args.plot:
        plot(args.plot, rows, virtual=virtual)
    size = {name: chosen_size(args)[name] for name in ("width", "crop")}
    given = {"size": size, "virtual": virtual}
    measuring.save(args.out, {**given, "steps": args.steps, "rows": rows})


def chosen_size(args: argparse.Namespace) -> dict[str, Any]:
    """The size by name, changed as asked."""
    given = {name: vars(args)[name] for name in ("width", "crop")}
    return SIZES[args.size] | {name: x for name, x in given.items() if x is not None}


def measure(
    kind: str, args: argparse.Namespace, *, virtual: bool
) -> list[dict[str, Any]]:
    """Rows of every way with every number of devices."""
    steps, rows = {}, []
    for way, number in itertools.product(args.ways, args.devices):
        slices = args.slices * (number if kind == "weak" else max(args.devices))
        if slices % number:
            continue  # strong, where the devices do not divide the slices
        measuring.tell(f"compiling {kind}, {way}, {number} devices, {slices} slices")
        size = chosen_size(args) | {"pretrain": slices}
        config = stage_config("pretrain", size, dtype="float32", augment=False)
        config.method.similarities = way
        host = example("pretrain", size)
        name = f"{way} {number}"
        devices = jax.devices()[:number]
        steps[name], compiled = steps_on(devices, config, host, args.steps)
        planned = compiled.memory_analysis()
        rows.append(
            {
                "kind": kind,
                "way": way,
                "devices": number,
                "slices": slices,
                "mib": planned.temp_size_in_bytes / 2**20 if planned else None,
            }
        )
    seconds = measuring.in_turns(steps, repeats=args.repeats)
    speeds: dict[str, float] = {}
    for row, value in zip(rows, seconds.values(), strict=True):
        speed = row["slices"] * args.steps / value
        alone = speeds.setdefault(row["way"], speed)
        row["step_ms"] = 1e3 * value / args.steps
        row["slices_per_s"] = speed
        row["speed_up"] = speed / alone
        row["efficiency"] = speed / alone / (1 if virtual else row["devices"])
        measuring.tell(f"{kind}, {row['way']}, {row['devices']}: {speed:.1f} slices/s")
    return rows


def text(rows: list[dict[str, Any]]) -> str:
    """The table; speed-up and efficiency of a way against itself on one device."""
    head = ["scaling", "similarities", "devices", "slices", "ms a step", "slices/s"]
    lines = [
        [
            row["kind"],
            row["way"],
            str(row["devices"]),
            str(row["slices"]),
            f"{row['step_ms']:.1f}",
            f"{row['slices_per_s']:.1f}",
            f"{row['speed_up']:.2f}",
            f"{row['efficiency']:.2f}",
            "-" if row["mib"] is None else f"{row['mib']:.1f}",
        ]
        for row in rows
    ]
    return measuring.table([*head, "speed-up", "efficiency", "MiB a device"], lines)


def plot(path: Path, rows: list[dict[str, Any]], *, virtual: bool) -> None:
    """Speed over devices, a panel a kind, a line a way; grey is the ideal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    lines = []
    for axes, kind in zip(panels, KINDS, strict=True):
        own = [row for row in rows if row["kind"] == kind]
        lines = []
        for way in dict.fromkeys(row["way"] for row in own):
            of_way = [row for row in own if row["way"] == way]
            number = WAYS.index(way)  # its colour, whatever others there are
            lines += axes.plot(
                [row["devices"] for row in of_way],
                [row["slices_per_s"] for row in of_way],
                color=COLOURS[number],
                linestyle=LINE_STYLES[number],
                marker=MARKERS[number],
                label=way,
            )
        devices = [row["devices"] for row in own if row["way"] == own[0]["way"]]
        ideal = [own[0]["slices_per_s"] * (1 if virtual else n) for n in devices]
        name = f"ideal, of {own[0]['way']}"
        lines += axes.plot(devices, ideal, color="0.5", linewidth=0.9, label=name)
        most = max(row["slices"] for row in own)
        each = own[0]["slices"] // own[0]["devices"]
        sizes = {"weak": f"{each} slices a device", "strong": f"{most} slices in all"}
        axes.set_title(f"{kind} scaling, {sizes[kind]}", fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_xticks(devices, [str(n) for n in devices])
        of = "virtual devices, which share the cores" if virtual else "devices"
        axes.set_xlabel(f"number of {of}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    if not virtual:
        panels[0].set_yscale("log", base=2)
        panels[0].yaxis.set_major_formatter("{x:g}")
    else:
        panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("speed (slices/s)")
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=len(lines),
        frameon=False,
        handlelength=3.5,  # long enough to tell dashes apart
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main(sys.argv[1:])
