"""Config files: how they are loaded, and changed by `--config.KEY=VALUE`."""

import json
import re
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from pclseg.errors import UserError
from pclseg.named import nearest

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")


def load_config(argument: str) -> ml_collections.ConfigDict:
    """The locked config that `get_config` of a file returns.

    Args:
        argument: `FILE.py`, or `FILE.py:ARG` for `get_config(ARG)`.

    Raises:
        UserError: no such file, or a mistake in it; the message names file and line.
    """
    file, colon, arg = argument.partition(":")
    path = Path(file)
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.py")])
        raise UserError(f"--config: there is no file {file!r}.{near}")
    try:
        get_config = runpy.run_path(file).get("get_config")
        if get_config is None:
            raise UserError(f"{file} defines no function get_config.")
        config = get_config(arg) if colon else get_config()
    except UserError:
        raise
    except Exception as error:  # whatever a user's code may raise
        raise UserError(
            f"{_where(error, path)}: {type(error).__name__}:"
            f" {getattr(error, 'msg', error)}"
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"{file}: get_config returns no ml_collections.ConfigDict.")
    config = _apart(config)
    if "stages" in config and "wandb" not in config:
        with config.unlocked():
            config.wandb = ""  # the one key that may be left out; no number needs it
    return config.lock()


def _where(error: Exception, path: Path) -> str:
    """`file, line N` of the last line of a config file that led to the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).parent == path.parent:
            return f"{frame.filename}, line {frame.lineno}"
    return str(path)


def override(config: ml_collections.ConfigDict, args: Sequence[str]) -> None:
    """Sets values of `config` by arguments such as `--config.data.split.fold=3`.

    Raises:
        UserError: an unknown key, with the nearest one, or a value of another type.
    """
    keys = [found[1] for arg in args if (found := _OVERRIDE.match(arg))]
    named = _only(config, keys)
    values = flags.FlagValues()
    argv = ["", *args]
    try:
        config_flags.DEFINE_config_dict(
            "config", named, flag_values=values, sys_argv=argv
        )
        rest = values(argv)[1:]
        if named is not config:
            config.update_from_flattened_dict({k: _value(named, k) for k in keys})
    except flags.IllegalFlagValueError as error:
        arg = str(error).partition(": ")[0].removeprefix("flag ")
        key = arg.partition("=")[0].removeprefix("--config.")
        raise UserError(
            f"{arg}: expected a value like the config's own, {_value(config, key)!r}."
        ) from error
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    if rest:
        raise UserError(f"{rest[0]!r} is no flag; flags look like --config=FILE.")


def _only(
    config: ml_collections.ConfigDict, keys: Sequence[str]
) -> ml_collections.ConfigDict:
    """The values of `keys`; all of `config` where one of them is a section.

    Flags print the config they are defined for, which takes longer than all else.
    """
    values = {key: _value(config, key) for key in keys}
    if any(isinstance(value, ml_collections.ConfigDict) for value in values.values()):
        return config
    named = ml_collections.ConfigDict()
    for key, value in values.items():
        *sections, name = key.split(".")
        place = named
        for section in sections:
            if section not in place:
                place[section] = ml_collections.ConfigDict()
            place = place[section]
        place[name] = value
    return named


def is_override(arg: str) -> bool:
    """Whether a command-line argument sets a value of the config."""
    return _OVERRIDE.match(arg) is not None


def _value(config: ml_collections.ConfigDict, key: str) -> Any:
    """The value of `key`, e.g. "data.split.fold"."""
    section: Any = config
    here = "config"
    for name in key.split("."):
        if not isinstance(section, ml_collections.ConfigDict):
            raise UserError(f"--config.{key}: {here} is a value and has no keys.")
        if name not in section:
            raise UserError(
                f"--config.{key}: {here} has no key {name!r}; it has:"
                f" {', '.join(section)}.{nearest(name, section)}"
            )
        section, here = section[name], f"{here}.{name}"
    return section


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
                f"config argument {item!r} is unknown; expected name=value with a name"
                f" of: {', '.join(defaults)}.{nearest(name, defaults)}"
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


def argument(arg: str | None, name: str, default: str) -> str:
    """The value of `name` in a string as of `parse_arg`, which checks the others."""
    given = [item.partition("=") for item in (arg or "").split(",")]
    return next((value for key, _, value in reversed(given) if key == name), default)


def pick(what: str, name: str, choices: dict[str, Any]) -> Any:
    """`choices[name]`, with a UserError that lists the choices."""
    if name not in choices:
        raise UserError(
            f"config argument {what}={name!r} is unknown; known are:"
            f" {', '.join(choices)}.{nearest(name, choices)}"
        )
    return choices[name]


def sibling(file: str, name: str, arg: str | None) -> ml_collections.ConfigDict:
    """The config of file `name` beside the file `file`, to change what differs."""
    return _apart(runpy.run_path(str(Path(file).with_name(name)))["get_config"](arg))


def _apart(section: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy in which no two keys hold the same section, but references stay.

    `dict(stage, ...)` copies one level, so two stages would share the sections below,
    and a change of one stage would be one of both.
    """
    return ml_collections.ConfigDict(
        {
            key: _apart(value)
            if isinstance(value, ml_collections.ConfigDict)
            else value
            for key, value in section.items(preserve_field_references=True)
        }
    )


def with_stages_of(
    config: ml_collections.ConfigDict, other: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """`config` with arm and stages of another dataset's, at its own size and classes.

    Args:
        config: with a section `finetune`; its data stay.
        other: whose stages take the crop and the number of classes of that section, and
            windows of about a quarter of that crop, as the authors of ACTION have them.
            How often is validated goes with them.
    """
    own = config.finetune
    own_values = dict(
        num_classes=own.model.num_classes, window=_window(own.data.crop_size)
    )
    config.arm, config.stages = other.arm, other.stages
    config.evaluate.every_epochs = other.evaluate.every_epochs
    for name in other.stages:
        stage = config[name] = other[name]
        stage.data.crop_size = own.data.crop_size
        for key in own_values.keys() & stage.model.keys():
            stage.model[key] = own_values[key]
    return config


def _window(crop_size: Sequence[int]) -> int:
    """The side nearest to a quarter of the crop that local heads can cut.

    Far smaller where a side of the crop has a large prime factor, as 304 has.
    """
    fits = [
        side
        for side in range(8, min(crop_size) + 1, 8)
        if not any(length % (side // 2) for length in crop_size)
    ]
    quarter = min(crop_size) / 4
    return min(fits, key=lambda side: (abs(side - quarter), -side), default=8)


def as_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as plain dicts, with lists for tuples, as its JSON file holds it."""
    return json.loads(config.to_json_best_effort())


def settings(section: ml_collections.ConfigDict, *taken: str) -> dict[str, Any]:
    """A section as keyword arguments, which the code completes by those `taken`.

    Raises:
        UserError: the section holds one of them.
    """
    values = section.to_dict()
    for key in taken:
        if key in values:
            raise UserError(f"{key!r} is no setting of a config; take it out.")
    return values
