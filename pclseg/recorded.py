"""Checks of JSON files that a run left, before anything is made of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pclseg.errors import UserError
from pclseg.files import read_json

Kinds = Mapping[str, Callable[[Any], bool]]  # {dotted key: what its value must be}
MOST_SHOWN = 40  # characters of a value in a message


def read_checked(path: Path, kinds: Kinds) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Raises:
        UserError: no such file, no JSON, or not as a run writes it.
    """
    found = read_json(path)
    check(path, found, kinds)
    return found


def check(path: Path, found: Any, kinds: Kinds) -> None:
    """Raises UserError unless `found`, of file `path`, has these keys and values."""
    for key, holds in kinds.items():
        value = found
        for name in key.split("."):
            if not isinstance(value, dict) or name not in value:
                raise _not_as_written(path, f"lacks {key!r}")
            value = value[name]
        if not holds(value):
            raise _not_as_written(path, f"has {key} = {str(value)[:MOST_SHOWN]!r}")


def _not_as_written(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path} {problem}; expected the file of a run of this version. Restore it, or"
        " start the run again in a new --workdir."
    )


def is_text(value: Any) -> bool:
    """Whether it is a str."""
    return isinstance(value, str)


def are_texts(value: Any) -> bool:
    """Whether it is a list of str."""
    return isinstance(value, list) and all(map(is_text, value))


def is_whole(value: Any) -> bool:
    """Whether it is an int."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is an int or float."""
    return is_whole(value) or isinstance(value, float)


def is_flag(value: Any) -> bool:
    """Whether it is a bool."""
    return isinstance(value, bool)


def is_section(value: Any) -> bool:
    """Whether it is an object with keys."""
    return isinstance(value, dict)
