"""Finds a module of a package by its file name and calls its `make`."""

import difflib
import importlib
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from pclseg.errors import UserError


def _is_number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value)


# What a config may hold: (in words, several in words, whether a value is one).
_KINDS: Mapping[type, tuple[str, str, Callable[[Any], bool]]] = {
    bool: ("True or False", "truth values", lambda value: isinstance(value, bool)),
    int: ("a whole number", "whole numbers", lambda value: type(value) is int),
    float: ("a number", "numbers", _is_number),
    str: ("a text", "texts", lambda value: isinstance(value, str)),
}


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name closest to `name`, or ""."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def make_named(
    kind: str,
    package: str,
    path: Iterable[str],
    name: str,
    /,
    *,
    hidden: Collection[str] = (),
    **kwargs: Any,
) -> Any:
    """Calls `make(**kwargs)` of the module `name` of `package`.

    Args:
        kind: what the modules are, for messages, e.g. "method".
        package: dotted name of the package.
        path: the package's `__path__`.
        name: file name without ending.
        hidden: modules of the package that are no choices.
        **kwargs: arguments of that module's `make`.

    Raises:
        UserError: unknown name; unknown, missing, mistyped arguments of `make`.
    """
    known = sorted(m.name for m in pkgutil.iter_modules(path) if m.name not in hidden)
    if name not in known:
        raise UserError(
            f"{kind} {name!r} is unknown; known are: {', '.join(known)}."
            f"{nearest(str(name), known)}"
        )
    make = importlib.import_module(f"{package}.{name}").make
    return checked_call(make, f"{kind} {name!r}", **kwargs)


def checked_call(make: Callable[..., Any], what: str, /, **kwargs: Any) -> Any:
    """`make(**kwargs)`, after `check_arguments`."""
    check_arguments(make, what, kwargs)
    return make(**kwargs)


def check_arguments(
    make: Callable[..., Any], what: str, kwargs: Mapping[str, Any]
) -> None:
    """Checks names and types of what a config gives to `make`, without calling it.

    Args:
        make: annotated; parameters that no config can hold are not looked at.
        what: is made, for messages, e.g. "method 'pcl'".
        kwargs: the arguments.

    Raises:
        UserError: names the first argument that is unknown, missing or of a wrong type.
    """
    parameters = inspect.signature(make).parameters
    settings = [key for key, p in parameters.items() if _in_words(p.annotation)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in kwargs:
            if key not in parameters:
                raise UserError(
                    f"{what} knows no setting {key!r}; it has:"
                    f" {', '.join(settings) or 'none'}.{nearest(key, settings)}"
                )
    for key, parameter in parameters.items():
        if key not in kwargs and _is_required(parameter):
            raise UserError(
                f"{what} needs the setting {key!r}; write it in the config."
            )
        expected = _in_words(parameter.annotation)
        if key in kwargs and expected and not _fits(kwargs[key], parameter.annotation):
            raise UserError(f"{what}: {key} is {kwargs[key]!r}; expected {expected}.")


def _is_required(parameter: inspect.Parameter) -> bool:
    by_name = (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind in by_name


def _in_words(annotation: Any) -> str:
    """The annotation in words; "" where no config can hold such a value."""
    if isinstance(annotation, type) and annotation in _KINDS:
        return _KINDS[annotation][0]
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Sequence and members[0] in _KINDS:
        return f"a list of {_KINDS[members[0]][1]}"
    if origin is Mapping:
        return "a section, dict(...)"
    if origin in (typing.Union, types.UnionType):
        words = [_in_words(member) for member in members]
        return " or ".join(words) if all(words) else ""
    return ""


def _fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is of a type for which `_in_words` has words."""
    if annotation in _KINDS:
        return _KINDS[annotation][2](value)
    members = typing.get_args(annotation)
    if typing.get_origin(annotation) is Mapping:
        return isinstance(value, Mapping)
    if typing.get_origin(annotation) is Sequence:
        is_list = isinstance(value, list | tuple)
        return is_list and all(_fits(item, members[0]) for item in value)
    return any(_fits(value, member) for member in members)
