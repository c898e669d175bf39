"""A copy of a run's scalars at Weights & Biases, for those whom `config.wandb` asks."""

import contextlib
import importlib
import importlib.util
import logging
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pclseg.errors import UserError
from pclseg.files import read_json, write_json

log = logging.getLogger(__name__)

RECORD = "wandb.json"  # of a run directory: which run there is its copy
# Neither output, code, command line nor machine: they name folders and patients.
_SETTINGS = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
}


def check_installed(project: str) -> None:
    """Checks that what `config.wandb` asks for can be.

    Args:
        project: the value of `config.wandb`; "" asks for nothing.

    Raises:
        UserError: a project is named, but wandb is not installed.
    """
    if not project:
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # or a mere folder of that name
        raise UserError(
            f"config.wandb is {project!r}, but wandb is not installed;"
            " `pip install wandb`, or leave config.wandb empty."
        )


class Mirror:
    """One run at Weights & Biases, the copy of one run directory.

    What fails there is told once, after which nothing more is sent: the files of the
    run directory hold everything.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]) -> None:
        """Begins the run there, or goes on with that of an earlier start.

        Args:
            project: where; "" for no copy.
            workdir: the run directory, which remembers the run there.
            config: JSON-able, of the whole run; no path of it is sent.
        """
        self._run: Any = None
        if project:
            with self._failing_once():
                wandb = importlib.import_module("wandb")
                self._run = wandb.init(
                    project=project,
                    id=_id(workdir / RECORD, project),
                    name=workdir.resolve().name,
                    dir=str(workdir),
                    config=_sent(config),
                    resume="allow",
                    settings=_SETTINGS,
                )

    def scalars(
        self, stage: str, name: str, step: int, values: Mapping[str, float]
    ) -> None:
        """Sends scalars of a stage as `<stage>/<name>/<key>`, over `<stage>/step`."""
        if self._run is None:
            return
        with self._failing_once():
            # Steps of its own for every stage; a later definition changes nothing.
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            sent = {f"{stage}/{name}/{key}": value for key, value in values.items()}
            self._run.log({f"{stage}/step": step, **sent})

    def close(self) -> None:
        """Waits until everything is sent."""
        if self._run is not None:
            with self._failing_once():
                self._run.finish()

    @contextlib.contextmanager
    def _failing_once(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever wandb, its server or the network does
            self._run = None
            reason = (str(error).splitlines() or [""])[0][:200]
            log.warning(
                "Weights & Biases failed (%s: %s); this start goes on without it.",
                type(error).__name__,
                reason,
            )


def _id(path: Path, project: str) -> str:
    """The name of the run there, which an earlier start may have given."""
    if path.is_file() and (record := read_json(path)).get("project") == project:
        return record["id"]
    record = {"project": project, "id": uuid.uuid4().hex[:12]}
    write_json(path, record)
    return record["id"]


def _sent(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that name files: where data lie, what was before."""
    split = {k: v for k, v in config["data"]["split"].items() if k != "file"}
    stages = {
        name: {k: v for k, v in config[name].items() if k != "init_from"}
        for name in config["stages"]
    }
    kept = {k: config[k] for k in ("arm", "seed", "evaluate")}
    return {**kept, "data": {"name": config["data"]["name"], "split": split}, **stages}
