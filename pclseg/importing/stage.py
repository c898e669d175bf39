"""Weights from elsewhere as a finished stage, which `init_from` of a config takes."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from pclseg.errors import UserError
from pclseg.files import replacing, write_json
from pclseg.state import TrainState
from pclseg.train.checkpoint import Checkpoints
from pclseg.train.transfer import Variables


def write_stage(
    folder: Path,
    variables: Variables,
    *,
    patients: Iterable[str],
    saw_labels: bool,
    about: dict[str, Any],
) -> None:
    """Writes `folder`, whole or not at all.

    Args:
        folder: `checkpoints/`, `done.json`, `patients.json` and `import.json`.
        variables: {"params", "batch_stats"}, float32.
        patients: that the weights have seen.
        saw_labels: the labels of these patients too.
        about: where they come from, JSON-able.

    Raises:
        UserError: `folder` is there already, or the disk is full or broken.
    """
    images = sorted(set(patients))
    seen = {"images": images, "labels": images if saw_labels else []}
    with replacing(folder) as temporary:
        _save(temporary / "checkpoints", variables)
        write_json(temporary / "patients.json", seen)
        write_json(temporary / "import.json", about)
        write_json(temporary / "done.json", {"steps": 0})
        check_free(folder)


def check_free(folder: Path) -> None:
    """Raises UserError where `folder` is there already, be it a link to nothing."""
    if os.path.lexists(folder):
        raise UserError(f"--out {folder} is there already; name a new folder.")


def _save(folder: Path, variables: Variables) -> None:
    checkpoints = Checkpoints(folder, keep=1)
    try:
        checkpoints.save(
            TrainState(
                step=jnp.int32(0),
                params=variables["params"],
                opt_state={},
                model_state={"batch_stats": variables["batch_stats"]},
                method_state={},
            )
        )
        checkpoints.wait()
    finally:
        checkpoints.close()
