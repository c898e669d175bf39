"""Runs a program of pclseg in a process of its own, and tells what that took."""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil  # tensorflow-datasets needs it too

from pclseg.train.metrics import read_rows

INTERVAL = 0.02  # seconds between looks at the memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """What a run took.

    Attributes:
        seconds: from start to end, imports included.
        main_mib: the most memory that the process had resident.
        all_mib: the same with its children; a page that several share counts in each.
        unfiled_mib: of the process, pages of no file, which the system cannot take back
            by writing them to one; where the system tells them apart (Linux).
    """

    seconds: float
    main_mib: float
    all_mib: float
    unfiled_mib: float


def run(arguments: Sequence[str], *, cache: Path, module: str = "pclseg.main") -> Usage:
    """Runs `python -m MODULE` with these arguments to its end.

    What it compiles is kept in `cache`: a second run with it compiles nothing.

    Memory is looked at from outside, every INTERVAL: what `getrusage` says of a process
    may be of the one that started it.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", module, *arguments]
    main = together = unfiled = 0
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = psutil.Popen(
            command, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            own, others, of_no_file = resident(process)
            main, together = max(main, own), max(together, own + others)
            unfiled = max(unfiled, of_no_file)
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-2000:]}")
    return Usage(
        seconds=seconds,
        main_mib=main / 2**20,
        all_mib=together / 2**20,
        unfiled_mib=unfiled / 2**20,
    )


def resident(process: psutil.Process) -> tuple[int, int, int]:
    """Bytes of a process, of its children, and of the process those of no file."""
    sizes, of_no_file = [], 0
    try:
        for one in (process, *process.children(recursive=True)):
            memory = one.memory_info()
            sizes.append(memory.rss)
            if one is process:
                of_no_file = memory.rss - getattr(memory, "shared", 0)
    except psutil.Error:  # one has ended
        pass
    return (sizes[0] if sizes else 0), sum(sizes[1:]), of_no_file


def training_speed(folder: Path) -> dict[str, float]:
    """Medians of the columns of `speed.csv` but for the first row, of a warm-up."""
    rows = read_rows(folder / "speed.csv")[1:]
    names = ("slices_per_second", "data_wait_share")
    return {name: statistics.median(float(row[name]) for row in rows) for name in names}
