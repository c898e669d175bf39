"""Files that are whole or not there, files that only grow, files that are locked."""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pclseg.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which replaces `path` when the block is left.

    A reader sees the old file or the new one. Where the block fails, the old one stays.
    The name ends like `path` and begins with a dot.

    Raises:
        UserError: a full or broken disk; a path without a name, such as "." or "/".
    """
    if not path.name:
        raise UserError(f"{path} cannot be written: it is a folder; name a file in it.")
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)  # of a process of that number which was killed
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    """Removes a file or folder where it is there."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step; it is on disk on return.

    Raises:
        UserError: a full or broken disk; the old file survives.
    """
    with replacing(path) as temporary:
        _write(temporary, "w", text)


def append_text(path: Path, text: str) -> None:
    """Appends `text` to `path`; it is on disk on return.

    A process that is killed here, or a full disk, may leave the first part of `text`.

    Raises:
        UserError: the text could not be written.
    """
    try:
        _write(path, "a", text)
    except OSError as error:
        raise cannot_write(path, error) from error


def _write(path: Path, mode: str, text: str) -> None:
    with open(path, mode, encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def cannot_write(path: Path, error: OSError) -> UserError:
    """What to tell a user whose disk is full or read-only."""
    return UserError(
        f"{path} cannot be written: {error.strerror}; free space or choose another"
        " folder."
    )


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; restore it, or use a new folder."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} is no JSON file ({error}); restore it, or use a new folder."
        ) from error


def try_lock(file: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    """Locks `file` until it is closed or the process ends; False where another has it.

    Args:
        file: open for writing, or for reading where `kind` is LOCK_SH: NFS asks for it.
        kind: fcntl.LOCK_EX, which nobody shares, or LOCK_SH, which all may share.

    Raises:
        UserError: the file system knows no locks.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{file.name} cannot be locked, which keeps others from writing there at"
            f" the same time: {error.strerror}; use a folder of a file system with"
            " locks, or mount this one with them (Lustre: -o flock)."
        ) from error
    return True


def check_new(flag: str, folder: Path) -> None:
    """Raises UserError where a folder to be made is there, or cannot be made."""
    if os.path.lexists(folder):
        raise UserError(f"{flag} {folder} exists; name a new folder.")
    above = next(path for path in folder.absolute().parents if os.path.lexists(path))
    if not above.is_dir():
        raise UserError(
            f"{flag} {folder} would lie in {above}, a file; name a new folder."
        )


def check_local(flag: str, folder: str | Path) -> None:
    """Raises UserError where a folder to write to is not on a disk, as gs://BUCKET."""
    if re.match(r"\w\w+:/", str(folder)):  # as a path, gs:// has one slash
        raise UserError(
            f"{flag} is {folder}, but pclseg writes to disks only; name a folder."
            " launch/tpu_queued.sh saves a run to a bucket on the way."
        )
