"""Work on many volumes in several processes, within the memory of the machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePosixPath
from typing import TypeVar

BYTES = 300 * 2**20  # of a worker that has only imported what it needs
REPORT_SECONDS = 5.0
# A terminal or a queue sends them to workers, too; only their parent knows what to do.
_SIGNALS = {signal.SIGINT, signal.SIGTERM}

T = TypeVar("T", bound=Hashable)
R = TypeVar("R")


class WorkerKilled(Exception):
    """A worker process was killed, most likely for lack of memory.

    Attributes:
        tasks: those that were in work.
    """

    def __init__(self, tasks: Sequence) -> None:
        """Of the tasks that were in work."""
        super().__init__(tasks)
        self.tasks = tasks


def usable_cpus() -> int:
    """Those that this process may run on, which a grid or a queue limits."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(
    tasks: Sequence[T],
    work: Callable[[T], R],
    *,
    size: Callable[[T], int],
    workers: int,
) -> Iterator[tuple[T, R]]:
    """Runs `work` on every task in worker processes; yields each when it is done.

    No more tasks are in work than fit in half of the machine's memory; one always is.

    Args:
        tasks: all different; they and what `work` returns are pickled.
        work: a function of a module.
        size: an upper estimate of the bytes that a task takes, worker included.
        workers: number of processes; 0 is the number of CPUs that may be used.

    Raises:
        WorkerKilled: the tasks in work are named.
    """
    workers = min(workers or usable_cpus(), len(tasks))
    if not workers:
        return
    budget = memory_bytes() / 2
    waiting = [(task, size(task)) for task in reversed(tasks)]
    running: dict[futures.Future, tuple[T, int]] = {}
    # Spawned, not forked: a fork would copy locks of JAX's and TensorFlow's threads.
    context = multiprocessing.get_context("spawn")
    with (
        futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin
        ) as pool,
        _ended_with_this(),
    ):
        while waiting or running:
            in_use = sum(size for _, size in running.values())
            while waiting and len(running) < workers:
                if running and in_use + waiting[-1][1] > budget:
                    break
                task, bytes_of_task = waiting.pop()
                in_work = [task, *(task for task, _ in running.values())]
                try:
                    with _deaf():  # as what is started here is until it has begun
                        future = pool.submit(work, task)
                except BrokenProcessPool as error:
                    raise WorkerKilled(in_work) from error
                running[future] = (task, bytes_of_task)
                in_use += bytes_of_task
            done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in done:
                try:
                    outcome = future.result()
                except BrokenProcessPool as error:
                    in_work = [task for task, _ in running.values()]
                    raise WorkerKilled(in_work) from error
                task, _ = running.pop(future)
                yield task, outcome


@contextlib.contextmanager
def _ended_with_this() -> Iterator[None]:
    """Ends workers where the block is left by an exception, as at Ctrl-C.

    A pool would wait until they are done with what they are at.
    """
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()  # deaf to all that is less
        raise


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Keeps _SIGNALS waiting, also from processes that are started in the block."""
    came: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    listening = {n: h for n, h in handlers.items() if callable(h) and is_main}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # inherited
    for number in listening:  # other threads may get the signal
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in listening.items():
            signal.signal(number, handler)
    for number in came:
        signal.raise_signal(number)


def _begin() -> None:
    """Has a worker leave signals to its parent, and end when that was killed."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def memory_bytes(system: Path = Path("/")) -> int:
    """The memory of the machine, or of the container or the job where that has less.

    Args:
        system: where /proc and /sys lie.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_limits(system)])


def _limits(system: Path) -> Iterator[int]:
    """What control groups grant this process: its own and those above it."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, kinds, own = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        # Version 1 has a tree for each kind of limit, version 2 one for all.
        tree = system / ("sys/fs/cgroup/memory" if kinds else "sys/fs/cgroup")
        name = "memory.limit_in_bytes" if kinds else "memory.max"
        group = PurePosixPath(own).relative_to("/")
        # In a container its path may be the host's; what it sees is then the root.
        for above in (group, *group.parents):
            with contextlib.suppress(OSError):
                limit = (tree / above / name).read_text().strip()
                if limit.isdecimal():
                    yield int(limit)


class Progress:
    """Reports how many volumes are done and how long the others will take."""

    def __init__(self, verb: str, total: int, report: Callable[[str], None]) -> None:
        """Of `total` volumes; lines such as "prepared 3 of 9 volumes" go to `report`.

        Args:
            verb: what is done to them, such as "prepared".
            total: how many there are.
            report: takes the lines.
        """
        self._verb = verb
        self._total = total
        self._report = report
        self._done = 0
        self._start = self._reported = time.monotonic()

    def step(self) -> None:
        """Counts one volume; speaks every few seconds and at the end."""
        self._done += 1
        now = time.monotonic()
        if self._done == 1:  # the time until now is that of starting the workers, too
            self._start = self._reported = now
        if now - self._reported < REPORT_SECONDS and self._done < self._total:
            return
        self._reported = now
        each = (now - self._start) / max(1, self._done - 1)
        left = minutes(each * (self._total - self._done))
        self._report(f"{self._verb} {self._done} of {self._total} volumes, {left} left")


def minutes(seconds: float) -> str:
    """As m:ss."""
    whole, rest = divmod(round(seconds), 60)
    return f"{whole}:{rest:02d}"
