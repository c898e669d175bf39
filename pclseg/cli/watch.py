"""A live view of a run in the terminal.

python -m pclseg.cli.watch runs/mine
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from pclseg import live
from pclseg.cli.status import exit_status

_SECONDS = 2.0  # between two looks
_STATE_SECONDS = 20.0  # between two questions whether the run goes on


def main(argv: Sequence[str] | None = None) -> int:
    """Shows the run until it ends; returns the exit status."""
    args = command_line().parse_args(argv)
    console = Console()

    def watch() -> None:
        how = live.state(args.run)
        if args.once or not console.is_terminal:
            console.print(live.view(args.run, how))
            return
        asked = time.monotonic()
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(
                live.view(args.run, how), console=console, auto_refresh=False
            ) as shown,
        ):
            while how == "running":
                time.sleep(_SECONDS)
                if time.monotonic() - asked > _STATE_SECONDS:
                    asked, how = time.monotonic(), live.state(args.run)
                shown.update(live.view(args.run, how), refresh=True)

    return exit_status(watch)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.watch",
        description="Shows how far a run is: steps, ETA, slices a second, the loss as a"
        " curve, the last validation, the last lines of its log. It reads files alone,"
        " and ends with the run or with Ctrl-C. Not on a terminal, or with --once, it"
        " shows that once.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's --workdir")
    parser.add_argument("--once", action="store_true", help="look once")
    return parser


if __name__ == "__main__":
    sys.exit(main())
