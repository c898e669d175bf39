"""How a command ends."""

import io
import logging
import sys
from collections.abc import Callable

from pclseg import rundir
from pclseg.errors import UserError

log = logging.getLogger(__name__)


def exit_status(program: Callable[[], None]) -> int:
    """Runs `program`; a mistake of the user, or Ctrl-C, ends it with one line.

    Characters that standard output cannot show, as ± in ASCII, become "?".

    Returns:
        0, 1 after a UserError, 130 after Ctrl-C.
    """
    rundir.log_to(None)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        program()
    except UserError as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; every file that was written is whole.")
        return 130
    return 0
