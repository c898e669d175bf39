"""Datasets, one file each: `make(name)` imports the file of that name."""

import importlib
import inspect
import pkgutil

from pclseg.data.datasets.base import Dataset
from pclseg.errors import UserError
from pclseg.named import checked_call, nearest


def names() -> list[str]:
    """The datasets there are: the files of this folder."""
    files = {m.name for m in pkgutil.iter_modules(__path__)}
    return sorted(files - {"base", "paired"})


def make(name: str, /, **kwargs: object) -> Dataset:
    """The dataset of that name; `kwargs` are raw_dir and the options of its file.

    Raises:
        UserError: an unknown name or option, or what the dataset's file finds wrong.
    """
    if name not in names():
        raise UserError(
            f"config.data.name is {name!r}; known datasets are:"
            f" {', '.join(names())}.{nearest(name, names())}"
        )
    build = importlib.import_module(f"{__name__}.{name}").make
    known = list(inspect.signature(build).parameters)
    for option in kwargs:
        if option not in known:
            options = [k for k in known if k != "raw_dir"]
            raise UserError(
                f"dataset {name!r} has no option config.data.options.{option};"
                f" its options are: {', '.join(options) or 'none'}."
                f"{nearest(option, options)}"
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
