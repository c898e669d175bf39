"""The run directory: one run, one config, one live process; all that repeats it."""

import contextlib
import fcntl
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import absl.logging
import ml_collections

from pclseg import __version__
from pclseg.errors import UserError
from pclseg.files import cannot_write, read_json, try_lock, write_json

# Whose versions decide what numbers come out.
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow-datasets",
)


def open_run(workdir: Path, config: dict[str, Any]) -> IO[str]:
    """Claims `workdir` for this process and this config.

    Writes `config.json` and appends this start to `run.json`.

    Args:
        workdir: made if missing.
        config: JSON-able.

    Returns:
        The lock; the directory is claimed until it is closed or the process ends.

    Raises:
        UserError: a live run holds the directory, or its volumes were prepared with
            another config; until then a setting may be mended.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be used: {error.strerror}."
        ) from error
    try:
        _lock(lock, workdir)
        if has_begun(workdir):
            check_config(workdir / "config.json", config)
        else:
            write_json(workdir / "config.json", config)  # a setting may be mended
        path = workdir / "run.json"
        starts = read_json(path) if path.exists() else []
        write_json(path, [*starts, _this_start()])
    except UserError:
        lock.close()
        raise
    return lock


def _lock(lock: IO[str], workdir: Path) -> None:
    if not try_lock(lock):
        lock.seek(0)
        holder = lock.read().strip()
        raise UserError(
            f"{workdir} is in use by a live run ({holder}); wait for it, stop it, or"
            " use another --workdir."
        )
    with contextlib.suppress(OSError):  # a full disk; the lock holds without the name
        lock.truncate(0)
        os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}".encode())


def is_live(workdir: Path) -> bool:
    """Whether a process on this machine has the run directory in work."""
    try:
        with open(workdir / ".lock", encoding="utf-8") as lock:
            return not try_lock(lock, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def has_begun(workdir: Path) -> bool:
    """Whether a run has prepared its volumes, or trained on them."""
    stages = workdir.glob("*/patients.json")
    return (workdir / "dataset.json").is_file() or any(stages)


def check_config(path: Path, config: dict[str, Any]) -> None:
    """Checks that a run that has begun has this config; a mirror may come and go.

    Args:
        path: config.json of the run.
        config: JSON-able.

    Raises:
        UserError: it has another one; the first differences are named.
    """
    old, new = (
        {key: value for key, value in each.items() if key != "wandb"}
        for each in (read_json(path), config)
    )
    differences = config_differences(old, new)
    if differences:
        more = "; ..." if len(differences) > 5 else ""
        raise UserError(
            f"{path.parent} belongs to another config:"
            f" {'; '.join(differences[:5])}{more}; use a new --workdir, or the same"
            " settings to go on."
        )


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of a run directory whose volumes were prepared.

    Raises:
        UserError: `workdir` is no run directory of this version.
    """
    if not (workdir / "dataset.json").is_file():
        raise UserError(
            f"{workdir} is no run directory; expected the --workdir of a run."
        )
    config = ml_collections.ConfigDict(read_json(workdir / "config.json"))
    missing = {"stages", "data", "evaluate", *config.get("stages", ())} - set(config)
    if missing:
        raise UserError(
            f"{workdir}/config.json lacks {', '.join(sorted(missing))}: another version"
            " wrote it, or a hand changed it; train again."
        )
    return config


def config_differences(old: Any, new: Any, where: str = "config") -> list[str]:
    """`key: 1 there, 2 now` for every leaf that differs between nested dicts."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in config_differences(
                old.get(key, "nothing"), new.get(key, "nothing"), f"{where}.{key}"
            )
        ]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} now"]


def _this_start() -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "pclseg": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def version(name: str) -> str | None:
    """Of an installed package; None where it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the source tree, `-dirty` if it was changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def log_to(path: Path | None) -> None:
    """Sends the package's log lines to standard error and, with times, to `path`.

    Raises:
        UserError: `path` cannot be written.
    """
    logger = logging.getLogger("pclseg")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Orbax and TensorStore report at length what reaches the user as one line.
    absl.logging.set_verbosity(absl.logging.FATAL)
    sys.unraisablehook = _report_unraisable
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    console = logging.StreamHandler()
    console.setFormatter(_Console("%(message)s"))
    logger.addHandler(console)
    if path is not None:
        try:
            file = _LogFile(path, encoding="utf-8")
        except OSError as error:
            raise cannot_write(path, error) from error
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)


def _report_unraisable(args: Any) -> None:
    # One for every array that was in work when the saving or reading of another failed.
    if str(args.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(args)


class _LogFile(logging.FileHandler):
    """A log file that is given up, with one line, when the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logger = logging.getLogger("pclseg")
        logger.removeHandler(self)
        with contextlib.suppress(OSError):
            self.close()
        logger.warning(
            "%s It is not continued.", cannot_write(Path(self.baseFilename), error)
        )


class _Console(logging.Formatter):
    """Only what is no plain information is marked."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return (
            text
            if record.levelno <= logging.INFO
            else f"{record.levelname.lower()}: {text}"
        )
