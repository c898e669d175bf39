"""The training program.

python -m pclseg.main --config=configs/pcl_acdc.py --workdir=runs/pcl_acdc
"""

import dataclasses
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
from absl import flags

from pclseg import dryrun, rundir, runner
from pclseg.config import as_dict, is_override, load_config, override
from pclseg.config_rules import check_config, check_only
from pclseg.errors import UserError
from pclseg.named import nearest
from pclseg.train.stop import StopFlag, Stopped

log = logging.getLogger("pclseg.main")  # also when run as __main__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    config: ml_collections.ConfigDict
    workdir: Path | None
    stages: tuple[str, ...]
    devices: int
    dry_run: bool


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code.

    Args:
        argv: name of the program, then its arguments.
    """
    rundir.log_to(None)
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
    except KeyboardInterrupt:  # the second one; the first saves
        log.error("interrupted at once; the same command goes on from what is saved.")
        return 130
    return 0


def run(arguments: Arguments) -> None:
    """Does what the command line asks for.

    What can be checked without reading a voxel is checked before the run directory is
    made.
    """
    stop = StopFlag()
    stop.install()
    config = arguments.config
    devices = _devices(arguments.devices)
    check_config(config, len(devices))
    check_only(arguments.stages, config)
    if arguments.workdir is None and not arguments.dry_run:
        raise UserError("--workdir is missing; name a folder for this run.")
    with stop.interruptible():
        outline = runner.outline(config, dry_run=arguments.dry_run)
    if arguments.workdir is None or arguments.dry_run:
        with stop.interruptible():
            description = dryrun.describe(config, outline, devices)
        for line in description.splitlines():
            log.info("%s", line)
        log.info("dry run: nothing was written.")
        return
    workdir = arguments.workdir
    with rundir.open_run(workdir, as_dict(config)):
        rundir.log_to(workdir / "log.txt")
        runner.execute(
            config,
            workdir,
            outline,
            devices=devices,
            only=arguments.stages,
            stop=stop,
        )
        log.info("finished: %s", workdir)


def parse(argv: Sequence[str]) -> Arguments | None:
    """The command line, its config loaded and overridden; None where help is asked for.

    Raises:
        UserError: an unknown flag, config file or config key; the nearest one is named.
    """
    values = _flags()
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
    config = load_config(values.config)
    override(config, rest)
    return Arguments(
        config=config,
        workdir=Path(values.workdir) if values.workdir else None,
        stages=tuple(values.stages),
        devices=values.devices,
        dry_run=values.dry_run,
    )


def _flags() -> flags.FlagValues:
    """The flags, in a registry of their own: `main` may be called more than once."""
    own = flags.FlagValues()
    own.set_gnu_getopt(True)  # the VALUE of --config.KEY VALUE ends nothing
    help_of = {
        "config": "The experiment: configs/NAME.py[:arg=value,...].",
        "workdir": "The run directory; the same one resumes.",
        "stages": "Only these, e.g. pretrain,evaluate; default: all.",
        "devices": "Number of local devices to use; 0 means all.",
        "dry_run": "Build everything, print it, write nothing.",
        "help": "Print this.",
    }
    flags.DEFINE_string("config", None, help_of["config"], flag_values=own)
    flags.DEFINE_string("workdir", None, help_of["workdir"], flag_values=own)
    flags.DEFINE_list("stages", [], help_of["stages"], flag_values=own)
    flags.DEFINE_integer("devices", 0, help_of["devices"], flag_values=own)
    flags.DEFINE_bool("dry_run", False, help_of["dry_run"], flag_values=own)
    flags.DEFINE_bool("help", False, help_of["help"], flag_values=own)
    return own


def _help() -> str:
    values = _flags()
    lines = [f"  --{name:<8} {values[name].help}" for name in values]
    lines.append("  --config.KEY=VALUE changes one value of the config.")
    return "\n".join([str(__doc__), *lines])


def _devices(number: int) -> list[jax.Device]:
    try:
        devices = jax.local_devices()
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
    sys.exit(main(sys.argv))
