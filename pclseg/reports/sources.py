"""Finished runs and the earlier ones that they started from, with all settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pclseg.files import read_json
from pclseg.reports.runs import Run, label, read_run, shown
from pclseg.reports.stages import (
    Stage,
    read_fingerprints,
    read_run_config,
    read_starts,
    stages_of,
)

# Settings that number the runs of a comparison, or say where files and copies lie.
NO_METHOD = {
    *("arm", "seed", "data.split.fold", "data.split.labelled"),
    *("data.raw_dir", "data.store_dir", "wandb"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """How a run was made.

    Attributes:
        workdir: its folder.
        name: for readers.
        dataset: its name.
        starts: of its command, as in `run.json`.
        fingerprints: of its data, the last first: more than one if it went on after
            files had changed; none where not recorded.
    """

    workdir: Path
    name: str
    dataset: str
    starts: Sequence[Mapping[str, Any]]
    fingerprints: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Record):
    """A finished run, all that it was made from.

    Attributes:
        run: its scores.
        stages: behind it, those of earlier runs too.
        config: all settings of these stages.
        scored: "validation" or "test", "" where not recorded.
    """

    run: Run
    stages: Mapping[str, Stage]
    config: Mapping[str, Any]
    scored: str


def read_source(workdir: Path) -> Source:
    """Reads what a report needs of a run, its figures aside.

    Raises:
        UserError: as of `read_run`.
    """
    run, stages = read_run(workdir), stages_of(workdir)
    cell = (
        f"{label(run)}, M = {shown(run['labelled'])}, fold {run['fold']},"
        f" seed {run['seed']}"
    )
    return Source(
        workdir=workdir,
        name=cell,
        dataset=run.get("dataset", ""),
        starts=read_starts(workdir),
        fingerprints=read_fingerprints(workdir),
        run=run,
        stages=stages,
        config=_settings(read_run_config(workdir), stages),
        scored=str(read_json(workdir / "summary.json").get("scored", "")),
    )


def _settings(config: Mapping[str, Any], stages: Mapping[str, Stage]) -> dict[str, Any]:
    """As if all stages were of one run; without those that did not run."""
    general = {key: value for key, value in config.items() if not _is_stage(value)}
    trained = {
        name: {**stage.config, **_other_data(stage.data, config["data"])}
        for name, stage in stages.items()
        if stage.config is not None
    }
    return general | {"stages": list(trained), **trained}


def _is_stage(section: Any) -> bool:
    return isinstance(section, Mapping) and "init_from" in section


def _other_data(
    data: Mapping[str, Any], of_run: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Settings of the data of an earlier run where they are not those of the run."""
    ours, theirs = flat({"data": of_run}), flat({"data": data})
    other = {
        key: value
        for key, value in theirs.items()
        if key not in NO_METHOD and ours.get(key) != value
    }
    return {"earlier": other} if other else {}


def earlier_runs(sources: Sequence[Source]) -> list[Record]:
    """Runs that these started from, each once."""
    given = {source.workdir.resolve() for source in sources}
    found: dict[Path, Record] = {}
    for source in sources:
        for name, stage in source.stages.items():
            workdir = stage.folder.parent
            if stage.config is not None and workdir.resolve() not in given:
                record = Record(
                    workdir=workdir,
                    name=f"{workdir.name}: {name} for later runs",
                    dataset=stage.data.get("name", ""),
                    starts=read_starts(workdir),
                    fingerprints=read_fingerprints(workdir),
                )
                found.setdefault(workdir.resolve(), record)
    return list(found.values())


def missing(sources: Sequence[Source]) -> str:
    """A sentence on stages that cannot be shown, "" where there are none."""
    found: dict[str, set[str]] = {}
    for source in sources:
        for stage in source.stages.values():
            if stage.config is None:
                found.setdefault(str(stage.folder), set()).add(label(source.run))
    if not found:
        return ""
    arms = sorted(set.union(*found.values()))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"What {', '.join(arms)} started from is in no run directory"
        f" ({next(iter(found))}{more}: moved, deleted, or imported weights); its"
        " curves, settings and command are not shown."
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested settings."""
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
