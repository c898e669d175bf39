"""How far a run is, read from the files that it writes as it goes."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pclseg import rundir
from pclseg.building import is_finished, is_run_finished
from pclseg.errors import UserError
from pclseg.files import read_json
from pclseg.train.loop import format_seconds
from pclseg.train.metrics import read_rows

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 48  # of a curve
_LAST_LINES = 6  # of the log
_TAIL_BYTES = 65536


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """One stage of a run.

    Attributes:
        stage: its name.
        step: steps done.
        total: steps in all; None before the first line of the log says so.
        finished: whether its last state is saved.
        losses: of every step.
        learning_rate: of the last step; None before the first.
        speed: slices a second; None before the first line of the log.
        data_wait: share of the time that waits for data; None likewise.
        seconds_left: None where it is not known.
        validation: {name: value} of the last one, with its step.
    """

    stage: str
    step: int
    total: int | None
    finished: bool
    losses: Sequence[float]
    learning_rate: float | None
    speed: float | None
    data_wait: float | None
    seconds_left: float | None
    validation: dict[str, float]


def read(workdir: Path) -> tuple[list[Progress], list[str]]:
    """The stages of a run, and the last lines of its log.

    Raises:
        UserError: no run directory, or a damaged file.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"{workdir} is no run directory: it has no config.json; name a --workdir."
        )
    config = read_json(workdir / "config.json")
    lines = _tail(workdir / "log.txt")
    return [_stage(workdir, name, config[name], lines) for name in config["stages"]], [
        line.split(" ", 3)[-1] for line in lines[-_LAST_LINES:]
    ]


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:  # nothing was logged yet
        return []


def _stage(workdir: Path, name: str, config: dict, lines: Sequence[str]) -> Progress:
    folder = workdir / name
    tables = {
        table: read_rows(folder / f"{table}.csv")
        if (folder / f"{table}.csv").is_file()
        else []
        for table in ("metrics", "speed", "validation")
    }
    metrics, speeds, validations = tables.values()
    step = int(metrics[-1]["step"]) if metrics else 0
    total = _total(name, lines) or config["train"]["steps"] or None
    finished = is_finished(folder)
    speed = float(speeds[-1]["slices_per_second"]) if speeds else None
    left = None
    if speed and total and not finished:
        left = (total - step) * config["data"]["batch_size"] / speed
    return Progress(
        stage=name,
        step=step,
        total=step if finished else total,
        finished=finished,
        losses=[float(row["loss"]) for row in metrics if row.get("loss")],
        learning_rate=float(metrics[-1]["learning_rate"]) if metrics else None,
        speed=speed,
        data_wait=float(speeds[-1]["data_wait_share"]) if speeds else None,
        seconds_left=left,
        validation={
            key: float(value) for key, value in validations[-1].items() if value
        }
        if validations
        else {},
    )


def _total(stage: str, lines: Sequence[str]) -> int | None:
    """Steps of a stage, from the newest line of the log that tells."""
    line = re.compile(rf" {re.escape(stage)} step \d+/(\d+) ")
    for text in reversed(lines):
        if found := line.search(text):
            return int(found[1])
    return None


def state(workdir: Path) -> str:
    """In a word: "finished", "running" or "stopped"."""
    if is_run_finished(workdir):
        return "finished"
    return "running" if rundir.is_live(workdir) else "stopped"


def curve(values: Sequence[float], columns: int = _COLUMNS) -> str:
    """The values as a line of bars, each the mean of as many; lowest to highest."""
    if not values:
        return ""
    columns = min(columns, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    parts = [values[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def view(workdir: Path, how: str) -> RenderableType:
    """What a terminal shows of a run; `how` is of `state`."""
    stages, lines = read(workdir)
    parts: list[RenderableType] = [Text(f"{workdir}: {how}", style="bold")]
    for stage in stages:
        parts += _stage_view(stage)
    parts.append(Text(""))
    parts += [
        Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in lines
    ]
    return Group(*parts)


def _stage_view(stage: Progress) -> list[RenderableType]:
    head = Table.grid(padding=(0, 2))
    head.add_column(width=10)
    head.add_column(width=16)
    head.add_column()
    total = stage.total or 0
    bar = ProgressBar(total=max(total, 1), completed=stage.step, width=16)
    count = f"{stage.step} of {total} steps" if total else f"{stage.step} steps"
    facts = [count]
    if stage.finished:
        facts.append("finished")
    if stage.seconds_left is not None:
        facts.append(f"ETA {format_seconds(stage.seconds_left)}")
    if stage.speed is not None:
        facts.append(f"{stage.speed:.1f} slices/s")
    if stage.data_wait is not None:
        facts.append(f"data wait {stage.data_wait:.0%}")
    head.add_row(stage.stage, bar, "  ".join(facts))
    rows: list[RenderableType] = [Text(""), head]
    if stage.losses:
        rate = f"  lr {stage.learning_rate:.3g}" if stage.learning_rate else ""
        rows.append(Text(f"  loss {stage.losses[-1]:.4f}  {curve(stage.losses)}{rate}"))
    if stage.validation:
        shown = "  ".join(
            f"{name} {value:.4f}"
            for name, value in stage.validation.items()
            if name != "step"
        )
        rows.append(Text(f"  step {stage.validation['step']:.0f}: {shown}"))
    return rows
