"""How runs were made: commands, settings, versions, data, labelled patients."""

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pclseg.files import read_json
from pclseg.reports.artifacts import read_run_config
from pclseg.reports.runs import Run, label, read_run, shown
from pclseg.reports.tables import Table

# Settings that number the runs of a comparison, or say where files lie.
_NUMBERING = {"arm", "seed", "data.split.fold", "data.split.labelled"}
_PLACES = {"data.raw_dir", "data.store_dir"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A finished run and the files that say how it was made.

    Attributes:
        workdir: its folder.
        run: its scores.
        config: all settings.
        starts: of its command, as in `run.json`.
        fingerprint: of its data, "" where not recorded.
        scored: "validation" or "test", "" where not recorded.
    """

    workdir: Path
    run: Run
    config: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    fingerprint: str
    scored: str

    @property
    def name(self) -> str:
        """Its cell of the comparison."""
        return (
            f"{label(self.run)}, M = {shown(self.run['labelled'])}, fold"
            f" {self.run['fold']}, seed {self.run['seed']}"
        )


def read_source(workdir: Path) -> Source:
    """Reads what a report needs of a run, its figures aside.

    Raises:
        UserError: as of `read_run`.
    """
    run = read_run(workdir)
    starts, data = workdir / "run.json", workdir / "dataset.json"
    return Source(
        workdir=workdir,
        run=run,
        config=read_run_config(workdir),
        starts=read_json(starts) if starts.is_file() else [],
        fingerprint=read_json(data)["fingerprint"] if data.is_file() else "",
        scored=read_json(workdir / "summary.json").get("scored", ""),
    )


def commands(sources: Sequence[Source]) -> str:
    """A shell script of all commands, a comment on each."""
    lines = []
    for source in sources:
        found = dict.fromkeys(_command(start["command"]) for start in source.starts)
        lines += [f"# {_one_line(source.name)}", *(found or ["# not recorded"])]
    return "\n".join(lines)


def _command(words: Sequence[str]) -> str:
    program, *arguments = words
    known = ["python", "-m", "pclseg.main"] if program == "main.py" else [program]
    return shlex.join([*known, *arguments])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def versions(sources: Sequence[Source]) -> Table:
    """One row for every set of versions that a run was started with."""
    rows: dict[tuple[str, ...], set[Path]] = {}
    for source in sources:
        for start in source.starts:
            packages = start["packages"].items()
            row = (
                start["commit"] or "not in git",
                start["pclseg"],
                start["python"],
                start["platform"],
                ", ".join(f"{name} {number}" for name, number in packages if number),
            )
            rows.setdefault(row, set()).add(source.workdir)
    return Table(
        title="Versions",
        columns=("commit", "pclseg", "Python", "platform", "packages", "runs"),
        rows=tuple((*row, str(len(runs))) for row, runs in rows.items()),
    )


def data(sources: Sequence[Source]) -> Table:
    """One row for every state of the data files."""
    rows: dict[tuple[str, str], int] = {}
    for source in sources:
        key = (source.run.get("dataset", ""), source.fingerprint or "not recorded")
        rows[key] = rows.get(key, 0) + 1
    return Table(
        title="Data: fingerprint of the files and of the settings that prepare them",
        columns=("dataset", "fingerprint", "runs"),
        rows=tuple((*key, str(number)) for key, number in rows.items()),
    )


def labelled_patients(sources: Sequence[Source]) -> Table:
    """Whose labels were trained on; arms and seeds share them."""
    rows = {}
    for source in sources:
        run = source.run
        patients = sorted(run["labelled_patients"])
        scored = len({row["patient"] for row in run["rows"]})
        key = (run["labelled"] or float("inf"), run["fold"], *patients)
        rows[key] = (
            *(shown(run["labelled"]), str(run["fold"]), str(scored)),
            str(len(patients)),
            ", ".join(patients),
        )
    return Table(
        title="Labelled patients of every fold",
        columns=("M", "fold", "patients scored", "labelled", "labelled patients"),
        rows=tuple(rows[key] for key in sorted(rows)),
    )


def config_differences(arms: Mapping[str, Source]) -> Table:
    """Settings in which arms differ; a stage only among the arms that have it."""
    settings = {arm: flat(source.config) for arm, source in arms.items()}
    keys = dict.fromkeys(key for found in settings.values() for key in found)
    rows = []
    for key in keys:
        cells = [_text(found, key) for found in settings.values()]
        having = [_applies(key, found) for found in settings.values()]
        values = {cell for cell, has in zip(cells, having, strict=True) if has}
        if len(values) > 1 and key not in _NUMBERING | _PLACES:
            rows.append((key, *cells))
    return Table(
        title="Settings in which the arms differ",
        columns=("config", *settings),
        rows=tuple(rows),
    )


def _applies(key: str, settings: Mapping[str, Any]) -> bool:
    section = key.split(".")[0]
    return any(other.split(".")[0] == section for other in settings)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested settings."""
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _text(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else ""


def notes(sources: Sequence[Source]) -> Iterator[str]:
    """Sentences on what makes the runs less comparable or repeatable."""
    commits = {start["commit"] for source in sources for start in source.starts}
    if len(commits) > 1:
        named = ", ".join(sorted(str(commit) for commit in commits))
        yield f"The runs are of several commits: {named}."
    if any(str(commit).endswith("-dirty") for commit in commits):
        yield (
            "Source files were changed after the commit of some runs (-dirty): the"
            " commit alone does not repeat them."
        )
    if len({source.fingerprint for source in sources}) > 1:
        yield (
            "The runs read data of several fingerprints: files, their times, or the"
            " settings that prepare them changed in between."
        )
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for source in sources:
        by_arm.setdefault(label(source.run), []).append(flat(source.config))
    for arm, configs in by_arm.items():
        varying = _varying(configs)
        if varying:
            yield f"The runs of {arm} differ in {', '.join(varying)}."


def _varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for config in configs for key in config)
    return [
        key
        for key in keys
        if key not in _NUMBERING | _PLACES
        and len({_text(config, key) for config in configs}) > 1
    ]
