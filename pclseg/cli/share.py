"""Writes a model folder: what a colleague needs to predict, and to know what it is.

python -m pclseg.cli.share runs/mine_f0 runs/mine_f1 --out=mine --licence=CC-BY-4.0
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pclseg import network
from pclseg.card import write_card
from pclseg.cli.status import exit_status
from pclseg.errors import UserError
from pclseg.files import check_local, check_new

log = logging.getLogger("pclseg.share")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes it; returns the exit status."""
    args = command_line().parse_args(argv)

    def share() -> None:
        check_local("--out", args.out)
        check_new("--out", args.out)
        if len({run.resolve() for run in args.run}) < len(args.run):
            raise UserError("a run is named twice; name each once.")
        networks = [network.of_run(run) for run in args.run]
        card = write_card(args.run, networks, args.out.name, licence=args.licence)
        network.write_model(args.out, networks, card)
        size = sum(path.stat().st_size for path in args.out.iterdir()) / 2**20
        log.info("wrote %s, %.1f MiB; look at its README.md", args.out, size)

    return exit_status(share)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.share",
        description="Writes a folder with the weights of finished runs (safetensors),"
        " how they prepare images, the classes, and a model card. `pclseg predict"
        " --model=FOLDER` needs nothing else. It names no patient and no path.",
    )
    parser.add_argument("run", type=Path, nargs="+", help="a run's --workdir")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--licence",
        default="",
        help="of the weights, such as CC-BY-4.0; the card says so where none is given",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
