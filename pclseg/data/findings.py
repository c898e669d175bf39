"""What is found in data: how bad, where, what follows, and what mends it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pclseg.errors import UserError

ERROR, WARNING, NOTE = LEVELS = ("error", "warning", "note")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding; `str` of it is one line."""

    level: str  # of LEVELS
    where: str  # a case, or "" where it is about all of them
    path: str  # the file, or ""
    what: str
    consequence: str
    remedy: str  # a command, a key of the config, or what to do by hand

    def __str__(self) -> str:
        """The line, without its level."""
        place = [part for part in (self.where, self.path) if part]
        return ": ".join([*place, f"{self.what}; {self.consequence}: {self.remedy}"])


@contextmanager
def as_error(
    found: list[Finding], where: str, path: Path | None, consequence: str
) -> Iterator[None]:
    """Turns a UserError that is raised inside into a finding.

    Its message says what is wrong and, behind the last semicolon, what to do.
    """
    try:
        yield
    except UserError as error:
        what, _, remedy = str(error).rstrip(".").rpartition("; ")
        found.append(
            Finding(
                level=ERROR,
                where=where,
                path=str(path or ""),
                what=what or remedy,
                consequence=consequence,
                remedy=remedy if what else "mend the file or leave it out",
            )
        )
