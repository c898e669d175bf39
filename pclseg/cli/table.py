"""Compares finished runs: python -m pclseg.cli.table runs/scratch_f* runs/pcl_f*.

What every number means stands in docs/statistics.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pclseg.cli.status import exit_status
from pclseg.files import write_json
from pclseg.reports import comparison, runs, tables


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables of `pclseg.reports.tables`; returns the exit status."""
    args = command_line().parse_args(argv)

    def show() -> None:
        read = [runs.read_run(workdir) for workdir in args.runs]
        numbers = comparison.numbers(read, baseline=args.baseline)
        if args.json:
            write_json(args.json, numbers)
        as_shown = tables.as_markdown if args.markdown else tables.as_text
        print(as_shown(tables.render(numbers)), end="")

    return exit_status(show)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.table",
        description="Dice, HD95, ASD and NSD of finished runs: mean over folds per arm"
        " and label count; paired differences to a baseline, intervals and tests.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's --workdir")
    parser.add_argument(
        "--baseline", help="arm to compare with (that of the first RUN)"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="GitHub markdown instead of plain text"
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="file for all numbers, unrounded"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
