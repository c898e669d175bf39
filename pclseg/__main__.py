"""All commands under one name: `pclseg check ...`, or `python -m pclseg check ...`."""

import importlib
import sys
from collections.abc import Sequence

from pclseg import __version__
from pclseg.named import nearest

COMMANDS = {  # name: (module with a `main`, what it does)
    "check": ("pclseg.cli.check", "look at all files of a dataset before training"),
    "init": ("pclseg.cli.init", "write a first config for your own volumes"),
    "train": ("pclseg.main", "prepare, pre-train, fine-tune, evaluate"),
    "watch": ("pclseg.cli.watch", "a live view of a run"),
    "predict": ("pclseg.cli.predict", "segment new images with a finished run"),
    "share": ("pclseg.cli.share", "a model folder of finished runs, to hand on"),
    "export": ("pclseg.cli.export", "a trained model as a function for jax alone"),
    "table": ("pclseg.cli.table", "compare finished runs in text"),
    "figures": ("pclseg.cli.figures", "draw finished runs"),
    "report": ("pclseg.cli.report", "one HTML page about finished runs"),
    "grid": ("pclseg.cli.grid", "run a whole study, or go on with it"),
    "convert": ("pclseg.cli.convert", "DICOM, NRRD and MetaImage to NIfTI"),
    "import": ("pclseg.cli.import_weights", "weights of the PCL authors as a start"),
    "doctor": ("pclseg.cli.doctor", "versions, devices, and what is missing"),
    "completion": ("pclseg.cli.completion", "a script for TAB in bash, zsh or fish"),
    "demo": ("pclseg.cli.demo", "all of it on a phantom, in some minutes"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    rest = rest[:-1]
    if name in ("", "-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0 if name else 2
    if name == "--version":
        sys.stdout.write(f"pclseg {__version__}\n")
        return 0
    if name not in COMMANDS:
        sys.stderr.write(
            f"error: pclseg has no command {name!r}; it has: {', '.join(COMMANDS)}."
            f"{nearest(name, COMMANDS)}\n"
        )
        return 2
    try:
        program = importlib.import_module(COMMANDS[name][0]).main
    except KeyboardInterrupt:  # jax and what it needs take seconds
        sys.stderr.write("error: interrupted before anything was done.\n")
        return 130
    if name == "train":  # whose main takes the name of the program too
        from pclseg.processes import end_with

        end_with(lambda: program(["pclseg train", *rest]))
    return program(rest)


def _help() -> str:
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: pclseg COMMAND ...",
            "",
            *lines,
            "",
            "`pclseg COMMAND --help` tells more. First of all:",
            "  pclseg demo",
            "  pclseg check /data/mine --images=scans --labels=masks",
            "  pclseg init /data/mine --images=scans --labels=masks --out=mine.py",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
