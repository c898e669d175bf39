r"""Runs a study: every arm, number of labelled patients, fold and seed.

python -m pclseg.cli.grid configs/grids/hippocampus.py --out=runs/study --jobs=2
python -m pclseg.cli.grid runs/study/manifest.json --out=runs/study --cell=17

Cells that are finished are skipped, those that were stopped go on. The first form
writes the manifest, which the second one follows, one cell of it or all.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pclseg import grid, rundir
from pclseg.building import is_run_finished
from pclseg.cli.status import exit_status
from pclseg.config import load_config
from pclseg.errors import UserError
from pclseg.files import check_local, read_json, try_lock, write_json
from pclseg.grid import Cell
from pclseg.train.loop import format_seconds

log = logging.getLogger("pclseg.grid")  # also when run as __main__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is not finished; returns the exit status."""
    args = command_line().parse_args(argv)
    return exit_status(lambda: run(args))


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.grid",
        description=str(__doc__).partition("\n")[0],
    )
    parser.add_argument("grid", help="GRID.py[:ARG], or a manifest.json")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once; default: 1")
    parser.add_argument("--cell", type=int, help="only this number of the manifest")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT[,TEXT...]",
        help="only cells with one of these in their name, such as _m2_ or _m2_,_m6_,"
        " and what they need; of several options, each must hold",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of every config, e.g. data.raw_dir=DIR",
    )
    parser.add_argument("--list", action="store_true", help="print the cells, run none")
    return parser


def run(args: argparse.Namespace) -> None:
    """Plans or reads the cells, then lists or runs them.

    Raises:
        UserError: a mistake in the grid or manifest; a cell that failed.
    """
    if args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; expected 1 or more.")
    check_local("--out", args.out)
    out = args.out.resolve()  # stands in configs, which are compared as text
    is_manifest = Path(args.grid).suffix == ".json"
    cells = (
        grid.read_manifest(Path(args.grid))
        if is_manifest
        else grid.plan(load_config(args.grid))
    )
    chosen = _chosen(cells, args.cell, args.only)
    for setting in args.set:
        grid.check_setting(setting)
    for cell in chosen if args.set or is_manifest else ():
        grid.check_cell(cell, *args.set)
    if args.list:
        _print(cells, chosen, out)
        return
    _check_needs(cells, chosen, out)
    runner = _Runner(out, args.set, args.jobs)
    waiting = runner.unfinished(chosen)
    if not is_manifest:
        _keep_manifest(out / "manifest.json", cells)
    # As Ctrl-C: ends the cells. Not 0, or a scheduler would take the rest for done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Single cells may run beside each other, as an array does.
    with contextlib.nullcontext() if args.cell is not None else _alone_in(out):
        runner.run(chosen, waiting)


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Refuses to run a grid twice at once on this machine."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w", encoding="utf-8") as lock:
        if not try_lock(lock):
            raise UserError(
                f"another process runs the grid in {out}; wait for it, or stop it."
            )
        yield


def _keep_manifest(path: Path, cells: Sequence[Cell]) -> None:
    """Writes the manifest; jobs that are queued go by its numbers, so it stays."""
    manifest = grid.to_json(cells)
    if path.is_file() and read_json(path) != json.loads(json.dumps(manifest)):
        raise UserError(
            f"{path} is of another grid; use a new --out, or delete that file to change"
            " the grid (cells that are the same are kept)."
        )
    write_json(path, manifest)
    log.info("%s: %d cells", path, len(cells))


def _chosen(
    cells: Sequence[Cell], number: int | None, texts: Sequence[str]
) -> list[Cell]:
    """The cells asked for; with `texts` also those that they need."""
    if number is not None:
        if not 0 <= number < len(cells):
            raise UserError(
                f"--cell is {number}; the manifest has 0 to {len(cells) - 1}."
            )
        return [cells[number]]
    choices = [[part.strip() for part in text.split(",")] for text in texts]
    if not all(part for parts in choices for part in parts):
        raise UserError(f"--only={','.join(texts)} has an empty part; leave it out.")
    wanted = {
        cell.name
        for cell in cells
        if all(any(part in cell.name for part in parts) for parts in choices)
    }
    if not wanted:
        raise UserError(
            f"no cell has {' and '.join(texts)} in its name; names look like"
            f" {cells[-1].name}."
        )
    for cell in reversed(cells):  # later waves first
        if cell.name in wanted:
            wanted.update(cell.needs)
    return [cell for cell in cells if cell.name in wanted]


def _check_needs(cells: Sequence[Cell], chosen: Sequence[Cell], out: Path) -> None:
    """Raises UserError where a cell needs one that is neither finished nor chosen."""
    names = {cell.name: number for number, cell in enumerate(cells)}
    here = {cell.name for cell in chosen}
    for cell in chosen:
        for need in cell.needs:
            if need not in here and not is_run_finished(out / need):
                raise UserError(
                    f"cell {names[cell.name]}, {cell.name}, needs {need}, which is not"
                    f" finished; run --cell={names[need]} first."
                )


def _print(cells: Sequence[Cell], chosen: Sequence[Cell], out: Path) -> None:
    names = {cell.name for cell in chosen}
    for number, cell in enumerate(cells):
        if cell.name in names:
            done = "finished" if is_run_finished(out / cell.name) else "open"
            log.info("%4d  wave %d  %-8s  %s", number, cell.wave, done, cell.name)
    for wave, span in grid.to_json(cells)["waves"].items():
        log.info("wave %s: cells %s, once the waves before it are finished", wave, span)


@dataclasses.dataclass
class _Job:
    """A cell in work."""

    cell: Cell
    process: subprocess.Popen[bytes]
    start: float


class _Runner:
    """Runs cells, some at once, each in its own process with its share of the cores."""

    def __init__(self, out: Path, settings: Sequence[str], jobs: int) -> None:
        self._out, self._settings = out, settings
        self._slots: list[_Job | None] = [None] * jobs
        self._seconds: dict[int, list[float]] = {}  # of finished cells, by wave
        self._failed: set[str] = set()

    def unfinished(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those that are still to run.

        Raises:
            UserError: one was run, or begun, with another config.
        """
        return [c for c in cells if not grid.finished(c, self._out, self._settings)]

    def run(self, cells: Sequence[Cell], waiting: list[Cell]) -> None:
        """Runs what is not finished, a cell as soon as its needs are met.

        Args:
            cells: all that were asked for.
            waiting: those of them that are not finished.

        Raises:
            UserError: cells failed; the others were run.
        """
        log.info("%d of %d cells to run", len(waiting), len(cells))
        total, blocked = len(waiting), []
        with self._ended_with_us():
            while waiting or any(self._slots):
                lost = [c for c in waiting if self._failed.intersection(c.needs)]
                blocked += [cell.name for cell in lost]
                self._failed.update(cell.name for cell in lost)
                waiting = [cell for cell in waiting if cell not in lost]
                self._start(waiting)
                for job in self._ended():
                    left = len(waiting) + sum(slot is not None for slot in self._slots)
                    self._report(job, total - left, total, waiting)
                time.sleep(0.2)
        if self._failed:
            names = sorted(self._failed.difference(blocked))
            raise UserError(
                f"{len(names)} cells did not finish, {names[0]} first (see"
                f" {self._log(names[0])}), and {len(blocked)} that need them were not"
                " run; mend the cause (or take out a tuning candidate that diverges),"
                " and the same command goes on."
            )
        log.info("all %d cells are finished", len(cells))
        runs = [cell.name for cell in cells if cell.name.startswith("runs/")]
        if runs:
            baseline = Path(runs[0]).name.rpartition("_m")[0]
            log.info(
                "the report: python -m pclseg.cli.report %s/runs/* --baseline=%s"
                " --out=report.html",
                self._out,
                baseline,
            )

    def _log(self, name: str) -> Path:
        return self._out / "logs" / f"{name.replace('/', '_')}.txt"

    def _start(self, waiting: list[Cell]) -> None:
        """Gives every free slot the first cell whose needs are finished."""
        for slot, job in enumerate(self._slots):
            ready = (c for c in waiting if self._is_ready(c))
            if job is None and (cell := next(ready, None)):
                waiting.remove(cell)
                if not is_run_finished(self._out / cell.name):
                    self._slots[slot] = self._launch(cell, slot)

    def _is_ready(self, cell: Cell) -> bool:
        """Whether its needs are finished and no other process has it in work."""
        needs = all(is_run_finished(self._out / name) for name in cell.needs)
        return needs and not rundir.is_live(self._out / cell.name)

    def _launch(self, cell: Cell, slot: int) -> _Job:
        arguments = grid.arguments(cell, self._out, self._settings)
        path = self._log(cell.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pclseg.main", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._keep_to_cores(process.pid, slot)
        log.info("start  %s", cell.name)
        return _Job(cell, process, time.monotonic())

    def _keep_to_cores(self, pid: int, slot: int) -> None:
        """Of several jobs, each stays on its own cores, where that can be said."""
        jobs = len(self._slots)
        if jobs > 1 and hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(pid, cores[slot % len(cores) :: jobs])

    def _ended(self) -> Iterator[_Job]:
        for slot, job in enumerate(self._slots):
            if job is not None and job.process.poll() is not None:
                self._slots[slot] = None
                yield job

    def _report(
        self, job: _Job, done: int, total: int, waiting: Sequence[Cell]
    ) -> None:
        seconds = time.monotonic() - job.start
        if job.process.returncode or not is_run_finished(self._out / job.cell.name):
            self._failed.add(job.cell.name)
            log.error(
                "%s is not finished, exit code %d: %s",
                job.cell.name,
                job.process.returncode,
                self._log(job.cell.name),
            )
            return
        self._seconds.setdefault(job.cell.wave, []).append(seconds)
        log.info(
            "[%d/%d] %s: %s; ETA %s",
            done,
            total,
            job.cell.name,
            format_seconds(seconds),
            format_seconds(self._left(waiting)),
        )

    def _left(self, waiting: Sequence[Cell]) -> float:
        """Seconds left, from the means of the waves, or of all cells so far."""
        known = [s for of_wave in self._seconds.values() for s in of_wave]
        waves = {wave: sum(of) / len(of) for wave, of in self._seconds.items()}
        mean = sum(known) / len(known)
        total = sum(waves.get(cell.wave, mean) for cell in waiting)
        return total / len(self._slots)

    @contextlib.contextmanager
    def _ended_with_us(self) -> Iterator[None]:
        """Asks the cells in work to save and end, where this process is ended."""
        try:
            yield
        except BaseException:
            for job in filter(None, self._slots):
                job.process.terminate()
            for job in filter(None, self._slots):
                job.process.wait()
            log.info("stopped; the same command goes on from there.")
            raise


if __name__ == "__main__":
    sys.exit(main())
