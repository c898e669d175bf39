"""Config files: their argument, and the checks that need more than one section."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_collections

from pclseg.errors import UserError
from pclseg.named import nearest


def parse_arg(arg: str | None, **defaults: Any) -> SimpleNamespace:
    """Parses the string behind the `:` of `--config=file.py:name=value,name=value`.

    Args:
        arg: that string, or None.
        **defaults: names and their default values; a value takes the default's type.

    Raises:
        UserError: an unknown name or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults or not equals:
            raise UserError(
                f"config argument {item!r} is unknown; expected name=value with a name of:"
                f" {', '.join(defaults)}.{nearest(name, defaults)}"
            )
        kind = type(defaults[name])
        try:
            values[name] = (
                {"True": True, "False": False}[text] if kind is bool else kind(text)
            )
        except (ValueError, KeyError):
            raise UserError(
                f"config argument {name}={text!r} is no {kind.__name__}."
            ) from None
    return SimpleNamespace(**values)


def pick(what: str, name: str, choices: dict[str, Any]) -> Any:
    """`choices[name]`, with a UserError that lists the choices."""
    if name not in choices:
        raise UserError(
            f"config argument {what}={name!r} is unknown; known are: {', '.join(choices)}."
            f"{nearest(name, choices)}"
        )
    return choices[name]


def sibling(file: str, name: str, arg: str | None) -> ml_collections.ConfigDict:
    """The config of file `name` beside the config file `file`, to change what differs."""
    return runpy.run_path(str(Path(file).with_name(name)))["get_config"](arg)


def as_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as plain nested dicts with lists for tuples, as its JSON file holds it."""
    return json.loads(config.to_json_best_effort())


def check_config(config: ml_collections.ConfigDict, num_devices: int) -> None:
    """Checks what no single section can: sizes, devices, the order of stages.

    Raises:
        UserError: naming the key, its value and what was expected.
    """
    for section in ("seed", "stages", "data", "evaluate"):
        if section not in config:
            raise UserError(
                f"the config lacks config.{section}; compare configs/pcl_acdc.py."
            )
    if not config.stages:
        raise UserError(
            "config.stages is empty; expected e.g. ('pretrain', 'finetune')."
        )
    for number, name in enumerate(config.stages):
        if name not in config:
            raise UserError(
                f"config.stages names {name!r}, but there is no config.{name}."
            )
        _check_stage(name, config[name], config.stages[:number], num_devices)


def _check_stage(
    name: str,
    stage: ml_collections.ConfigDict,
    earlier: tuple[str, ...],
    num_devices: int,
) -> None:
    here = f"config.{name}"
    for axis, size in zip("HW", stage.data.crop_size, strict=True):
        if size < 16 or size % 16:
            raise UserError(
                f"{here}.data.crop_size is {tuple(stage.data.crop_size)}; its {axis} must be a"
                f" multiple of 16: use {max(16, round(size / 16) * 16)}."
            )
    batch_size = stage.data.batch_size
    if batch_size < 1 or batch_size % num_devices:
        raise UserError(
            f"{here}.data.batch_size is {batch_size}; expected a multiple of the"
            f" {num_devices} devices: change it, or use fewer with --devices."
        )
    groups = stage.model.get("bn_groups", 1)
    if groups < 1 or batch_size % groups:
        raise UserError(
            f"{here}.model.bn_groups is {groups}; expected a divisor of"
            f" {here}.data.batch_size={batch_size}."
        )
    if (stage.train.epochs > 0) == (stage.train.steps > 0):
        raise UserError(
            f"{here}.train has epochs={stage.train.epochs} and steps={stage.train.steps};"
            " expected exactly one of them > 0."
        )
    for key in ("log_every", "checkpoint_every", "keep"):
        if stage.train[key] < 1:
            raise UserError(
                f"{here}.train.{key} is {stage.train[key]}; expected at least 1."
            )
    if not stage.optimizer.peak_lr > 0:
        raise UserError(
            f"{here}.optimizer.peak_lr is {stage.optimizer.peak_lr}; expected > 0."
        )
    source = stage.init_from
    if source and source not in earlier and not Path(source).is_dir():
        raise UserError(
            f"{here}.init_from is {source!r}; expected '', an earlier stage"
            f" ({', '.join(earlier) or 'there is none'}) or the folder RUN/STAGE of another run."
        )
