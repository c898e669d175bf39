"""Volumes in, numpy batches out; no jax in here."""

import importlib.util
from collections.abc import Generator
from typing import Any

import numpy as np

from pclseg.errors import UserError
from pclseg.named import checked_call, nearest

_PIPELINES = ("numpy", "tf")
Batches = Generator[dict[str, np.ndarray], None, None]


def check_pipeline(name: str) -> None:
    """Checks that there is a pipeline of that name, without its slow import.

    Raises:
        UserError: unknown name, TensorFlow not installed.
    """
    if name not in _PIPELINES:
        raise UserError(
            f"config.data.pipeline is {name!r}; known are: {', '.join(_PIPELINES)}."
            f"{nearest(name, _PIPELINES)}"
        )
    if name == "tf" and importlib.util.find_spec("tensorflow") is None:
        importlib.import_module("pclseg.data._tf")  # raises, and says what to do


def make_pipeline(name: str, **kwargs: Any) -> Batches:
    """The batches of a plan from the pipeline of that name, which is imported only now.

    Args:
        name: "tf" (tf.data) or "numpy" (no TensorFlow); both give identical batches.
        **kwargs: see `make` of `pclseg.data.pipeline_<name>`.

    Raises:
        UserError: unknown name, missing or unknown argument, TensorFlow not installed.
    """
    check_pipeline(name)
    make = importlib.import_module(f"pclseg.data.pipeline_{name}").make
    return checked_call(make, f"pipeline {name!r}", **kwargs)
