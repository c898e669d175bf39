"""What a config must hold: every key, its type and its range, before any data is read.

Sections that are arguments of a `make` (method, augment, options of a dataset) are
checked against its signature when it is called.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from pclseg import processes
from pclseg.data import PIPELINES
from pclseg.data.lines import DTYPES
from pclseg.errors import UserError
from pclseg.evaluation.cases import GRIDS
from pclseg.named import nearest

Section = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must be: in words, and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _are_reals(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_real, value))


def _are_texts(value: Any) -> bool:
    is_list = isinstance(value, list | tuple)
    return is_list and all(isinstance(text, str) and text for text in value)


def _is_size(value: Any) -> bool:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    return is_pair and all(_is_whole(n) and n in range(16, 8193, 16) for n in value)


def whole(least: int, most: int = 2**31 - 1) -> Rule:
    """An int in that range."""
    expected = f"a whole number from {least} to {most}"
    return Rule(expected, lambda v: _is_whole(v) and least <= v <= most)


def _real(expected: str, holds: Callable[[float], bool]) -> Rule:
    return Rule(f"a number {expected}", lambda v: _is_real(v) and holds(v))


def _one_of(*choices: Any) -> Rule:
    words = ", ".join(map(repr, choices))
    return Rule(f"one of: {words}", lambda v: type(v) in (str, int) and v in choices)


_TEXT = Rule("a text", lambda v: isinstance(v, str))
# It is part of folder names; tables add to it in brackets.
_ARM = Rule(
    "a name of printable characters without [, ], / and \\ or spaces around it",
    lambda v: (
        isinstance(v, str)
        and v == v.strip() != ""
        and v.isprintable()
        and not {*"[]/\\"} & {*v}
    ),
)
_FLAG = Rule("True or False", lambda v: isinstance(v, bool))
_SECTION = Rule("a section, dict(...)", lambda v: isinstance(v, Section))
# A stage's name is that of a section and of a folder of the run directory.
_RESERVED = ("data", "prepare", "evaluate", "predictions", "wandb")
_NAMES = Rule(
    "a tuple of different names, such as ('pretrain', 'finetune'), of letters, digits"
    f" and _, none of them {', '.join(_RESERVED)}",
    lambda v: (
        isinstance(v, list | tuple)
        and len(v) > 0
        and all(isinstance(n, str) and n.isidentifier() for n in v)
        and len({*v, *_RESERVED}) == len(v) + len(_RESERVED)
    ),
)
_SEED = whole(0, 2**32 - 1)
_POSITIVE = _real("> 0", lambda v: v > 0)
_NOT_NEGATIVE = _real(">= 0", lambda v: v >= 0)

_RUN = {"arm": _ARM, "seed": _SEED, "stages": _NAMES, "wandb": _TEXT}
_DATA = {
    "name": _TEXT,
    "raw_dir": _TEXT,
    "store_dir": _TEXT,
    "options": _SECTION,
    "prepare": _SECTION,
    "split": _SECTION,
    "transductive": _FLAG,
    "pipeline": _one_of(*sorted(PIPELINES, reverse=True)),
    "device_dtype": _one_of(*DTYPES),
}
_PREPARE = {
    "slice_axis": Rule(
        "'auto', 'file', 0, 1 or 2",
        lambda v: type(v) in (int, str) and str(v) in ("auto", "file", "0", "1", "2"),
    ),
    "spacing": Rule(
        "(y, x) in mm, or () for the file's own",
        lambda v: _are_reals(v) and len(v) in (0, 2) and all(mm >= 0 for mm in v),
    ),
    "clip_percentiles": Rule(
        "(low, high) with 0 <= low < high <= 100",
        lambda v: _are_reals(v) and len(v) == 2 and 0 <= v[0] < v[1] <= 100,
    ),
    "integers": _FLAG,
    "replace_below": Rule(
        "(limit, value) such as (-2000.0, -1110.0), or () for none",
        lambda v: _are_reals(v) and len(v) in (0, 2),
    ),
    "image_order": whole(0, 5),
    "label_order": whole(0, 1),
    "workers": whole(0),
}
_SPLIT = {
    "file": _TEXT,
    "folds": whole(2),
    "fold_seed": _SEED,
    "draw_seed": whole(0),
    "fold": whole(0),
    "labelled": whole(0),
    "holdout": whole(0),
}
_EVALUATE = {
    "every_epochs": whole(1),
    "batch_size": whole(1),
    "tolerance_mm": _NOT_NEGATIVE,
    "grid": _one_of(*GRIDS),
}
_STAGE = {
    "init_from": _TEXT,
    "init_parts": Rule(
        "names of modules, such as ('encoder',)",
        lambda v: _are_texts(v) and len(v) > 0,
    ),
    "data": _SECTION,
    "method": _SECTION,
    "model": _SECTION,
    "augment": _SECTION,
    "optimizer": _SECTION,
    "train": _SECTION,
}
_STAGE_DATA = {
    "subset": _one_of("train", "labelled"),
    "crop_size": Rule("(rows, columns), multiples of 16 like (96, 96)", _is_size),
    "random_crop": _FLAG,
    "batch_size": whole(1),
    "sampling": _one_of("slices", "partitions"),
    "last_batch": _one_of("drop", "fill"),
    "unlabelled_batch_size": whole(0),
}
_TRAIN = {
    "epochs": whole(0),
    "steps": whole(0),
    "log_every": whole(1),
    "checkpoint_every": whole(1),
    "keep": whole(1),
}
# Ranges only: which of these a model takes, its own signature says.
_MODEL = {
    "width": whole(1),
    "out_dim": whole(1),
    "num_classes": whole(2),
    "stride": whole(1),
    "window": whole(8),
    "activate_heads": _FLAG,
    "bn_groups": whole(1),
    "remat": _FLAG,
}
_OPTIMIZER = {
    "peak_lr": _POSITIVE,
    "min_lr": _NOT_NEGATIVE,
    "schedule": _one_of("cosine", "poly"),
    "lr_batch_size": whole(0),
    "lr_scaling": _one_of("linear", "sqrt"),
    "momentum": _real("from 0 to below 1", lambda v: 0 <= v < 1),
    "weight_decay": _NOT_NEGATIVE,
    "warmup_steps": whole(0),
    "frozen": Rule("() or names of modules, such as ('encoder',)", _are_texts),
}


def check_config(config: Section, num_devices: int) -> None:
    """Checks everything about a config that needs no data.

    Raises:
        UserError: naming the key, its value and what was expected.
    """
    sections = [key for key, value in config.items() if isinstance(value, Section)]
    values = Section({key: config[key] for key in config if key not in sections})
    check_section(Section({"wandb": "", **values}), _RUN, "config")
    for name in ("data", "evaluate", *config.stages):
        if name not in sections:
            raise UserError(
                f"there is no section config.{name}; the sections are:"
                f" {', '.join(sections)}.{nearest(str(name), sections)}"
            )
    check_section(config.data, _DATA, "config.data")
    check_section(config.data.prepare, _PREPARE, "config.data.prepare")
    check_section(config.data.split, _SPLIT, "config.data.split")
    check_section(config.evaluate, _EVALUATE, "config.evaluate")
    for number, name in enumerate(config.stages):
        _check_stage(f"config.{name}", config[name])
        _check_source(f"config.{name}", config[name], config.stages[:number])
    _check_devices(config, num_devices)
    _check_groups(config, num_devices)


def check_only(only: Sequence[str], config: Section) -> None:
    """Checks the names of `--stages`.

    Raises:
        UserError: a name that is no part of the run.
    """
    known = ("prepare", *config.stages, "evaluate")
    for name in only:
        if name not in known:
            raise UserError(
                f"--stages names {name!r}; expected some of: {', '.join(known)}."
                f"{nearest(name, known)}"
            )


def check_section(section: Section, rules: Mapping[str, Rule], here: str) -> None:
    """Checks that a section has exactly the keys of `rules`, with values that fit.

    Raises:
        UserError: naming the key, its value and what was expected.
    """
    for key in section:
        if key not in rules:
            raise UserError(
                f"{here}.{key} is unknown; {here} has: {', '.join(rules)}."
                f"{nearest(key, rules)}"
            )
    for key in rules:
        if key not in section:
            raise UserError(f"{here}.{key} is missing; add it, as in configs/.")
    _check_values(section, rules, here)


def _check_values(section: Section, rules: Mapping[str, Rule], here: str) -> None:
    for key, value in section.items():
        if key in rules and not rules[key].holds(value):
            shown = "a section" if isinstance(value, Section) else repr(value)
            raise UserError(f"{here}.{key} is {shown}; expected {rules[key].expected}.")


def _check_stage(here: str, stage: Section) -> None:
    check_section(stage, _STAGE, here)
    check_section(stage.data, _STAGE_DATA, f"{here}.data")
    check_section(stage.train, _TRAIN, f"{here}.train")
    _check_values(stage.model, _MODEL, f"{here}.model")
    _check_values(stage.optimizer, _OPTIMIZER, f"{here}.optimizer")
    for part in ("method", "model", "augment", "optimizer"):
        _check_values(stage[part], {"name": _TEXT}, f"{here}.{part}")
        if "name" not in stage[part]:
            raise UserError(f"{here}.{part}.name is missing; add it, as in configs/.")
    least, most = (stage.optimizer.get(key, 0) for key in ("min_lr", "peak_lr"))
    if least > most:
        raise UserError(
            f"{here}.optimizer.min_lr is {least}; expected at most peak_lr={most}."
        )
    groups = stage.model.get("bn_groups", 1)
    for key in ("batch_size", "unlabelled_batch_size"):
        if stage.data[key] % groups:
            raise UserError(
                f"{here}.model.bn_groups is {groups}; expected a divisor of"
                f" {here}.data.{key}={stage.data[key]}."
            )
    if (stage.train.epochs > 0) == (stage.train.steps > 0):
        raise UserError(
            f"{here}.train has epochs={stage.train.epochs} and"
            f" steps={stage.train.steps}; expected exactly one of them > 0."
        )


def _check_devices(config: Section, num_devices: int) -> None:
    batch_sizes = {
        f"{name}.data.{key}": config[name].data[key]
        for name in config.stages
        for key in ("batch_size", "unlabelled_batch_size")
    }
    most = math.gcd(*batch_sizes.values())
    usable = max(n for n in range(1, num_devices + 1) if most % n == 0)
    fewer = "" if processes.several() else f", or use --devices={usable}"
    for name, size in batch_sizes.items():
        if size % num_devices:
            raise UserError(
                f"config.{name} is {size}; expected a multiple of the"
                f" {num_devices} devices: change it{fewer}."
            )


def _check_groups(config: Section, num_devices: int) -> None:
    for name in config.stages:
        groups = config[name].model.get("bn_groups", 1)
        if config[name].method.get("groups_in_turn", False) and groups % num_devices:
            raise UserError(
                f"config.{name}.model.bn_groups is {groups}; with method.groups_in_turn"
                f" expected a multiple of the {num_devices} devices."
            )


def _check_source(here: str, stage: Section, earlier: Sequence[str]) -> None:
    source = stage.init_from
    if source and source not in earlier and not Path(source).is_dir():
        raise UserError(
            f"{here}.init_from is {source!r}; expected '', an earlier stage"
            f" ({', '.join(earlier) or 'there is none'}) or the folder RUN/STAGE of"
            f" another run.{nearest(source, earlier)}"
        )
