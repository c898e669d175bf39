"""Files that are either whole or not there, and files that only grow."""

import json
import os
from pathlib import Path
from typing import Any

from pclseg.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step: a reader sees the old file or the new one.

    Raises:
        UserError: a full or broken disk; the old file survives.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, "w", text)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


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
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
