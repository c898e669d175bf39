"""Checkpoints: the whole TrainState by Orbax, asynchronous, atomic, a few kept."""

import logging
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pclseg.errors import UserError
from pclseg.state import TrainState, Tree

log = logging.getLogger(__name__)
# Of what is saved beside the fields of TrainState.
_CHECKSUM = "checksum"


class NotFiniteError(Exception):
    """A state holds NaN or infinity; it is not saved."""


class Checkpoints:
    """The checkpoints of one stage, in `folder/<step>`.

    States are saved as host arrays without a device axis, so a run may go on with
    another number of devices.
    """

    def __init__(self, folder: Path, *, keep: int, writes: bool = True) -> None:
        """Opens `folder`, which need not exist; `keep` is the number kept.

        Args:
            folder: of the stage.
            keep: number of checkpoints.
            writes: whether states go to the disk; False in all processes but one. They
                are checked all the same, so that all processes end alike.

        Raises:
            UserError: the folder cannot be made or read.
        """
        self._folder = folder.absolute()
        self._manager = None
        if not writes:
            return
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=False, **_alone()
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise self._failed(error) from error

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, which may still be on its way to the disk."""
        return self._manager.latest_step() if self._manager else None

    def save(self, state: TrainState) -> None:
        """Starts saving `state`; returns when it is copied to the host.

        Raises:
            NotFiniteError: NaN or infinity in the weights, statistics or optimiser.
            UserError: this or the save before it failed; older checkpoints survive.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        # device_get may return views of buffers that the next step is donated.
        tree = _as_dict(jax.tree.map(np.array, jax.device_get(state)))
        _check_finite(tree)
        if self._manager is None:
            return
        tree[_CHECKSUM] = _checksum(tree)
        try:
            self._manager.wait_until_finished()
            for unfinished in self._folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(unfinished)  # of a run that was killed, or a full disk
            _reserve(self._folder, tree)
            self._manager.save(step, args=ocp.args.StandardSave(tree))
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            UserError: the disk is full or broken; older checkpoints survive.
        """
        try:
            if self._manager:
                self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest state, as host arrays, or None where there is no checkpoint.

        Args:
            like: a state of the same structure and shapes, or only its shapes.

        Raises:
            UserError: the checkpoint does not fit `like` or is damaged.
        """
        step = self.latest_step()
        if step is None or self._manager is None:
            return None
        template = _as_dict(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like))
        path = self._folder / str(step)
        restored = _restore(self._manager, path, template)
        for (where, want), have in zip(
            jax.tree_util.tree_leaves_with_path(template),
            jax.tree.leaves(restored),
            strict=True,
        ):
            if want.shape != have.shape or want.dtype != have.dtype:
                raise UserError(
                    f"{path}: {jax.tree_util.keystr(where)} is"
                    f" {have.dtype}{have.shape}, but {want.dtype}{want.shape} in this"
                    " run; use a new --workdir."
                )
        return TrainState(**restored)

    def close(self) -> None:
        """Waits for what is being saved and releases the folder; tells of a failure."""
        try:
            if self._manager:
                self._manager.close()
        except (OSError, ValueError, RuntimeError) as error:
            log.error("%s", self._failed(error))

    def _failed(self, error: Exception) -> UserError:
        steps = (
            [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]
            if self._folder.is_dir()
            else []
        )
        kept = f"that of step {max(steps)} is intact" if steps else "none is there"
        return UserError(
            f"a checkpoint could not be written to {self._folder}"
            f" ({_first_line(error)}); {kept}; free space and run the same command"
            " again."
        )


def load_weights(folder: Path) -> tuple[int, Tree, Tree]:
    """The weights of the newest checkpoint in `folder`, whatever model made them.

    Returns:
        step, params, batch_stats: nested dicts of host arrays.

    Raises:
        UserError: no complete checkpoint in `folder`, or it is damaged.
    """
    step, state = load_state(folder)
    return step, state["params"], state["model_state"]["batch_stats"]


def load_state(folder: Path) -> tuple[int, dict[str, Tree]]:
    """The newest checkpoint in `folder`, whatever method and model made it.

    Returns:
        step; the fields of its `TrainState`, as nested dicts of host arrays.

    Raises:
        UserError: no complete checkpoint in `folder`, or it is damaged.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; expected a stage's checkpoints folder."
        )
    options = ocp.CheckpointManagerOptions(create=False, **_alone())
    with ocp.CheckpointManager(folder, options=options) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(
                f"{folder} holds no complete checkpoint; finish that stage first."
            )
        return step, _restore(manager, folder / str(step), None)


def _alone() -> dict[str, Any]:
    """Options by which a process of several reads and writes without the others."""
    if jax.process_count() == 1:
        return {}
    me = jax.process_index()
    return {
        "multiprocessing_options": ocp.options.MultiprocessingOptions(
            primary_host=me,
            active_processes={me},
            barrier_sync_key_prefix=f"process_{me}",
        ),
        # Orbax then makes the folder of a step and the one inside it in a race.
        "async_options": ocp.options.AsyncOptions(
            create_directories_asynchronously=False
        ),
    }


def _restore(
    manager: ocp.CheckpointManager, path: Path, like: Tree | None
) -> dict[str, Tree]:
    """The checkpoint in `path`, structured as `like` or, for None, as nested dicts."""
    template = None if like is None else {**like, _CHECKSUM: np.zeros((), np.uint32)}
    try:
        item: Any = manager.restore(
            int(path.name), args=ocp.args.StandardRestore(template)
        )
        if int(item.pop(_CHECKSUM)) != _checksum(item):
            raise ValueError("wrong checksum")
    except Exception as error:  # Orbax passes on whatever its parts raise
        raise UserError(
            f"{path} does not fit this run or is damaged ({_first_line(error)});"
            f" {_advice(path)}"
        ) from error
    return item


def _advice(path: Path) -> str:
    older = [int(p.name) for p in path.parent.iterdir() if p.name.isdigit()]
    older = [step for step in older if step < int(path.name)]
    to = f"go on from step {max(older)}" if older else "start this stage again"
    return f"delete that folder to {to}."


def _reserve(folder: Path, tree: Tree) -> None:
    """Raises OSError unless there is room, quotas included, for `tree`.

    Orbax would find out later, in a thread, with one traceback for every array.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    path = folder / ".reserve"  # one name: of a run that was killed here it is reused
    try:
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    finally:
        path.unlink(missing_ok=True)


def _check_finite(tree: dict[str, Tree]) -> None:
    for name in ("params", "model_state", "opt_state"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree[name]):
            if (
                jax.numpy.issubdtype(leaf.dtype, np.inexact)
                and not np.isfinite(leaf).all()
            ):
                raise NotFiniteError(f"{name}{jax.tree_util.keystr(path)}")


def _checksum(tree: Tree) -> np.ndarray:
    """uint32 scalar, of the leaves in any order."""
    crcs = (
        zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        for leaf in jax.tree.leaves(tree)
    )
    return np.asarray(sum(crcs) % 2**32, np.uint32)


def _as_dict(state: TrainState) -> dict[str, Tree]:
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}


def _first_line(error: Exception) -> str:
    if found := re.search(r"os_error_code='(\d+)'", str(error)):  # of TensorStore
        return os.strerror(int(found[1]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
