"""Compiled steps are kept on disk, so that the next run of the same starts at once."""

import hashlib
import logging
import os
import platform
import warnings
from pathlib import Path

import jax

from pclseg import processes
from pclseg.data import workers

log = logging.getLogger(__name__)


def keep_compiled() -> None:
    """Turns on JAX's cache of compiled code, unless the environment set or forbade it.

    It lies in `~/.cache/pclseg/compiled`, or below `XDG_CACHE_HOME`, apart for every
    kind and number of processors: code for one may not run, or run slowly, on others.
    Several processes do without: the first alone writes, and on GPUs those that find
    nothing would wait for what it has no reason to compile.
    """
    if processes.count() > 1:
        return
    values = jax.config.values
    if (
        values["jax_compilation_cache_dir"]
        or not values["jax_enable_compilation_cache"]
    ):
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "pclseg" / "compiled" / _processor()
        if not folder.is_dir():
            folder.mkdir(parents=True)
            log.info(
                "compiled steps are kept in %s, which may be deleted", folder.parent
            )
    except (OSError, RuntimeError):  # it cannot be made, or the user has no home
        return  # compiled anew every time
    if not os.access(folder, os.W_OK):
        return
    # Of an entry that was cut short: it is compiled again, and the run is right.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent comp")
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _processor() -> str:
    """A short name of the kind of processor and what it can do."""
    about = f"{platform.machine()} {platform.processor()} {workers.usable_cpus()}"
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            wanted = ("model name", "flags", "Features", "CPU part")
            about += "".join(sorted({x for x in lines if x.startswith(wanted)}))
    except OSError:
        pass  # not Linux
    return hashlib.sha256(about.encode()).hexdigest()[:8]
