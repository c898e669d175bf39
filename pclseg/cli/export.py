"""Writes a trained model as one file that runs without pclseg, in jax alone.

python -m pclseg.cli.export runs/mine --out=exported
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pclseg import network
from pclseg.cli.status import exit_status
from pclseg.export import PLATFORMS, write_export
from pclseg.files import check_local, check_new

log = logging.getLogger("pclseg.export")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes it; returns the exit status."""
    args = command_line().parse_args(argv)

    def export() -> None:
        check_local("--out", args.out)
        check_new("--out", args.out)
        networks = [each for path in args.model for each in network.read(path)]
        platforms = list(dict.fromkeys(args.platforms))
        apart = write_export(args.out, networks, platforms=platforms)
        log.info(
            "wrote %s; probabilities are those of pclseg within %.1g; README.md there"
            " says how to call it",
            args.out,
            apart,
        )

    return exit_status(export)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.export",
        description="Writes a folder with a jax.export artefact, model.jax_export: a"
        " volume of any size in, labels and probabilities out, normalisation inside."
        " Its numbers are checked against pclseg's before it is written.",
    )
    parser.add_argument(
        "model", nargs="+", help="a run's --workdir or a model folder; or several"
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--platforms",
        nargs="+",
        choices=PLATFORMS,
        default=PLATFORMS,
        help=f"where it is to run ({' '.join(PLATFORMS)})",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
