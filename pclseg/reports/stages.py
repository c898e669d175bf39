"""The trainings behind a run: its own stages and those of runs that it started from."""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pclseg.errors import UserError
from pclseg.files import read_json
from pclseg.recorded import (
    are_texts,
    check,
    is_flag,
    is_number,
    is_section,
    is_text,
    is_whole,
    read_checked,
)

_CONFIG = {
    "arm": is_text,
    "seed": is_whole,
    "stages": are_texts,
    "data.name": is_text,
    "data.split.labelled": is_whole,
    "data.split.fold": is_whole,
    "data.transductive": is_flag,
    "evaluate.tolerance_mm": is_number,
}
_STAGE = {"init_from": is_text, "data": is_section}
_START = {
    "command": lambda value: are_texts(value) and len(value) > 0,
    "commit": lambda value: value is None or is_text(value),
    **dict.fromkeys(("pclseg", "python", "platform"), is_text),
    "packages": is_section,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One training, of the run or of an earlier one.

    Attributes:
        folder: RUN/STAGE.
        config: its section of that run's config; None where `folder` is in no run: it
            was moved or deleted, or holds imported weights.
        data: section "data" of that run's config.
        source: RUN/STAGE that it started from; None for random weights.
    """

    folder: Path
    config: Mapping[str, Any] | None
    data: Mapping[str, Any]
    source: Path | None

    def file(self, name: str) -> Path | None:
        """A file that the training wrote, None where it did not."""
        path = self.folder / name
        return path if path.is_file() else None


def uses_labels(config: Mapping[str, Any]) -> bool:
    """Whether a stage with this section depends on the number of labelled patients."""
    return config.get("data", {}).get("subset") != "train"


def read_run_config(workdir: Path) -> dict[str, Any]:
    """`config.json` of a run.

    Raises:
        UserError: the folder is no run, or the file is broken.
    """
    path = workdir / "config.json"
    if not path.is_file():
        for grid in (workdir, workdir.parent):
            if (grid / "manifest.json").is_file():
                raise UserError(
                    f"{workdir} is no run directory but part of a grid; give the runs"
                    f" of the grid, {grid}/runs/*."
                )
        raise UserError(
            f"{workdir} is no run directory: it has no config.json; give the --workdir"
            " of a training."
        )
    found = read_json(path)
    _check_config(path, found)
    return found


def _check_config(path: Path, config: Any) -> None:
    check(path, config, _CONFIG)
    for stage in config["stages"]:
        check(path, config, {f"{stage}.{key}": kind for key, kind in _STAGE.items()})


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """`run.json`: how often and with what a run was started, [] where not recorded.

    Raises:
        UserError: the file is broken.
    """
    path = workdir / "run.json"
    starts = read_json(path) if path.is_file() else []
    for start in starts if isinstance(starts, list) else [starts]:
        check(path, start, _START)
    return starts


def store_folder(workdir: Path) -> Path:
    """The folder of the prepared volumes of a run.

    Raises:
        UserError: `dataset.json` is missing or broken.
    """
    return Path(read_checked(workdir / "dataset.json", {"store": is_text})["store"])


def read_fingerprints(workdir: Path) -> tuple[str, ...]:
    """Fingerprints of the data of a run, the last first; () where not recorded.

    Raises:
        UserError: `dataset.json` is broken.
    """
    path = workdir / "dataset.json"
    if not path.is_file():
        return ()
    known = read_checked(path, {"fingerprint": is_text})
    earlier = known.get("earlier_fingerprints", [])
    check(path, {"earlier_fingerprints": earlier}, {"earlier_fingerprints": are_texts})
    return known["fingerprint"], *reversed(earlier)


def stages_of(workdir: Path) -> dict[str, Stage]:
    """All stages behind a run, the first trained one first.

    One of an earlier run that is called as a later one is "earlier NAME". `init_from`
    of their configs are names of this dict, as if all were stages of one run.

    Raises:
        UserError: the folder is no run.
    """
    found: dict[Path, Stage] = {}
    for name in read_run_config(workdir)["stages"]:
        found |= _line(workdir / name)
    names: dict[Path, str] = {}
    for place in reversed(found):  # the run's own keep their names
        name = place.name
        while name in names.values():
            name = f"earlier {name}"
        names[place] = name
    return {names[place]: _named(found, place, names) for place in found}


def _line(folder: Path) -> dict[Path, Stage]:
    """{real folder: stage} of a stage after those that it builds on."""
    line: dict[Path, Stage] = {}
    place: Path | None = folder
    while place is not None and place.resolve() not in line:
        stage = _stage(place)
        line = {place.resolve(): stage} | line
        place = stage.source
    return line


def _stage(folder: Path) -> Stage:
    path = folder.parent / "config.json"
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict) or folder.name not in config.get("stages", ()):
        return Stage(folder=folder, config=None, data={}, source=None)
    _check_config(path, config)
    section = config[folder.name]
    source = section["init_from"]
    if source in config["stages"]:
        place = folder.parent / source
    else:
        place = _elsewhere(source, folder.parent) if source else None
    return Stage(folder=folder, config=section, data=config["data"], source=place)


def _elsewhere(source: str, workdir: Path) -> Path:
    """Where a stage of another run lies now.

    As seen from `workdir` it is where it was, if all was moved together; else it is
    where it was as seen from the folder in which commands are run.
    """
    if recorded := _recorded_workdir(workdir):
        seen = workdir / os.path.relpath(source, recorded)
        if seen.is_dir():
            return Path(os.path.normpath(seen))
    return Path(source)


def _recorded_workdir(workdir: Path) -> str:
    """--workdir of the last command of a run, "" where not recorded."""
    for start in reversed(read_starts(workdir)):
        for word, following in itertools.pairwise([*start["command"], ""]):
            option, _, value = word.partition("=")
            if option == "--workdir":
                return value or following
    return ""


def _named(
    found: Mapping[Path, Stage], place: Path, names: Mapping[Path, str]
) -> Stage:
    stage = found[place]
    source = stage.source and stage.source.resolve()
    if stage.config is None or source is None or found[source].config is None:
        return stage
    return dataclasses.replace(
        stage, config={**stage.config, "init_from": names[source]}
    )


def merged(lines: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    """Lines of a figure, those of the same files as one under all their names.

    The others stay without files, so that every line keeps its colour.
    """
    owners: dict[tuple[Path, ...], list[str]] = {}
    for name, paths in lines.items():
        owners.setdefault(tuple(p.resolve() for p in paths), []).append(name)
    found: dict[str, list[Path]] = {}
    for name, paths in lines.items():
        names = owners[tuple(p.resolve() for p in paths)]
        first = bool(paths) and name == names[0]
        found[", ".join(names) if first else name] = list(paths) if first else []
    return found
