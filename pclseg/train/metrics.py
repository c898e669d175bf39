"""Where scalars go: a CSV file, which a resumed run cuts back, and TensorBoard."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from pclseg.files import write_text


class MetricWriter:
    """Writes rows of scalars of one stage to `<folder>/<name>.csv` and to TensorBoard."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Opens the files; rows beyond `first_step`, of steps to be repeated, are dropped."""
        self._folder = folder
        self._rows: dict[str, list[dict[str, str]]] = {}
        for path in folder.glob("*.csv"):
            kept = [row for row in read_rows(path) if int(row["step"]) <= first_step]
            self._rows[path.stem] = kept
            write_text(path, _as_csv(kept))
        self._events = SummaryWriter(
            str(folder / "tensorboard"), purge_step=first_step + 1, flush_secs=10
        )

    def append(self, name: str, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Appends rows to `<name>.csv`; `rows` maps a step to its plain floats."""
        new = [
            {"step": str(step), **{key: repr(float(x)) for key, x in values.items()}}
            for step, values in rows.items()
        ]
        old = self._rows.setdefault(name, [])
        path = self._folder / f"{name}.csv"
        columns = _columns(old)
        old.extend(new)
        if _columns(old) != columns:
            write_text(path, _as_csv(old))
            return
        with open(path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, columns, restval="").writerows(new)

    def scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Sends scalars to TensorBoard as `<name>/<key>`."""
        for key, value in values.items():
            self._events.add_scalar(f"{name}/{key}", value, step)

    def steps(self, name: str) -> set[int]:
        """Steps that `<name>.csv` has a row for."""
        return {int(row["step"]) for row in self._rows.get(name, [])}

    def column(self, name: str, key: str) -> dict[int, float]:
        """Step -> value of every row of `<name>.csv` that has `key`."""
        rows = self._rows.get(name, [])
        return {int(row["step"]): float(row[key]) for row in rows if row.get(key)}

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._events.close()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; a last line cut short by a kill is left out."""
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole)))


def _columns(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _as_csv(rows: list[dict[str, str]]) -> str:
    if not rows:
        return ""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _columns(rows), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
