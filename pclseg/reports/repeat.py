"""How runs were made: commands, settings, versions, data, labelled patients."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pclseg.reports.runs import label, shown
from pclseg.reports.sources import NO_METHOD, Record, Source, flat, missing
from pclseg.reports.tables import Table


def commands(records: Sequence[Record]) -> str:
    """A shell script of all commands, a comment on each."""
    lines = []
    for record in records:
        found = dict.fromkeys(_command(start["command"]) for start in record.starts)
        lines += [f"# {_one_line(record.name)}", *(found or ["# not recorded"])]
    return "\n".join(lines)


def _command(words: Sequence[str]) -> str:
    program, *arguments = words
    known = ["python", "-m", "pclseg.main"] if program == "main.py" else [program]
    return shlex.join([*known, *arguments])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def versions(records: Sequence[Record]) -> Table:
    """One row for every set of versions that a run was started with."""
    rows: dict[tuple[str, ...], set[Path]] = {}
    for record in records:
        for start in record.starts:
            packages = start["packages"].items()
            row = (
                start["commit"] or "not in git",
                start["pclseg"],
                start["python"],
                start["platform"],
                ", ".join(f"{name} {number}" for name, number in packages if number),
            )
            rows.setdefault(row, set()).add(record.workdir)
    return Table(
        title="Versions",
        columns=("commit", "pclseg", "Python", "platform", "packages", "runs"),
        rows=tuple((*row, str(len(runs))) for row, runs in rows.items()),
    )


def data(records: Sequence[Record]) -> Table:
    """One row for the runs that saw the same states of the data files."""
    rows: dict[tuple[str, str], int] = {}
    for record in records:
        key = (record.dataset, ", earlier ".join(record.fingerprints) or "not recorded")
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
        if len(values) > 1 and key not in NO_METHOD:
            rows.append((key, *cells))
    return Table(
        title="Settings in which the arms differ",
        columns=("config", *settings),
        rows=tuple(rows),
    )


def _applies(key: str, settings: Mapping[str, Any]) -> bool:
    section = key.split(".")[0]
    return any(other.split(".")[0] == section for other in settings)


def _text(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else ""


def notes(sources: Sequence[Source], earlier: Sequence[Record]) -> Iterator[str]:
    """Sentences on what makes the runs less comparable or repeatable."""
    records = [*earlier, *sources]
    if gone := missing(sources):
        yield gone
    commits = {start["commit"] for record in records for start in record.starts}
    if len(commits) > 1:
        named = ", ".join(sorted(str(commit) for commit in commits))
        yield f"The runs are of several commits: {named}."
    if any(str(commit).endswith("-dirty") for commit in commits):
        yield (
            "Source files were changed after the commit of some runs (-dirty): the"
            " commit alone does not repeat them."
        )
    files = {
        (record.dataset, mark)
        for record in records
        for mark in record.fingerprints or ("",)
    }
    if len(files) > len({dataset for dataset, _ in files}):
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
        if key not in NO_METHOD and len({_text(config, key) for config in configs}) > 1
    ]
