"""Datasets, one file each: `make(name)` imports the file of that name."""

import difflib
import importlib
import inspect
import pkgutil

from pclseg.data.datasets.base import Dataset
from pclseg.errors import UserError
from pclseg.named import checked_call


def names() -> list[str]:
    """The datasets there are: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def _nearest_first(word: str, known: list[str]) -> str:
    likeness = {k: difflib.SequenceMatcher(None, word, k).ratio() for k in known}
    return ", ".join(sorted(known, key=lambda k: (-likeness[k], k)))


def make(name: str, /, **kwargs: object) -> Dataset:
    """The dataset of that name; `kwargs` are raw_dir and the options of its file.

    Raises:
        UserError: an unknown name or option, or what the dataset's file finds wrong.
    """
    if name not in names():
        raise UserError(
            f"config.data.name is {name!r}; known datasets, nearest first:"
            f" {_nearest_first(name, names())}."
        )
    build = importlib.import_module(f"{__name__}.{name}").make
    known = list(inspect.signature(build).parameters)
    for option in kwargs:
        if option not in known:
            options = [k for k in known if k != "raw_dir"]
            raise UserError(
                f"dataset {name!r} has no option config.data.options.{option};"
                f" its options, nearest first: {_nearest_first(option, options)}."
            )
    return checked_call(build, f"config.data.options of {name!r}", **kwargs)


def generate(name: str, /, **kwargs: object) -> None:
    """Writes the files of a dataset that pclseg makes itself; others are left alone.

    Args:
        name: of the dataset.
        **kwargs: raw_dir and its options.

    Raises:
        UserError: an unknown, missing or mistyped option.
    """
    if name in names():
        module = importlib.import_module(f"{__name__}.{name}")
        if hasattr(module, "generate"):
            what = f"config.data.options of {name!r}"
            checked_call(module.generate, what, **kwargs)
