"""What this machine and installation can do, and what keeps them from more.

python -m pclseg.cli.doctor
"""

import argparse
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pclseg import __version__, rundir
from pclseg.cli.status import exit_status
from pclseg.data import workers
from pclseg.errors import UserError

if TYPE_CHECKING:
    import jax

log = logging.getLogger("pclseg.doctor")  # also when run as __main__
_LOW_DISK_GIB = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Prints versions, devices, pipelines; returns 1 where pclseg cannot run."""
    command_line().parse_args(argv)

    def examine() -> None:
        for name, value in [*_machine(), *_packages()]:
            log.info("%-20s %s", name, value)
        lacking = missing()
        if lacking:
            raise UserError(
                f"{', '.join(lacking)} is not installed; run `make venv`, or"
                " `pip install -e .` where pclseg lies."
            )
        for name, value in [*_devices(), *_pipelines()]:
            log.info("%-20s %s", name, value)
        for line in advice():
            log.warning("%s", line)

    return exit_status(examine)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.doctor",
        description="Prints versions, devices, memory and the pipelines available, and"
        " says what is missing. Exit status 1 where pclseg cannot run.",
    )
    return parser


def missing() -> list[str]:
    """Packages that pclseg needs and that are not installed; TensorFlow is optional."""
    try:
        needed = importlib.metadata.requires("pclseg") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder of the source
        needed = ["jax", "flax", "optax", "orbax-checkpoint", "nibabel", "numpy"]
    names = [
        re.split(r"[^\w.-]", line)[0]
        for line in needed
        if "extra ==" not in line and not re.match("tensorflow(-cpu)?[^-\\w]", line)
    ]
    return [name for name in names if rundir.version(name) is None]


def advice() -> Iterator[str]:
    """What would help, a line each."""
    platforms = {device.platform for device in devices()}
    if platforms == {"cpu"}:
        if shutil.which("nvidia-smi"):
            yield (
                "there is an NVIDIA GPU, but jax does not see it; install it"
                " by `make venv EXTRA=cuda13 VENV=.venv-cuda13` (or cuda12)."
            )
        if any(Path("/dev").glob("accel*")):
            yield (
                "there is a TPU, but jax does not see it; install `pip install -e"
                ' ".[tpu]"`, and see that no other process holds it.'
            )
    if os.environ.get("JAX_PLATFORMS"):
        yield (
            f"JAX_PLATFORMS={os.environ['JAX_PLATFORMS']} decides which devices jax"
            " uses; unset it to let jax choose."
        )
    free = shutil.disk_usage(".").free / 2**30
    if free < _LOW_DISK_GIB:
        yield (
            f"only {free:.1f} GiB are free in this folder; --workdir and"
            " --config.data.store_dir may lie elsewhere."
        )


def _machine() -> Iterator[tuple[str, str]]:
    commit = rundir.commit()
    yield "pclseg", f"{__version__}{f', commit {commit}' if commit else ''}"
    yield "python", f"{platform.python_version()}, {sys.executable}"
    yield "system", platform.platform()
    memory = workers.memory_bytes() / 2**30
    yield "CPUs", f"{workers.usable_cpus()}, {memory:.0f} GiB of memory"
    free = shutil.disk_usage(".").free / 2**30
    yield "disk", f"{free:.0f} GiB free in {os.getcwd()}"


def _packages() -> Iterator[tuple[str, str]]:
    for name in (*rundir.PACKAGES, "tensorflow", "tensorflow-cpu", "nibabel"):
        if version := rundir.version(name):
            yield name, version


def devices() -> Sequence["jax.Device"]:
    """Those that jax finds.

    Raises:
        UserError: none.
    """
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"jax finds no device ({reason}); unset JAX_PLATFORMS, which is"
            f" {os.environ.get('JAX_PLATFORMS', '')!r}, or install jax for the device."
        ) from error


def _devices() -> Iterator[tuple[str, str]]:
    for device in devices():
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        size = f", {limit / 2**30:.0f} GiB for jax" if limit else ""
        yield f"device {device.id}", f"{device.device_kind}{size}"


def _pipelines() -> Iterator[tuple[str, str]]:
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    lacking = "no: TensorFlow is not installed; numpy gives the same batches"
    yield "pipeline tf", "yes" if has_tensorflow else lacking
    yield "pipeline numpy", "yes"
    yield "pipeline device", "yes, where the slices fit into the memory of the device"


if __name__ == "__main__":
    sys.exit(main())
