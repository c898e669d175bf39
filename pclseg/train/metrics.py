"""Where scalars go: a CSV file, which a resumed run cuts back, and TensorBoard.

And to a mirror of the run elsewhere, where there is one.
"""

import csv
import io
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from pclseg.errors import UserError
from pclseg.files import append_text, cannot_write, write_text
from pclseg.train.mirror import Mirror

Rows = list[dict[str, str]]


class MetricWriter:
    """Writes rows of scalars of one stage to `<folder>/<name>.csv` and to TensorBoard.

    What was written is on disk on return: a killed run loses no row of a step before
    its last checkpoint.
    """

    def __init__(
        self, folder: Path, *, first_step: int, mirror: Mirror | None = None
    ) -> None:
        """Opens the files; drops rows beyond `first_step`, of steps to be repeated.

        Args:
            folder: of the stage, after which it is named.
            first_step: where this start begins.
            mirror: gets what TensorBoard gets.

        Raises:
            UserError: a file is damaged or cannot be written.
        """
        self._folder = folder
        self._mirror = mirror
        self._columns: dict[str, list[str]] = {}
        for path in folder.glob("*.csv"):
            rows = [row for row in read_rows(path) if int(row["step"]) <= first_step]
            self._columns[path.stem] = _columns(rows)
            write_text(path, _table(rows))
        self._events = _Events(folder / "tensorboard", first_step=first_step)

    def append(self, name: str, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Appends rows to `<name>.csv`; `rows` maps a step to its plain floats.

        Raises:
            UserError: the disk is full or broken.
        """
        new = [
            {"step": str(step), **{key: repr(float(x)) for key, x in values.items()}}
            for step, values in rows.items()
        ]
        path = self._folder / f"{name}.csv"
        columns = self._columns.get(name, [])
        if set(_columns(new)) <= set(columns):
            append_text(path, _lines(new, columns))
            return
        both = [*self._read(name), *new]
        self._columns[name] = _columns(both)
        write_text(path, _table(both))

    def scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Sends scalars to TensorBoard as `<name>/<key>`, and to the mirror.

        Raises:
            UserError: the disk is full or broken.
        """
        self._events.write(
            *(
                Event(step=step, summary=scalar(f"{name}/{key}", value))
                for key, value in values.items()
            )
        )
        if self._mirror is not None:
            self._mirror.scalars(self._folder.name, name, step, values)

    def rows(self, name: str, *, after: int) -> list[dict[str, float]]:
        """The rows of `<name>.csv` of steps beyond `after`, without their step."""
        return [
            {key: float(x) for key, x in row.items() if key != "step" and x}
            for row in self._read(name)
            if int(row["step"]) > after
        ]

    def steps(self, name: str) -> set[int]:
        """Steps that `<name>.csv` has a row for."""
        return {int(row["step"]) for row in self._read(name)}

    def _read(self, name: str) -> Rows:
        path = self._folder / f"{name}.csv"
        return read_rows(path) if path.exists() else []

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


class _Events:
    """An event file, written in the caller's thread.

    The thread of tensorboardX's SummaryWriter dies when the disk is full; its queue,
    once filled, would then block the training for ever.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        except OSError as error:
            raise cannot_write(folder, error) from error
        # TensorBoard hides what an earlier file holds from this step on.
        restart = SessionLog(status=SessionLog.START)
        self.write(Event(step=first_step + 1, session_log=restart))

    def write(self, *events: Event) -> None:
        try:
            for event in events:
                event.wall_time = time.time()
                self._file.write_event(event)
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._folder, error) from error

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> Rows:
    """Rows of a CSV file; a last line cut short by a kill is left out.

    Raises:
        UserError: the file is damaged otherwise.
    """
    try:
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1].decode()
        rows = list(csv.DictReader(io.StringIO(whole, newline=""), strict=True))
        if any(not row["step"].isdecimal() or None in row for row in rows):
            raise ValueError
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise UserError(
            f"{path} is no table of steps, it may be damaged; delete it to go on"
            " without its earlier rows."
        ) from error
    return rows


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _table(rows: Rows) -> str:
    if not rows:
        return ""
    columns = _columns(rows)
    return _lines([dict(zip(columns, columns, strict=True)), *rows], columns)


def _lines(rows: Rows, columns: list[str]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, restval="").writerows(rows)
    return text.getvalue()
