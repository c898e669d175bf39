"""Checkpoints: the whole TrainState by Orbax, asynchronous, atomic, the last few kept."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from pclseg.errors import UserError
from pclseg.state import TrainState, Tree


class Checkpoints:
    """The checkpoints of one stage, in `folder/<step>`.

    States are saved as host arrays without a device axis, so a run may go on with another
    number of devices.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Opens `folder`, which need not exist; `keep` is the number kept."""
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=True
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts saving `state`; returns when it is copied to the host.

        Raises:
            UserError: this or the save before it failed; older checkpoints survive.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        try:
            self._manager.save(
                step, args=ocp.args.StandardSave(_as_dict(jax.device_get(state)))
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            UserError: the disk is full or broken; older checkpoints survive.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest state, or None where there is no checkpoint.

        Args:
            like: a state of the same structure and shapes.

        Raises:
            UserError: the checkpoint does not fit `like` or is damaged.
        """
        step = self.latest_step()
        if step is None:
            return None
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.StandardRestore(_as_dict(jax.device_get(like)))
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._folder / str(step)} does not fit this run or is damaged"
                f" ({_first_line(error)}); delete that folder to go on from an older one."
            ) from error
        state = TrainState(**restored)
        for want, have in zip(
            jax.tree.leaves(template), jax.tree.leaves(state), strict=True
        ):
            if want.shape != have.shape or want.dtype != have.dtype:
                raise UserError(
                    f"{self._folder / str(step)} holds an array {have.dtype}{have.shape}"
                    f" where this run has {want.dtype}{want.shape}; use a new --workdir."
                )
        return state

    def close(self) -> None:
        """Waits for what is being saved and releases the folder."""
        self.wait()
        self._manager.close()

    def _failed(self, error: Exception) -> UserError:
        steps = (
            [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]
            if self._folder.is_dir()
            else []
        )
        kept = (
            f"the checkpoint of step {max(steps)} is intact"
            if steps
            else "none is there"
        )
        return UserError(
            f"a checkpoint could not be written to {self._folder} ({_first_line(error)});"
            f" {kept}; free space and run the same command again."
        )


def load_weights(folder: Path) -> tuple[int, Tree, Tree]:
    """The weights of the newest checkpoint in `folder`, whatever model made them.

    Returns:
        step, params, batch_stats: nested dicts of host arrays.

    Raises:
        UserError: no complete checkpoint in `folder`.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; expected a stage's checkpoints folder."
        )
    with ocp.CheckpointManager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(
                f"{folder} holds no complete checkpoint; finish that stage first."
            )
        item: Any = manager.restore(step, args=ocp.args.StandardRestore())
    return step, item["params"], item["model_state"]["batch_stats"]


def _as_dict(state: TrainState) -> dict[str, Tree]:
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
