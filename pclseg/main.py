"""The training program.

python -m pclseg.main --config=configs/pcl_acdc.py --workdir=runs/pcl_acdc
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from pclseg import rundir, runner
from pclseg.config import as_dict, check_config
from pclseg.errors import UserError
from pclseg.train.stop import StopFlag, Stopped

log = logging.getLogger("pclseg.main")  # also when run as __main__
FLAGS = flags.FLAGS

config_flags.DEFINE_config_file(
    "config", None, "The experiment: configs/NAME.py[:arg=value,...]."
)
flags.DEFINE_string("workdir", None, "The run directory; the same one resumes.")
flags.DEFINE_list("stages", [], "Only these, e.g. pretrain,evaluate; default: all.")
flags.DEFINE_integer("devices", 0, "Number of local devices to use; 0 means all.")
flags.DEFINE_bool("dry_run", False, "Build everything, print it, write nothing.")


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    rundir.log_to(None)
    try:
        _run(list(argv))
    except UserError as error:
        log.error("%s", error)
        return 1
    except Stopped as stopped:
        log.info("stopped as asked. %s; the same command goes on from there:", stopped)
        log.info("  python -m pclseg.main %s", " ".join(argv[1:]))
    return 0


def _run(argv: list[str]) -> None:
    parse(argv)
    config = FLAGS.config
    devices = _devices(FLAGS.devices)
    check_config(config, len(devices))
    if FLAGS.dry_run:
        for line in runner.dry_run(config, devices).splitlines():
            log.info("%s", line)
        return
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; name a folder for this run.")
    workdir = Path(FLAGS.workdir)
    with rundir.open_run(workdir, as_dict(config)):
        rundir.log_to(workdir / "log.txt")
        stop = StopFlag()
        stop.install()
        runner.execute(config, workdir, devices=devices, only=FLAGS.stages, stop=stop)
        log.info("finished: %s", workdir)


def parse(argv: list[str]) -> None:
    """Parses the command line into FLAGS.

    Raises:
        UserError: an unknown flag, config file or config key; the nearest one is named.
    """
    try:
        rest = FLAGS(argv)[1:]
    except (AttributeError, KeyError) as error:  # of the locked config
        said = str(error).replace("\\n", "\n").strip("\"'").splitlines()
        raise UserError(
            f"a --config.KEY=value names an unknown key: {said[-1]}"
        ) from error
    except flags.Error as error:
        raise UserError(str(error).splitlines()[0]) from error
    if rest:
        raise UserError(f"{rest[0]!r} is no flag; flags look like --config=FILE.")
    if FLAGS.config is None:
        raise UserError("--config is missing, e.g. --config=configs/pcl_acdc.py.")
    try:
        FLAGS.config.to_dict()
    except OSError as error:
        raise UserError(f"--config: {error.strerror}: {error.filename}.") from error


def _devices(number: int) -> list[jax.Device]:
    devices = jax.local_devices()
    if number > len(devices) or number < 0:
        raise UserError(f"--devices is {number}, but there are {len(devices)}.")
    return devices[: number or None]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
