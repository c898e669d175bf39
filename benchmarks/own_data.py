"""What check, prepare and predict take of your own volumes: few large, many small.

python benchmarks/own_data.py [--sets large small] [--large 2] [--small 2000]
    [--only COMMAND ...] [--out FILE.json]

Volumes are noise around a block, int16 in .nii.gz files, labelled. Every measurement is
the command in a process of its own: seconds from start to end, imports and compilation
included, and the most memory that was resident, of the process and with its workers,
each run once; of the process also what is of no file. What `--memory` keeps in files is
resident as long as there is room, but not of no file. The network is that of
`configs/scratch_nifti.py:size=cpu`, untrained: how long a forward pass takes does not
depend on its weights.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import measuring
import nibabel as nib
import numpy as np
import program

from pclseg import building, network
from pclseg.config import load_config
from pclseg.network import Network

CONFIG = "configs/scratch_nifti.py"
CLASSES = 3
# [X, Y, Z] voxels and mm of one volume.
SETS = {
    "large": ((512, 512, 1000), (0.8, 0.8, 1.0)),
    "small": ((48, 40, 24), (1.5, 1.5, 3.0)),
}


def main(argv: list[str]) -> None:
    """Measures, prints a table, and writes the numbers where asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--large", type=int, default=2, help="how many large ones (2)")
    parser.add_argument("--small", type=int, default=2000, help="small ones (2000)")
    parser.add_argument("--only", nargs="+", help="commands of the table (all)")
    parser.add_argument("--folder", type=Path, help="for the volumes (a temporary one)")
    measuring.add_out(parser)
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_model(folder / "model")
        for kind in args.sets:
            number = vars(args)[kind]
            measuring.tell(f"writing {number} {kind} volumes")
            write_volumes(folder / kind, kind, number)
            rows += measure(folder, kind, number, only=args.only)
    print(text(rows))
    measuring.save(args.out, {"rows": rows})


def write_volumes(folder: Path, kind: str, number: int) -> None:
    """Writes scans/ and masks/."""
    shape, spacing = SETS[kind]
    generator = np.random.default_rng(0)
    label = np.zeros(shape, np.uint8)
    for value in range(1, CLASSES):
        inner = tuple(slice(value * n // 8, n - value * n // 8) for n in shape)
        label[inner] = value
    affine = np.diag([*spacing, 1.0])
    for name in ("scans", "masks"):
        (folder / name).mkdir(parents=True)
    for case in range(number):
        noise = generator.integers(-200, 200, shape, np.int16)
        image = noise + np.int16(100) * label.astype(np.int16)
        nib.save(nib.Nifti1Image(image, affine), folder / f"scans/c{case:04d}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / f"masks/c{case:04d}.nii.gz")


def write_model(folder: Path) -> None:
    """A model folder with random weights."""
    config = load_config(f"{CONFIG}:size=cpu,classes={CLASSES}")
    stage = config.finetune
    method = building.build_method(stage)
    height, width = stage.data.crop_size
    shown = {
        "image": np.zeros((1, height, width, 1), np.float32),
        "label": np.zeros((1, height, width), np.int32),
    }
    params, model_state, _ = jax.jit(method.init)(jax.random.key(0), shown)
    prepare = config.data.prepare.to_dict() | {"slice_axis": 2}
    del prepare["workers"]
    random = Network(
        source="random weights",
        stage=stage,
        step=0,
        params=jax.tree.map(np.asarray, params),
        batch_stats=jax.tree.map(np.asarray, model_state["batch_stats"]),
        options=network.options_of(CONFIG, prepare),
        class_names=("background", *(f"label {n}" for n in range(1, CLASSES))),
        label_values=tuple(range(CLASSES)),
        channels=(),
        gains=None,
    )
    network.write_model(folder, [random], card="Random weights.\n")


def measure(
    folder: Path, kind: str, number: int, *, only: list[str] | None
) -> list[dict[str, Any]]:
    """A row of every command, or of those named."""
    data = folder / kind
    predict = [
        "predict",
        f"--model={folder / 'model'}",
        f"--images={data / 'scans'}",
        f"--out={data / 'predicted'}",
    ]
    commands = {
        "check": [
            "check",
            str(data),
            "--images=scans",
            "--labels=masks",
            f"--out={data / 'check'}",
        ],
        "prepare": [
            "train",
            f"--config={CONFIG}:size=cpu,images=scans,labels=masks,classes={CLASSES}"
            ",labelled=0",
            f"--config.data.raw_dir={data}",
            f"--config.data.store_dir={data / 'prepared'}",
            "--config.data.split.folds=2",
            f"--workdir={data / 'run'}",
            "--stages=prepare",
        ],
        "predict": predict,
        "predict --memory=1": [*predict, "--memory=1", f"--out={data / 'on_disk'}"],
    }
    if kind == "small":  # which one GiB holds
        del commands["predict --memory=1"]
    rows = []
    for name, arguments in commands.items():
        if only and name not in only:
            continue
        usage = program.run(arguments, cache=folder / "compiled", module="pclseg")
        measuring.tell(f"{name}: {usage.seconds:.0f} s, {usage.all_mib:.0f} MiB")
        rows.append(
            {
                "command": name,
                "volumes": number,
                "shape": SETS[kind][0],
                "seconds": usage.seconds,
                "main_mib": usage.main_mib,
                "all_mib": usage.all_mib,
                "unfiled_mib": usage.unfiled_mib,
            }
        )
    return rows


def text(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        [
            f"pclseg {row['command']}",
            str(row["volumes"]),
            " x ".join(map(str, row["shape"])),
            f"{row['seconds']:.0f}",
            f"{row['seconds'] / row['volumes']:.2g}",
            f"{row['main_mib']:,.0f}",
            f"{row['all_mib']:,.0f}",
            f"{row['unfiled_mib']:,.0f}",
        ]
        for row in rows
    ]
    head = ["command", "volumes", "of voxels", "s", "s a volume", "main MiB"]
    return measuring.table([*head, "with workers MiB", "of no file MiB"], lines)


if __name__ == "__main__":
    main(sys.argv[1:])
