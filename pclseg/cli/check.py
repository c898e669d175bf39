"""Looks at all files of a dataset before any training.

python -m pclseg.cli.check /data/mine --images=scans --labels=masks
python -m pclseg.cli.check --config=configs/pcl_acdc.py --config.data.raw_dir=/data/ACDC
"""

import argparse
import dataclasses
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from pclseg import building, cohort
from pclseg.cli.status import exit_status
from pclseg.config import is_override, load_config, override
from pclseg.config_rules import check_config
from pclseg.data import datasets
from pclseg.data.check import Checked, check, facts_table
from pclseg.data.datasets.base import Dataset
from pclseg.data.findings import ERROR, NOTE, WARNING, Finding, as_error
from pclseg.data.fitness import Plans
from pclseg.errors import UserError
from pclseg.files import check_local
from pclseg.reports import check_page

log = logging.getLogger("pclseg.check")  # also when run as __main__
_LEVELS = {ERROR: logging.ERROR, WARNING: logging.WARNING, NOTE: logging.INFO}
_MOST_ALIKE = 10  # lines that differ in file and numbers alone


def main(argv: Sequence[str] | None = None) -> int:
    """Checks; returns 0, or 1 where training would not start."""
    args, rest = command_line().parse_known_args(argv)
    result: list[Checked] = []

    def run() -> None:
        check_local("--out", args.out)
        out = Path(os.path.expanduser(args.out))
        config = _config(args, rest)
        if config is None:
            dataset, plans, axis = dataset_of(args), Plans(), "auto"
        else:
            check_config(config, 1)
            dataset = cohort.open_dataset(config.data)
            plans, axis = plans_of(config), config.data.prepare.slice_axis
        try:  # before all files are read
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--out {out} cannot be made ({error.strerror}); name another folder."
            ) from error
        checked = check(
            dataset,
            plans,
            slice_axis=axis,
            num_workers=args.workers,
            report=log.info,
        )
        if config is not None:
            checked = _with_outline(checked, config)
        tell(checked)
        check_page.write(out, checked, plans)
        log.info("%s", check_page.verdict(checked))
        log.info("plots and a table: %s", out / "check.html")
        result.append(checked)

    status = exit_status(run)
    return status or int(result[0].count(ERROR) > 0)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.check",
        description="Reads every file once and says what is wrong, what follows from"
        " it and what mends it. Exit status 1 where training would not start, 0 where"
        " there are warnings at most. Nothing of the data is changed.",
        epilog="--config.KEY=VALUE changes one value of the config, as in training.",
        allow_abbrev=False,
    )
    add_data(parser)
    parser.add_argument("--config", help="an experiment, instead of the data above")
    parser.add_argument(
        "--out", type=Path, default=Path("check"), help="folder of the result (check)"
    )
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `dataset_of`."""
    parser.add_argument("raw_dir", nargs="?", help="folder that patterns start from")
    parser.add_argument("--images", nargs="+", help="folders or globs below it")
    parser.add_argument("--labels", nargs="+", default=[], help="likewise")
    parser.add_argument(
        "--more_images",
        nargs="+",
        default=[],
        metavar="GLOB",
        help="one for each further channel, where images have several",
    )
    parser.add_argument(
        "--channels",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="to read of 4-D images, from 0; without it their frames are volumes",
    )
    parser.add_argument(
        "--match",
        default="",
        help="regular expression whose groups are what the files of an image share",
    )
    parser.add_argument(
        "--patient", default="", help=r"regular expression, as '(sub-\d+)'"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes (all CPUs)")


def dataset_of(args: argparse.Namespace) -> Dataset:
    """The volumes that the command line names.

    Raises:
        UserError: none are named, or those that are do not go together.
    """
    if args.workers < 0:
        raise UserError(f"--workers is {args.workers}; expected 0 or more.")
    if not args.raw_dir or not args.images:
        raise UserError(
            "which data? Give a folder and --images, as in: /data/mine --images=scans"
            " --labels=masks."
        )
    try:
        return datasets.make(
            "nifti",
            raw_dir=args.raw_dir,
            images=args.images,
            labels=args.labels,
            more_images=args.more_images,
            channels=args.channels,
            match=args.match,
            patient=args.patient,
        )
    except OSError as error:
        raise UserError(
            f"{error.filename or args.raw_dir}: {error.strerror}; name another folder,"
            " or mend its permissions."
        ) from error
    except RuntimeError as error:  # ~ of nobody
        raise UserError(f"{args.raw_dir}: {error} Name another folder.") from error


def _config(
    args: argparse.Namespace, rest: Sequence[str]
) -> ml_collections.ConfigDict | None:
    """The config with its overrides; None where the data are named otherwise."""
    for arg in rest:
        if not args.config or (arg.startswith("-") and not is_override(arg)):
            raise UserError(f"there is no option {arg}; --help lists them.")
    if not args.config:
        return None
    data = (args.raw_dir, args.images, args.labels, args.patient)
    if any((*data, args.more_images, args.channels, args.match)):
        raise UserError(
            "with --config, the data are those of the config: set"
            " --config.data.raw_dir and --config.data.options.KEY."
        )
    config = load_config(args.config)
    override(config, list(rest))
    return config


def _with_outline(checked: Checked, config: ml_collections.ConfigDict) -> Checked:
    """With what training would refuse before its first step: splits, batches, sizes."""
    if checked.count(ERROR):  # which may be why
        return checked
    found: list[Finding] = []
    with as_error(found, "", None, "training does not start"):
        building.outline(config)
    return dataclasses.replace(checked, findings=(*found, *checked.findings))


def plans_of(config: ml_collections.ConfigDict) -> Plans:
    """What a config means to do with the volumes."""
    first = config[config.stages[0]]
    labels = [
        config[stage].model.num_classes
        for stage in config.stages
        if "num_classes" in config[stage].model
    ]
    return Plans(
        spacing=tuple(config.data.prepare.spacing),
        clips=tuple(config.data.prepare.clip_percentiles),
        threshold=first.method.get("position_threshold"),
        batch_size=first.data.batch_size,
        crop=tuple(first.data.crop_size),
        classes=labels[-1] if labels else None,
    )


def tell(checked: Checked) -> None:
    """Logs the facts, then the findings; of many that are alike the first few."""
    for name, value in facts_table(checked):
        log.info("  %-22s %s", name, value)
    told: Counter[tuple[str, str, str]] = Counter()
    for finding in checked.findings:
        kind = _kind(finding)
        told[kind] += 1
        if told[kind] <= _MOST_ALIKE:
            start = "note: " if finding.level == NOTE else ""
            log.log(_LEVELS[finding.level], "%s%s", start, finding)
    for (level, consequence, _), number in told.items():
        if number > _MOST_ALIKE:
            log.info(
                "%d more of %ss like the above (%s) are in fingerprint.json",
                number - _MOST_ALIKE,
                level,
                consequence,
            )


def _kind(finding: Finding) -> tuple[str, str, str]:
    return finding.level, finding.consequence, finding.remedy


if __name__ == "__main__":
    sys.exit(main())
