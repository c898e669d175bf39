"""Writes a first config for your own volumes, each choice with its reason.

python -m pclseg.cli.init /data/mine --images=scans --labels=masks --out=mine.py
"""

import argparse
import ast
import importlib.util
import logging
import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from pclseg import choices
from pclseg.cli import check as checking
from pclseg.cli.doctor import devices
from pclseg.cli.status import exit_status
from pclseg.data.check import Checked, check
from pclseg.data.findings import ERROR
from pclseg.data.fitness import Plans
from pclseg.data.workers import memory_bytes
from pclseg.errors import UserError
from pclseg.files import check_local, write_text
from pclseg.templating import render

log = logging.getLogger("pclseg.init")  # also when run as __main__
_WIDTH = 88  # columns of the file


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the data and writes the config; returns the exit status."""
    args = command_line().parse_args(argv)

    def run() -> None:
        check_local("--out", args.out)
        args.out = Path(os.path.expanduser(args.out))
        if ":" in str(args.out):
            raise UserError(
                f"--out is {args.out}; a colon ends the name of a config, so use none."
            )
        if args.out.suffix != ".py" or args.out.is_dir():
            raise UserError(f"--out is {args.out}; name a file that ends in .py.")
        if args.out.exists() and not args.overwrite:
            raise UserError(
                f"--out {args.out} exists; --overwrite replaces it, or name another."
            )
        dataset = checking.dataset_of(args)
        size, memory = _device(args.size)
        checked = check(
            dataset,
            Plans(),
            slice_axis="auto",
            num_workers=args.workers,
            report=log.info,
        )
        checking.tell(checked)
        if number := checked.count(ERROR):
            raise UserError(
                "nothing was written: mend what is marked as error above"
                f" ({number}), or narrow --images."
            )
        labelled = {volume.patient for volume in choices.with_classes(checked)}
        if len(labelled) < 2:
            raise UserError(
                f"{len(labelled)} patients have a label with more than background, and"
                " two are needed, of which one is held out; give --labels, or"
                " --patient. To pre-train alone, see configs/pcl_nifti.py."
            )
        write_text(args.out, config_text(args, checked, size=size, memory=memory))
        log.info("wrote %s; look at it, then:", args.out)
        given = shlex.quote(str(args.out))
        log.info("  pclseg train --config=%s --dry_run", given)
        workdir = shlex.quote(f"runs/{args.out.stem}")
        log.info("  pclseg train --config=%s --workdir=%s", given, workdir)

    return exit_status(run)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.init",
        description="Looks at all volumes, as `pclseg check` does, and writes a config"
        " for them in which every choice says why. It runs as it is, and is yours to"
        " change.",
        allow_abbrev=False,
    )
    checking.add_data(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="the config to write, such as mine.py"
    )
    parser.add_argument(
        "--size",
        choices=list(choices.SIZES),
        help="for what to make it (what jax finds here)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    return parser


def config_text(
    args: argparse.Namespace, checked: Checked, *, size: str, memory: int
) -> str:
    """The config as Python."""
    chosen = choices.choose(checked, size=size, memory=memory)
    dataset = checked.dataset
    labelled = choices.with_classes(checked)
    patients = len({volume.patient for volume in labelled})
    slices = sum(choices.count(v, chosen["slice_axis"].value) for v in labelled)
    folds = chosen["folds"].value
    text = render(
        "config.py.jinja",
        title=_plain(
            f"PCL for {len(dataset.cases)} volumes of"
            f" {Path(args.raw_dir).expanduser().absolute().name}, {len(labelled)} with"
            " label."
        ),
        name=_plain(shlex.quote(str(args.out))),
        run=_plain(shlex.quote(f"runs/{args.out.stem}")),
        scratch=_plain(shlex.quote(f"runs/{args.out.stem}_scratch")),
        c=chosen,
        shrink=chosen["crop"].value / 352,
        raw_dir=str(Path(args.raw_dir).expanduser().absolute()),
        images=_one(args.images),
        labels=_one(args.labels),
        more_images=tuple(args.more_images),
        channels=tuple(args.channels),
        match=args.match,
        patient=args.patient,
        label_values=dataset.label_values,
        class_names=dataset.class_names,
        pipeline="tf" if importlib.util.find_spec("tensorflow") else "numpy",
        slices_a_patient=round(slices / patients),
        training_patients=choices.training_patients(patients, folds),
    )
    text = "\n".join(_folded(text.split("\n")))
    ast.parse(text)
    return text


def _plain(text: str) -> str:
    """The text as it may stand in a docstring."""
    shown = text.encode("utf-8", "replace").decode()
    return shown.replace("\\", "\\\\").replace('"', '\\"')


def _one(patterns: Sequence[str]) -> str | tuple[str, ...]:
    return patterns[0] if len(patterns) == 1 else tuple(patterns)


def _folded(lines: Sequence[str]) -> list[str]:
    """The lines, of which comments that are too long become several."""
    folded = []
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        if len(line) > _WIDTH and line.lstrip().startswith("# "):
            start = f"{indent}# "
            folded += textwrap.wrap(
                line.lstrip()[2:], _WIDTH, initial_indent=start, subsequent_indent=start
            )
        else:
            folded.append(line)
    return folded


def _device(size: str | None) -> tuple[str, int]:
    """The key of choices.SIZES, and the bytes of memory of the first device."""
    device = devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu" or not limit:
        return size or "cpu", memory_bytes()
    return size or "gpu", limit


if __name__ == "__main__":
    sys.exit(main())
