"""Asked to stop: SIGTERM and Ctrl-C set a flag that long work polls."""

import signal
from types import FrameType


class Stopped(Exception):
    """Raised where work ends early because the process was asked to; state is saved."""


class StopFlag:
    """Knows whether the process was asked to end; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        """Starts unasked; `install` catches signals."""
        self.requested = False

    def install(self) -> None:
        """Catches SIGTERM and SIGINT."""
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def check(self) -> None:
        """Raises Stopped if the process was asked to end."""
        if self.requested:
            raise Stopped

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
