"""A study: arms x labelled patients x folds x seeds as cells, each a run of `main`.

A grid file lists arms (config files) and what varies. `plan` turns it into cells that
share what they can: arms with the same pre-training start from one run of it. The list
of cells is the manifest, a JSON file, in waves: a cell needs cells of earlier waves
only, so a wave is one array of a cluster's scheduler.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from pclseg import rundir
from pclseg.building import build_method, is_run_finished
from pclseg.config import as_dict, load_config, override
from pclseg.config_rules import Rule, check_config, check_section, whole
from pclseg.errors import UserError
from pclseg.files import read_json
from pclseg.methods.base import Method
from pclseg.recorded import are_texts, is_number, read_checked

ALL = "all"  # in names, where every training patient is labelled
# What a grid varies.
_NUMBERED = {
    "seed",
    "stages",
    "data.split.fold",
    "data.split.holdout",
    "data.split.labelled",
}
# Arms share their files; each is read once for every argument.
_load = functools.lru_cache(maxsize=None)(load_config)
_METHODS: dict[str, Method] = {}  # by their stage, as JSON


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of `pclseg.main`.

    Attributes:
        name: its folder below the grid's.
        wave: cells of one wave do not need each other.
        config: FILE.py:ARG.
        settings: KEY=VALUE texts that change the config.
        starts_from: {stage: folder of a stage of another cell}.
        tuned_by: (KEY, ((name of a cell, VALUE), ...)), the value being that of the
            cell with the best Dice; None where nothing is chosen.
    """

    name: str
    wave: int
    config: str
    settings: tuple[str, ...]
    starts_from: Mapping[str, str]
    tuned_by: tuple[str, tuple[tuple[str, Any], ...]] | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the cells that must be finished before."""
        pretrained = [str(Path(folder).parent) for folder in self.starts_from.values()]
        trials = self.tuned_by[1] if self.tuned_by else ()
        return (*pretrained, *(name for name, _ in trials))


def _list_of(items: Rule, *, least: int) -> Rule:
    return Rule(
        f"a tuple of at least {least}, each {items.expected}",
        lambda v: (
            isinstance(v, list | tuple) and len(v) >= least and all(map(items.holds, v))
        ),
    )


_NAME = re.compile(r"(runs|tune|pretrain)/(?!\.)[\w.+-]+")
_TEXT = Rule("a text", lambda v: isinstance(v, str))
_RULES = {
    "arms": _list_of(_TEXT, least=1),  # config files, each with own KEY=VALUE behind it
    "argument": _TEXT,  # of every config file, such as "size=cpu"
    "labelled": _list_of(whole(0), least=1),  # 0 for all
    "folds": _list_of(whole(0), least=1),
    "seeds": _list_of(whole(0), least=1),
    "settings": _list_of(_TEXT, least=0),  # KEY=VALUE
    "tune": Rule(
        "a section, dict(...)", lambda v: isinstance(v, ml_collections.ConfigDict)
    ),
}
_TUNE_RULES = {
    "key": _TEXT,
    "candidates": Rule(
        "a tuple of values to choose from, () for no choice",
        lambda v: isinstance(v, list | tuple),
    ),
    "labelled": _list_of(whole(0), least=1),
    "fold": whole(0),
    "seed": whole(0),
    "holdout": whole(1),
}


def plan(grid: ml_collections.ConfigDict) -> tuple[Cell, ...]:
    """The cells of a grid, wave after wave.

    Raises:
        UserError: a key that is unknown, missing or of no use to any arm; a config file
            that is missing or wrong; two arms of one name.
    """
    check_section(grid, _RULES, "config")
    check_section(grid.tune, _TUNE_RULES, "config.tune")
    _check_settings(grid)
    planner = _Planner(grid)
    for seed in grid.seeds:
        for labelled in grid.labelled:
            for fold in grid.folds:
                for arm in grid.arms:
                    planner.add(arm, labelled, fold, seed)
    return tuple(sorted(planner.cells.values(), key=lambda cell: cell.wave))


def _check_settings(grid: ml_collections.ConfigDict) -> None:
    """Raises UserError for a setting that no arm has a section for."""
    for setting in grid.settings:
        check_setting(setting)
    for setting in (own for arm in grid.arms for own in arm.split()[1:]):
        check_setting(setting, may_be=("stages",))  # an arm may leave some out
    configs = [_config_of(_bare(arm, grid)) for arm in grid.arms]
    for setting in grid.settings:
        if not any(_section(setting) in config for config in configs):
            raise UserError(
                f"config.settings: {setting!r} sets nothing: no arm has a key"
                f" {_section(setting)!r}."
            )
    names = [config.arm for config in configs]
    for arm, name in zip(grid.arms, names, strict=True):
        if names.count(name) > 1:
            raise UserError(
                f"config.arms: {arm!r} is called {name!r}, as another arm is; give each"
                " its own name by arm=NAME behind the file."
            )


def check_setting(setting: str, *, may_be: Sequence[str] = ()) -> None:
    """Checks a KEY=VALUE text for all cells or an arm.

    Args:
        setting: the text.
        may_be: keys that it may have although the grid sets them.

    Raises:
        UserError: it is none, or its key is what the grid itself sets.
    """
    key, equals, _ = setting.partition("=")
    if not equals:
        raise UserError(f"{setting!r} is no KEY=VALUE text.")
    if key in _NUMBERED.difference(may_be):
        raise UserError(
            f"{setting!r} cannot be set for a grid, which numbers its cells by it; use"
            " the lists of the grid file."
        )


def _bare(arm: str, grid: ml_collections.ConfigDict, *argument: str) -> Cell:
    """A cell of an arm, "FILE KEY=VALUE ...", before anything is shared."""
    file, *own = arm.split() or [""]
    argument = tuple(filter(None, (grid.argument, *argument)))
    return Cell(
        name="",
        wave=0,
        config=f"{file}:{','.join(argument)}" if argument else file,
        settings=tuple(own),
        starts_from={},
    )


def _section(setting: str) -> str:
    return setting.partition("=")[0].partition(".")[0]


class _Planner:
    """Cells by name, while they are found; pre-training by what it depends on."""

    def __init__(self, grid: ml_collections.ConfigDict) -> None:
        self.cells: dict[str, Cell] = {}
        self._grid = grid
        self._pretrained: dict[str, Cell] = {}

    def add(self, arm: str, labelled: int, fold: int, seed: int) -> None:
        """The cell of an arm, and all that it needs."""
        base = self._cell(arm, labelled, fold, seed)
        if base is None:  # it learns without labels only
            return
        title = _config_of(base).arm
        tuned_by, wave = None, base.wave
        if trials := self._trials(arm, title, labelled):
            tuned_by = (self._grid.tune.key, trials)
            wave = max(wave, *(self.cells[name].wave + 1 for name, _ in trials))
        name = f"runs/{title}_m{labelled or ALL}_f{fold}_s{seed}"
        self._keep(dataclasses.replace(base, name=name, wave=wave, tuned_by=tuned_by))

    def _keep(self, cell: Cell) -> Cell:
        """Adds a cell whose config is right, unless it is there."""
        if not _NAME.fullmatch(cell.name):
            raise UserError(
                f"{cell.name!r} cannot be the folder of a cell; name arms and tuned"
                " values by letters, digits and any of _.+-"
            )
        check_cell(cell)
        known = self.cells.setdefault(cell.name, cell)
        if known != cell:
            raise UserError(
                f"two cells would be called {cell.name}, but differ: the config makes"
                " settings of a stage without labels depend on their number."
            )
        return cell

    def _trials(
        self, arm: str, title: str, labelled: int
    ) -> tuple[tuple[str, Any], ...]:
        """(name of a cell of the hold-out, the value it tries), one a candidate."""
        tune = self._grid.tune
        if not tune.candidates:
            return ()
        near = _nearest_below(labelled, tune.labelled)
        base = self._cell(arm, near, tune.fold, tune.seed)
        if base is None or _section(tune.key) not in _config_of(base).stages:
            raise UserError(
                f"config.tune.key is {tune.key!r}; expected a key of a stage of"
                f" {title!r} that learns from labels."
            )
        trials = []
        for value in tune.candidates:
            # Pre-training and streams without labels see the images of the hold-out.
            extra = [
                f"data.split.holdout={tune.holdout}",
                "data.transductive=True",
                f"{tune.key}={value}",
            ]
            cell = dataclasses.replace(
                base,
                name=f"tune/{title}_m{near or ALL}_{value}",
                settings=(*base.settings, *extra),
            )
            trials.append((self._keep(cell).name, value))
        return tuple(trials)

    def _cell(self, arm: str, labelled: int, fold: int, seed: int) -> Cell | None:
        """The stages that use labels, starting from cells of those that do not."""
        full = _bare(arm, self._grid, f"labelled={labelled},fold={fold},seed={seed}")
        config = _config_of(full)
        common = tuple(s for s in self._grid.settings if _section(s) in config)
        full = dataclasses.replace(full, settings=(*common, *full.settings))
        config = _config_of(full)
        check_config(config, 1)
        alone: list[str] = []
        for name in config.stages:
            depends = config[name].init_from in set(config.stages).difference(alone)
            if _learns_without_labels(config[name]) and not depends:
                alone.append(name)
        last = [name for name in config.stages if name not in alone]
        sources: dict[str, Cell] = {}
        for name in alone:
            sources[name] = self._pretraining(full, config, name, sources)
        return _only(full, config, last, sources) if last else None

    def _pretraining(
        self,
        full: Cell,
        config: ml_collections.ConfigDict,
        stage: str,
        sources: Mapping[str, Cell],
    ) -> Cell:
        """The cell of one pre-training stage, shared by all whose stage is the same."""
        data = as_dict(config.data)
        del data["split"]["labelled"]
        source = sources.get(config[stage].init_from)
        section = as_dict(config[stage])
        section["init_from"] = source.name if source else config[stage].init_from
        key = json.dumps([stage, data, config.seed, section], sort_keys=True)
        if key not in self._pretrained:
            cell = _only(full, config, [stage], sources)
            fold = config.data.split.fold
            name = f"pretrain/{config.arm}_{stage}_f{fold}_s{config.seed}"
            self._pretrained[key] = self._keep(dataclasses.replace(cell, name=name))
        return self._pretrained[key]


def _nearest_below(labelled: int, tuned: Sequence[int]) -> int:
    """The largest of `tuned` up to `labelled`, else the smallest; 0 means all."""

    def size(number: int) -> float:
        return number or math.inf

    below = [number for number in tuned if size(number) <= size(labelled)]
    return max(below, key=size) if below else min(tuned, key=size)


def _only(
    full: Cell,
    config: ml_collections.ConfigDict,
    stages: Sequence[str],
    sources: Mapping[str, Cell],
) -> Cell:
    """The cell with these stages only; what they start from is in other cells."""
    starts_from = {
        stage: f"{sources[source].name}/{source}"
        for stage in stages
        if (source := config[stage].init_from) in sources
    }
    wave = max([0, *(sources[config[s].init_from].wave + 1 for s in starts_from)])
    settings = full.settings
    if tuple(stages) != tuple(config.stages):
        others = (own for own in settings if not own.startswith("stages="))
        settings = (*others, f"stages={tuple(stages)!r}")
    return dataclasses.replace(
        full, wave=wave, settings=settings, starts_from=starts_from
    )


def _learns_without_labels(stage: ml_collections.ConfigDict) -> bool:
    return _method(stage).predict is None and stage.data.subset == "train"


def _method(stage: ml_collections.ConfigDict) -> Method:
    """The method of a stage, built once for all cells that have the same stage."""
    key = json.dumps(as_dict(stage), sort_keys=True)
    if key not in _METHODS:
        _METHODS[key] = build_method(stage)
    return _METHODS[key]


def _config_of(cell: Cell, *more: str) -> ml_collections.ConfigDict:
    """The cell's config, but for what it starts from."""
    config = _load(cell.config).copy_and_resolve_references()
    config.lock()
    override(config, [f"--config.{setting}" for setting in (*cell.settings, *more)])
    return config


def check_cell(cell: Cell, *more: str) -> None:
    """Checks a cell's config, but for what it starts from.

    Args:
        cell: of a plan or manifest.
        *more: KEY=VALUE texts of the user.

    Raises:
        UserError: a key, method or model that is unknown, a value that does not fit.
    """
    nowhere = [f"{stage}.init_from=" for stage in cell.starts_from]
    key, trials = cell.tuned_by or ("", ())
    try:
        for _, value in trials:
            _config_of(cell, f"{key}={value}")
        config = _config_of(cell, *more, *nowhere)
        check_config(config, 1)
        for stage in config.stages:
            _method(config[stage])
    except UserError as error:
        raise UserError(f"cell {cell.name}: {error}") from error


def _settings(cell: Cell, out: Path, more: Sequence[str]) -> tuple[str, ...]:
    """All KEY=VALUE texts of a cell in the folder `out`."""
    starts = (f"{s}.init_from={out / place}" for s, place in cell.starts_from.items())
    return (*cell.settings, *starts, *_chosen(cell, out), *more)


def _chosen(cell: Cell, out: Path) -> tuple[str, ...]:
    """The KEY=VALUE that tuning chose for a cell, () where nothing was to choose.

    The best mean Dice per case of the hold-out after the last step; of equals the
    first.

    Raises:
        UserError: a tuning cell is not finished.
    """
    if cell.tuned_by is None:
        return ()
    key, trials = cell.tuned_by
    best, _ = max(enumerate(trials), key=lambda trial: _dice(out / trial[1][0]))
    return (f"{key}={trials[best][1]}",)


def _dice(workdir: Path) -> float:
    kinds = {"overall.dice.mean": lambda mean: mean is None or is_number(mean)}
    mean = read_checked(workdir / "summary.json", kinds)["overall"]["dice"]["mean"]
    return -1.0 if mean is None else mean


def arguments(cell: Cell, out: Path, more: Sequence[str]) -> list[str]:
    """The arguments of `python -m pclseg.main` that run a cell.

    Args:
        cell: whose `needs` are finished.
        out: folder of the grid.
        more: KEY=VALUE texts of the user, such as where the data lie on this machine.

    Raises:
        UserError: a tuning cell is not finished.
    """
    return [
        f"--config={cell.config}",
        *(f"--config.{setting}" for setting in _settings(cell, out, more)),
        f"--workdir={out / cell.name}",
    ]


def finished(cell: Cell, out: Path, more: Sequence[str]) -> bool:
    """Whether the run of a cell came to its end.

    Raises:
        UserError: it did, or began, with another config.
    """
    workdir = out / cell.name
    ready = all(is_run_finished(out / name) for name in cell.needs)
    if not (ready and rundir.has_begun(workdir)):
        return False
    wanted = _config_of(cell, *_settings(cell, out, more)[len(cell.settings) :])
    rundir.check_config(workdir / "config.json", as_dict(wanted))
    return is_run_finished(workdir)


def to_json(cells: Sequence[Cell]) -> dict[str, Any]:
    """The manifest: cells by number, and the numbers of every wave as first-last."""
    waves = [cell.wave for cell in cells]
    spans = {
        str(wave): f"{waves.index(wave)}-{len(waves) - 1 - waves[::-1].index(wave)}"
        for wave in sorted(set(waves))
    }
    return {"waves": spans, "cells": [dataclasses.asdict(cell) for cell in cells]}


def read_manifest(path: Path) -> tuple[Cell, ...]:
    """The cells of a manifest.

    Raises:
        UserError: the file is missing or is no manifest.
    """
    content = read_json(path)
    try:
        cells = tuple(map(_cell_of, content["cells"]))
        _check_cells(cells)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no manifest of a grid ({type(error).__name__}: {error});"
            " expected the manifest.json that python -m pclseg.cli.grid writes."
        ) from error
    return cells


def _cell_of(item: dict[str, Any]) -> Cell:
    key, trials = item["tuned_by"] or ("", [])
    cell = Cell(
        **{
            **item,
            "settings": tuple(item["settings"]),
            "starts_from": dict(item["starts_from"]),
            "tuned_by": (key, tuple(map(tuple, trials))) if trials else None,
        }
    )
    texts = [cell.config, *cell.starts_from.values(), *cell.needs, key]
    if not (are_texts([*texts, *cell.settings]) and are_texts(item["settings"])):
        raise ValueError(f"{cell.name} has a value that is no text")
    if type(cell.wave) is not int:
        raise ValueError(f"{cell.name} has no number as its wave")
    if item["tuned_by"] and not trials:
        raise ValueError(f"{cell.name} is tuned by no trial")
    if not _NAME.fullmatch(cell.name):
        raise ValueError(f"{cell.name!r} is no name of a cell")
    return cell


def _check_cells(cells: Sequence[Cell]) -> None:
    names: set[str] = set()
    wave = 0
    if not cells:
        raise ValueError("it has no cell")
    for cell in cells:
        if cell.name in names:
            raise ValueError(f"{cell.name} is there twice")
        if unknown := [name for name in cell.needs if name not in names]:
            raise ValueError(f"{cell.name} needs {unknown[0]}, no earlier cell")
        if cell.wave < wave:
            raise ValueError(f"{cell.name} stands behind a later wave")
        wave = cell.wave
        names.add(cell.name)
