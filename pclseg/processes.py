"""Several processes of one run: joined at the start, of one mind at every turn.

Every process runs the same program on its own devices. What one of them finds out, a
stop it was asked for or an error of its user's, all must learn, for the others would
wait for ever in the next collective.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from pclseg.errors import Stopped, UserError

log = logging.getLogger(__name__)

T = TypeVar("T")
LOST = 69  # exit code where another process is gone
_FAILED = (1, 130, LOST)  # exit codes of errors and of a second Ctrl-C
# XLA on CPUs gives up a collective after half an hour, but the first process may need
# longer for the preparation that the others wait for.
_CPU_PATIENCE = "--xla_cpu_collective_timeout_seconds"


class PeersLost(Exception):
    """A collective failed: another process is gone, and says why."""


_LAST_SECONDS = 5.0


def join(
    coordinator: str, *, processes: int, process: int, timeout_seconds: int
) -> None:
    """Joins the other processes of the run; call it before anything asks for devices.

    Args:
        coordinator: "HOST:PORT" of process 0, or "auto" where the machines know it
            themselves: on a TPU pod, under SLURM or Open MPI.
        processes: how many there are; with "auto" not used.
        process: which of them this is, from 0; with "auto" not used.
        timeout_seconds: how long to wait for the others.

    Raises:
        UserError: no such number or address; the coordinator was not reached.

    Where others do not come in time, this process ends with a message and status 1.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _CPU_PATIENCE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_CPU_PATIENCE}={7 * 24 * 3600}".strip()
    given: dict[str, Any] = {}
    if coordinator != "auto":
        if not 0 <= process < processes:
            raise UserError(
                f"--process is {process} of --processes={processes}; expected 0 to"
                f" {max(processes, 1) - 1}."
            )
        _check_address(coordinator, listens=process == 0)
        given = dict(
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=process,
        )
        if process:
            _check_reached(coordinator, timeout_seconds)
    missing = (
        f"not all processes came to --coordinator={coordinator} in {timeout_seconds} s;"
        " start every one with the same --coordinator and --processes, and see what the"
        " others say."
    )
    patience = timeout_seconds + _LAST_SECONDS  # of jax, which would dump its stack
    try:
        with _ends_after(timeout_seconds, missing):
            jax.distributed.initialize(**given, initialization_timeout=int(patience))
    except ValueError as error:
        raise UserError(
            f"--coordinator={coordinator}: jax does not know the other processes"
            f" ({error}); 'auto' is for TPU pods, SLURM and Open MPI, elsewhere give"
            " HOST:PORT, --processes and --process."
        ) from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"the other processes at --coordinator={coordinator} were not reached in"
            f" {timeout_seconds} s ({reason}); start all of them with the same"
            " --coordinator and --processes."
        ) from error


def _check_address(coordinator: str, *, listens: bool) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator is {coordinator!r}; expected 'auto' or HOST:PORT of process"
            " 0, such as 10.0.0.2:1234."
        )
    if not listens:
        return
    try:  # here, for jax would crash
        with socket.create_server(("", int(port))):
            pass
    except OSError as error:
        raise UserError(
            f"--coordinator={coordinator}: this machine cannot listen at port {port}"
            f" ({error.strerror or error}); choose another one."
        ) from error


def _check_reached(coordinator: str, timeout_seconds: int) -> None:
    """Waits for the coordinator here: jax would end the process with a stack dump."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            address = (host.strip("[]"), int(port))  # of IPv6 [::1]:1234
            socket.create_connection(address, timeout=2).close()
            return
        except UnicodeError as error:
            raise UserError(
                f"--coordinator is {coordinator!r}, which is no name of a machine"
                f" ({error}); expected HOST:PORT of process 0."
            ) from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator={coordinator} did not answer in {timeout_seconds} s"
                    f" ({error.strerror or error}); is process 0 running there, and"
                    " may this machine reach it?"
                ) from error
        time.sleep(0.5)


@contextlib.contextmanager
def _ends_after(seconds: float, message: str) -> Iterator[None]:
    """A block that ends the process with `message` if it is not through in time."""

    def end() -> None:
        log.error("%s", message)
        os._exit(_FAILED[0])

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_with(program: Callable[[], int]) -> NoReturn:
    """Runs the program and ends this process with its status.

    On the way out jax waits for the other processes. Not so after a failure: they may
    be in the middle of something else and would never come. The first process then goes
    last, for jax ends the others when it is gone.
    """
    try:
        status = program()
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        status = 1
    if status in _FAILED and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if is_first():
            time.sleep(_LAST_SECONDS)
        os._exit(status)
    sys.exit(status)


def several() -> bool:
    """Whether there are others; asks for no device."""
    return jax.distributed.is_initialized() and count() > 1


def count() -> int:
    """How many processes the run has."""
    return jax.process_count()


def index() -> int:
    """Which of them this is, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Whether this process is the one that writes the run directory."""
    return index() == 0


def any_of(flag: bool) -> bool:
    """Whether `flag` is set in any process; all must ask."""
    if count() == 1:
        return flag
    return bool(_all_gather(np.array(flag)).any())


def _all_gather(array: np.ndarray) -> np.ndarray:
    with _losing_peers():
        return np.asarray(multihost_utils.process_allgather(array))


@contextlib.contextmanager
def _losing_peers() -> Iterator[None]:
    """Raises PeersLost for what a collective on the host raises, of several kinds."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # Gloo's is a ValueError
        raise PeersLost(str(error)) from error


def meet() -> None:
    """Returns once all processes are here."""
    any_of(False)


def gather(value: Any) -> list[Any]:
    """What every process has, in their order; it is JSON-able, and all must ask."""
    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = _all_gather(np.array(len(text))).reshape(-1)
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = _all_gather(padded)
    return [
        json.loads(row[:length].tobytes())
        for row, length in zip(texts, lengths, strict=True)
    ]


def from_first(tree: T) -> T:
    """Every array of the tree as the first process has it, on the host.

    The trees must have the same structure, shapes and dtypes.
    """
    if count() == 1:
        return tree
    with _losing_peers():
        return multihost_utils.broadcast_one_to_all(tree)


def total(array: np.ndarray) -> np.ndarray:
    """Sum over the processes; int64 stays exact."""
    if count() == 1:
        return array
    return np.sum(np.array(gather(array.tolist())), axis=0).astype(array.dtype)


def together(action: Callable[[], T]) -> T:
    """Calls `action` in every process; where one fails or stops, all do.

    Raises:
        UserError: of the first process that has one, and which process that is.
        Stopped: the first process that ended early was asked to.
    """
    result, error = None, None
    try:
        result = action()
    except (UserError, Stopped) as found:
        error = found
    if count() == 1:
        if error:
            raise error
        return result  # pyright: ignore[reportReturnType]
    mine = error and [isinstance(error, Stopped), str(error)]
    for number, end in enumerate(gather(mine)):
        if end is not None:
            stopped, text = end
            if stopped:
                raise Stopped(text) from error
            raise UserError(f"process {number} of {count()}: {text}") from error
    return result  # pyright: ignore[reportReturnType]


def first_then_others(action: Callable[[], T]) -> T:
    """Calls `action` in the first process and, once that is done, in the others."""
    if not is_first():
        together(lambda: None)
    result = together(action)
    if is_first():
        together(lambda: None)
    return result


def turns(number: int) -> Iterator[int | None]:
    """Deals 0..number-1 to the processes; all take equally many turns.

    Yields:
        The next item of this process, or None in a turn that has none left for it.
    """
    for start in range(0, number, count()):
        item = start + index()
        yield item if item < number else None


def first_says(flag: bool) -> bool:
    """`flag` as the first process has it; all must ask."""
    return bool(from_first(np.array(flag)))


def check_alike(facts: Mapping[str, str]) -> None:
    """Checks that all processes have the same facts.

    Args:
        facts: text by what it is about, such as {"the config": "..."}.

    Raises:
        UserError: naming what differs, and in which processes.
    """
    everyone = gather(dict(facts))
    for name, value in everyone[0].items():
        others = [n for n, have in enumerate(everyone) if have.get(name) != value]
        if others:
            raise UserError(
                f"{name} of process {others[0]} is another one than that of process 0"
                f" ({everyone[others[0]].get(name)} there, {value} here); start all"
                " processes with the same command on the same files."
            )
