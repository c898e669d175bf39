"""Volumes in, numpy batches out; no jax in here."""

import importlib
from collections.abc import Generator
from typing import Any

import numpy as np

from pclseg.errors import UserError
from pclseg.named import checked_call, nearest

_PIPELINES = ("numpy", "tf")


def make_pipeline(
    name: str, **kwargs: Any
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches of a plan from the pipeline of that name, which is imported only now.

    Args:
        name: "tf" (tf.data) or "numpy" (no TensorFlow); both give identical batches.
        **kwargs: see `make` of `pclseg.data.pipeline_<name>`.

    Raises:
        UserError: unknown name, missing or unknown argument, TensorFlow not installed.
    """
    if name not in _PIPELINES:
        raise UserError(
            f"config.data.pipeline is {name!r}; known are: {', '.join(_PIPELINES)}."
            f"{nearest(name, _PIPELINES)}"
        )
    make = importlib.import_module(f"pclseg.data.pipeline_{name}").make
    return checked_call(make, f"pipeline {name!r}", **kwargs)
