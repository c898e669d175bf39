"""One HTML page about finished runs.

python -m pclseg.cli.report runs/scratch_f* runs/pcl_f* --out=report.html
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pclseg.cli.status import exit_status
from pclseg.reports import page

log = logging.getLogger("pclseg.report")  # also when run as __main__


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page of `pclseg.reports.page`; returns the exit status."""
    args = command_line().parse_args(argv)

    def write() -> None:
        page.write_page(args.out, args.runs, baseline=args.baseline)
        log.info("%s", args.out)

    return exit_status(write)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.report",
        description="One page to read, print or send: tables, intervals and tests,"
        " training curves, what pre-training learned, cases, and how to repeat it all."
        " It needs no network.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's --workdir"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="file (report.html)"
    )
    parser.add_argument(
        "--baseline", help="arm to compare with (that of the first RUN)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
