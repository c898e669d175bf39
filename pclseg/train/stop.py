"""Asked to stop: SIGTERM and Ctrl-C set a flag that long work polls."""

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from pclseg import processes
from pclseg.errors import Stopped

log = logging.getLogger(__name__)

STALLED = 70  # exit code of a run that stands still
# Several processes ask each other once a second, or every so many steps.
_TURN_SECONDS = 1.0
_MAX_TURN = 16


class StopFlag:
    """Knows whether the process was asked to end; a second Ctrl-C ends it at once.

    Of several processes all end when one was asked: `check` and `asked` are then turns
    that every process must take, and nothing is interrupted in between.
    """

    def __init__(self) -> None:
        """Starts unasked; `install` catches signals."""
        self.requested = False
        self._may_raise = False
        self._polled = time.monotonic()
        self._stall_seconds = 0.0
        self._steps_left = 0

    def install(self) -> None:
        """Catches SIGTERM and SIGINT."""
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def check(self) -> None:
        """Raises Stopped if this or another process was asked to end."""
        self.moved()
        if processes.any_of(self.requested):
            raise Stopped

    def asked(self) -> bool:
        """Whether to end after a step; several processes agree every few steps.

        All must ask after every step.
        """
        before = self._polled
        self.moved()
        if processes.count() == 1:
            return self.requested
        self._steps_left -= 1
        if self._steps_left > 0:
            return False
        # In how many steps to ask again must be the same number everywhere.
        everyone = processes.gather((self.requested, self._polled - before))
        slowest = max(seconds for _, seconds in everyone)
        self._steps_left = int(
            min(max(_TURN_SECONDS / max(slowest, 1e-6), 1), _MAX_TURN)
        )
        return any(requested for requested, _ in everyone)

    @contextlib.contextmanager
    def interruptible(self, *, meets: bool = True) -> Iterator[None]:
        """A block of work that has nothing to save and does not poll.

        The signal itself raises Stopped inside it, and ends its worker processes, which
        the block would otherwise wait for. Not so in one process of several where the
        block meets the others, who would wait for ever.

        Args:
            meets: whether the block has a turn of all processes in it; where it has
                none, `processes.together` around it has all of them stop.
        """
        may_raise = processes.count() == 1 or not meets
        if may_raise and self.requested:
            raise Stopped
        before, self._may_raise = self._may_raise, may_raise
        try:
            yield
        except Exception as error:
            # XLA makes an error of its own of what is raised in its calls of Python.
            if may_raise and self.requested:
                raise Stopped from error
            raise
        finally:
            self._may_raise = before and not self.requested

    def watch(self, seconds: float) -> None:
        """Ends a process that stands still, from the next `moved` or question on.

        It stands still where none of them follows for so many seconds.
        Where one of several processes is stuck, the others wait for it in a collective
        that never returns. The stack of every thread is printed; the exit code is 70.
        """
        self._stall_seconds = seconds

    def moved(self) -> None:
        """Work goes on: for `watch`."""
        self._polled = time.monotonic()
        if self._stall_seconds:
            threading.Thread(
                target=self._watch, args=(self._stall_seconds,), daemon=True
            ).start()
            self._stall_seconds = 0.0  # one thread is enough

    def _watch(self, seconds: float) -> None:
        while (silent := time.monotonic() - self._polled) < seconds:
            time.sleep(min(seconds - silent, 5.0))
        log.error(
            "process %d of %d: nothing moved for %.0f s (--stall_seconds); another"
            " process or a device may be stuck. The same command goes on from the last"
            " checkpoint.",
            processes.index(),
            processes.count(),
            silent,
        )
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        os._exit(STALLED)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._may_raise:
            self._may_raise = False  # once: clean-up on the way out is not interrupted
            for worker in multiprocessing.active_children():
                worker.kill()  # deaf to all that is less
            raise Stopped
