"""Volumes in, numpy batches out; no jax in here."""

import contextlib
import importlib.util
from collections.abc import Collection, Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from pclseg.batch import UNLABELLED
from pclseg.errors import UserError
from pclseg.named import checked_call, nearest

if TYPE_CHECKING:
    from pclseg.data.plan import Plan

_HOST_PIPELINES = ("numpy", "tf")
PIPELINES = ("device", *_HOST_PIPELINES)  # "device" is of training alone
Batches = Generator[dict[str, np.ndarray], None, None]


def check_pipeline(name: str) -> None:
    """Checks that there is a pipeline of that name, without its slow import.

    Raises:
        UserError: unknown name, TensorFlow not installed.
    """
    _check_name(name, PIPELINES)
    if name == "tf" and importlib.util.find_spec("tensorflow") is None:
        importlib.import_module("pclseg.data._tf")  # raises, and says what to do


def _check_name(name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UserError(
            f"config.data.pipeline is {name!r}; known are: {', '.join(known)}."
            f"{nearest(name, known)}"
        )


def host_pipeline(name: str) -> str:
    """The pipeline of what is not training; with "device" that is "numpy"."""
    return "numpy" if name == "device" else name


def make_pipeline(name: str, **kwargs: Any) -> Batches:
    """The batches of a plan from the pipeline of that name, which is imported only now.

    Args:
        name: "tf" (tf.data) or "numpy" (no TensorFlow); both give identical batches.
        **kwargs: see `make` of `pclseg.data.pipeline_<name>`.

    Raises:
        UserError: unknown name, missing or unknown argument, TensorFlow not installed.
    """
    _check_name(name, _HOST_PIPELINES)
    check_pipeline(name)
    make = importlib.import_module(f"pclseg.data.pipeline_{name}").make
    return checked_call(make, f"pipeline {name!r}", **kwargs)


def make_batches(
    name: str,
    *,
    plan: "Plan",
    unlabelled: "Plan | None",
    keys: Collection[str],
    **kwargs: Any,
) -> Batches:
    """Batches of a plan and, under keys with the prefix UNLABELLED, of a second one.

    Args:
        name: as in `make_pipeline`, like `kwargs`.
        plan: of the keys without that prefix.
        unlabelled: of those with it; None where there are none.
        keys: of `pclseg.batch.KEYS`.
        **kwargs: of both pipelines.
    """
    own = frozenset(key for key in keys if not key.startswith(UNLABELLED))
    batches = make_pipeline(name, plan=plan, keys=own, **kwargs)
    if unlabelled is None:
        return batches
    others = frozenset(key.removeprefix(UNLABELLED) for key in keys if key not in own)
    return _joined(batches, make_pipeline(name, plan=unlabelled, keys=others, **kwargs))


def _joined(batches: Batches, others: Batches) -> Batches:
    with contextlib.closing(batches), contextlib.closing(others):
        for batch, other in zip(batches, others, strict=True):
            yield batch | {UNLABELLED + key: value for key, value in other.items()}
