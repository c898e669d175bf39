"""Finds a module of a package by its file name and calls its `make`."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable
from typing import Any

from pclseg.errors import UserError


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name closest to `name`, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def make_named(
    kind: str,
    package: str,
    path: Iterable[str],
    name: str,
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
        UserError: unknown name; unknown, missing arguments of `make`.
    """
    known = sorted(m.name for m in pkgutil.iter_modules(path) if m.name not in hidden)
    if name not in known:
        raise UserError(
            f"{kind} {name!r} is unknown; known are: {', '.join(known)}."
            f"{nearest(name, known)}"
        )
    make = importlib.import_module(f"{package}.{name}").make
    return checked_call(make, f"{kind} {name!r}", **kwargs)


def checked_call(make: Callable[..., Any], what: str, **kwargs: Any) -> Any:
    """`make(**kwargs)`, with a UserError that names a missing or unknown argument."""
    parameters = inspect.signature(make).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in kwargs:
            if key not in parameters:
                raise UserError(
                    f"{what} knows no setting {key!r}; it has: {', '.join(parameters)}."
                    f"{nearest(key, parameters)}"
                )
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in kwargs:
            if parameter.kind in (
                parameter.KEYWORD_ONLY,
                parameter.POSITIONAL_OR_KEYWORD,
            ):
                raise UserError(
                    f"{what} needs the setting {key!r}; write it in the config."
                )
    return make(**kwargs)
