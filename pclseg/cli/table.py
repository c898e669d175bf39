"""Compares finished runs: python -m pclseg.cli.table runs/scratch_f* runs/pcl_f*."""

import argparse
import sys
from collections.abc import Sequence

from pclseg.cli.status import exit_status
from pclseg.reports import tables


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables of `pclseg.reports.tables`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.table",
        description="Dice, HD95, ASD and NSD of finished runs: mean over folds per arm"
        " and label count, and paired differences to a baseline.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's --workdir")
    parser.add_argument(
        "--baseline", help="arm to compare with (that of the first RUN)"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="GitHub markdown instead of plain text"
    )
    args = parser.parse_args(argv)

    def show() -> None:
        runs = [tables.read_run(workdir) for workdir in args.runs]
        comparison = tables.compare(runs, baseline=args.baseline)
        render = tables.as_markdown if args.markdown else tables.as_text
        print(render(comparison), end="")

    return exit_status(show)


if __name__ == "__main__":
    sys.exit(main())
