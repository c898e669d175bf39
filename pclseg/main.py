"""The training program.

python -m pclseg.main --config=configs/pcl_acdc.py --workdir=runs/pcl_acdc
"""

import contextlib
import dataclasses
import logging
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import ml_collections
from absl import flags

from pclseg import __version__, dryrun, processes, rundir, runner
from pclseg.building import Outline
from pclseg.compiled import keep_compiled
from pclseg.config import as_dict, is_override, load_config, override
from pclseg.config_rules import check_config, check_only
from pclseg.errors import Stopped, UserError
from pclseg.files import check_local
from pclseg.named import nearest
from pclseg.train.mirror import check_installed
from pclseg.train.stop import StopFlag

log = logging.getLogger("pclseg.main")  # also when run as __main__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    config: ml_collections.ConfigDict
    workdir: Path | None
    stages: tuple[str, ...]
    devices: int
    dry_run: bool
    coordinator: str
    processes: int
    process: int
    join_seconds: int
    stall_seconds: int
    stopped_status: int


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code.

    Args:
        argv: name of the program, then its arguments.
    """
    rundir.log_to(None)
    arguments = None
    try:
        arguments = parse(argv)
        if arguments is None:
            log.info("%s", _help())
        else:
            run(arguments)
    except UserError as error:
        log.error("%s", error)
        return 1
    except Stopped as stopped:
        about = f" {stopped}." if str(stopped) else ""
        log.info("stopped as asked.%s The same command goes on from there:", about)
        log.info("  python -m pclseg.main %s", shlex.join(argv[1:]))
        return arguments.stopped_status if arguments else 0
    except MemoryError:
        log.error("%s", _LESS_HOST_MEMORY)
        return 1
    except processes.PeersLost as error:
        return _peers_lost(error)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            log.error("%s", _less_memory(error))
            return 1
        lost = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "onnection", "Gloo")
        if processes.count() == 1 or not any(word in str(error) for word in lost):
            raise
        return _peers_lost(error)
    except KeyboardInterrupt:  # the second one; the first saves
        log.error("interrupted at once; the same command goes on from what is saved.")
        return 130
    return 0


def _peers_lost(error: Exception) -> int:
    """Says that a collective failed; returns the exit code for it."""
    log.error(
        "process %d of %d: a collective failed (%s); another process may have ended"
        " and says why. The same command goes on from the last checkpoint.",
        processes.index(),
        processes.count(),
        str(error).strip().splitlines()[0][:200],
    )
    return processes.LOST


_LESS_HOST_MEMORY = (
    "this machine is out of memory; use a lower --config.data.prepare.workers; in a new"
    " --workdir --config.data.pipeline=device, which holds the slices on the device"
    " alone, and --config.data.device_dtype=float16 or uint8; or a machine with more."
)


def _less_memory(error: Exception) -> str:
    """What to do where a device has too little memory."""
    reason = str(error).strip().splitlines()[0][:200].rstrip(".")
    return (
        f"a device is out of memory ({reason}). In a new --workdir, set what costs"
        " least first: --config.STAGE.model.dtype=bfloat16;"
        " --config.STAGE.model.remat=True;"
        " for SimCLR, GCL and PCL --config.pretrain.model.bn_groups=8 with"
        " --config.pretrain.method.groups_in_turn=True; a smaller"
        " --config.STAGE.data.batch_size, crop_size or model.width, or"
        " --config.evaluate.batch_size; with"
        " data.pipeline=device also --config.data.device_dtype=uint8. --dry_run prints"
        " what a step keeps."
    )


def run(arguments: Arguments) -> None:
    """Does what the command line asks for.

    What can be checked without reading a voxel is checked before the run directory is
    made.
    """
    _join(arguments)
    stop = StopFlag()
    stop.install()
    config = arguments.config
    devices = _devices(arguments.devices)
    _check_alike(config)
    check_config(config, len(devices))
    check_only(arguments.stages, config)
    check_installed(config.wandb)
    if arguments.workdir is None and not arguments.dry_run:
        raise UserError("--workdir is missing; name a folder for this run.")

    def outlined() -> Outline:
        with stop.interruptible(meets=False):
            return runner.outline(config, dry_run=arguments.dry_run)

    outline = processes.first_then_others(outlined)
    if arguments.workdir is None or arguments.dry_run:
        with stop.interruptible():
            description = dryrun.describe(config, outline, devices)
        for line in description.splitlines():
            log.info("%s", line)
        log.info("dry run: nothing was written.")
        return
    keep_compiled()
    with _claimed(arguments.workdir, config) as workdir:
        if processes.count() > 1 and arguments.stall_seconds:
            stop.watch(arguments.stall_seconds)
        runner.execute(
            config,
            workdir,
            outline,
            predictions=arguments.workdir / "predictions",
            devices=devices,
            only=arguments.stages,
            stop=stop,
        )
        log.info("finished: %s", workdir)


def _join(arguments: Arguments) -> None:
    """Joins the other processes, where the command line says that there are some."""
    for name in ("join_seconds", "stall_seconds", "stopped_status"):
        if not 0 <= getattr(arguments, name) <= 10**6:
            raise UserError(f"--{name} is {getattr(arguments, name)}; expected >= 0.")
    if arguments.stopped_status > 125:
        raise UserError(
            f"--stopped_status is {arguments.stopped_status}; expected 0 to 125."
        )
    if not arguments.coordinator:
        if arguments.processes != 1:
            raise UserError(
                f"--processes is {arguments.processes}, but --coordinator is missing;"
                " expected HOST:PORT of process 0, or auto."
            )
        return
    if arguments.devices:
        raise UserError(
            "--devices is for a single process; several use all devices that they see."
        )
    processes.join(
        arguments.coordinator,
        processes=arguments.processes,
        process=arguments.process,
        timeout_seconds=arguments.join_seconds,
    )
    if not processes.is_first():
        logging.getLogger("pclseg").setLevel(logging.WARNING)


def _check_alike(config: ml_collections.ConfigDict) -> None:
    """Checks that all processes run the same config with the same pclseg.

    Raises:
        UserError: naming the first differences.
    """
    number = f"{jax.local_device_count()} devices"
    processes.check_alike({"the version of pclseg": __version__, "the machine": number})
    first, *others = processes.gather(as_dict(config))
    for number, other in enumerate(others, start=1):
        if differences := rundir.config_differences(other, first):
            raise UserError(
                f"process {number} has another config than process 0:"
                f" {'; '.join(differences[:5])}; start all with the same command."
            )


@contextlib.contextmanager
def _claimed(workdir: Path, config: ml_collections.ConfigDict) -> Iterator[Path]:
    """The run directory, for the first process; for others one that is thrown away."""
    with contextlib.ExitStack() as stack:

        def claim() -> Path:
            if not processes.is_first():
                name = f"pclseg_process_{processes.index()}_"
                return Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix=name))
                )
            stack.enter_context(rundir.open_run(workdir, as_dict(config)))
            rundir.log_to(workdir / "log.txt")
            return workdir

        yield processes.together(claim)


def parse(argv: Sequence[str]) -> Arguments | None:
    """The command line, its config loaded and overridden; None where help is asked for.

    Raises:
        UserError: an unknown flag, config file or config key; the nearest one is named.
    """
    values = train_flags()
    try:
        rest = values(list(argv), known_only=True)[1:]
    except (flags.Error, ValueError) as error:
        raise UserError(str(error)) from error
    if values.help:
        return None
    for arg in rest:
        number = re.match(r"-[.\d]", arg)  # the value of an override before it
        if arg.startswith("-") and not number and not is_override(arg):
            name = arg.lstrip("-").partition("=")[0]
            raise UserError(f"there is no flag --{name}.{nearest(name, list(values))}")
    if values.config is None:
        raise UserError("--config is missing, e.g. --config=configs/pcl_acdc.py.")
    check_local("--workdir", values.workdir or "")
    config = load_config(values.config)
    override(config, rest)
    return Arguments(
        config=config,
        workdir=Path(values.workdir) if values.workdir else None,
        stages=tuple(values.stages),
        devices=values.devices,
        dry_run=values.dry_run,
        coordinator=values.coordinator,
        processes=values.processes,
        process=values.process,
        join_seconds=values.join_seconds,
        stall_seconds=values.stall_seconds,
        stopped_status=values.stopped_status,
    )


def train_flags() -> flags.FlagValues:
    """The flags, in a registry of their own: `main` may be called more than once."""
    own = flags.FlagValues()
    own.set_gnu_getopt(True)  # the VALUE of --config.KEY VALUE ends nothing
    help_of = {
        "config": "The experiment: configs/NAME.py[:arg=value,...].",
        "workdir": "The run directory; the same one resumes.",
        "stages": "Only these, e.g. pretrain,evaluate; default: all.",
        "devices": "Number of local devices to use; 0 means all.",
        "dry_run": "Build everything, print it, write nothing.",
        "coordinator": "Several processes: HOST:PORT of process 0, or auto.",
        "processes": "How many there are; not with --coordinator=auto.",
        "process": "Which of them this is, from 0; not with --coordinator=auto.",
        "join_seconds": "How long to wait for the others at the start.",
        "stall_seconds": "Of several: ends one that stands still so long; 0 for never.",
        "stopped_status": "Exit status of a run that was asked to stop, for a queue.",
        "help": "Print this.",
    }
    flags.DEFINE_string("config", None, help_of["config"], flag_values=own)
    flags.DEFINE_string("workdir", None, help_of["workdir"], flag_values=own)
    flags.DEFINE_list("stages", [], help_of["stages"], flag_values=own)
    flags.DEFINE_integer("devices", 0, help_of["devices"], flag_values=own)
    flags.DEFINE_bool("dry_run", False, help_of["dry_run"], flag_values=own)
    flags.DEFINE_string("coordinator", "", help_of["coordinator"], flag_values=own)
    for name, default in (
        ("processes", 1),
        ("process", 0),
        ("join_seconds", 300),
        ("stall_seconds", 1800),
        ("stopped_status", 0),
    ):
        flags.DEFINE_integer(name, default, help_of[name], flag_values=own)
    flags.DEFINE_bool("help", False, help_of["help"], flag_values=own)
    return own


def _help() -> str:
    values = train_flags()
    lines = [f"  --{name:<14} {values[name].help}" for name in values]
    lines.append("  --config.KEY=VALUE changes one value of the config.")
    return "\n".join([str(__doc__), *lines])


def _devices(number: int) -> list[jax.Device]:
    try:
        devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin lacks
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"jax finds no device (JAX_PLATFORMS={platforms!r}); install jax for the"
            " device, or set JAX_PLATFORMS=cpu."
        ) from error
    if number > len(devices) or number < 0:
        raise UserError(f"--devices is {number}, but there are {len(devices)}.")
    return devices[: number or None]


if __name__ == "__main__":
    processes.end_with(lambda: main(sys.argv))
