"""Asked to stop: SIGTERM and Ctrl-C set a flag that long work polls."""

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from types import FrameType


class Stopped(BaseException):
    """Raised where work ends early because the process was asked to; state is saved.

    Like KeyboardInterrupt no Exception: no handler of errors on the way may take it.
    """


class StopFlag:
    """Knows whether the process was asked to end; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        """Starts unasked; `install` catches signals."""
        self.requested = False
        self._may_raise = False

    def install(self) -> None:
        """Catches SIGTERM and SIGINT."""
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def check(self) -> None:
        """Raises Stopped if the process was asked to end."""
        if self.requested:
            raise Stopped

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block of work that has nothing to save and does not poll.

        The signal itself raises Stopped inside it, and ends its worker processes, which
        the block would otherwise wait for.
        """
        before, self._may_raise = self._may_raise, True
        try:
            self.check()
            yield
        finally:
            self._may_raise = before and not self.requested

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._may_raise:
            self._may_raise = False  # once: clean-up on the way out is not interrupted
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise Stopped
