"""Writes DICOM series, NRRD and MetaImage files as NIfTI.

python -m pclseg.cli.convert dicom/ --out=scans
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pclseg.cli.status import exit_status
from pclseg.data import conversion
from pclseg.errors import UserError
from pclseg.files import check_local

log = logging.getLogger("pclseg.convert")


def main(argv: Sequence[str] | None = None) -> int:
    """Converts; returns the exit status: 1 where one could not be converted."""
    args = command_line().parse_args(argv)

    def run() -> None:
        check_local("--out", args.out)
        found = [conversion.find_sources(path) for path in args.source]
        for note in (note for _, notes in found for note in notes):
            log.info("note: %s", note)
        sources = [source for own, _ in found for source in own]
        pairs = [(source, args.out / f"{source.name}.nii.gz") for source in sources]
        _check_targets([target for _, target in pairs], skip=args.skip)
        failed = 0
        for number, (source, target) in enumerate(pairs, start=1):
            if target.exists():
                continue
            try:
                shape = conversion.convert(source, target)
            except UserError as error:
                log.error("%s", error)
                failed += 1
                continue
            log.info("%d/%d %s: %s voxels", number, len(pairs), target, shape)
        if failed:
            raise UserError(f"{failed} of {len(pairs)} volumes were not converted.")

    return exit_status(run)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.convert",
        description="Writes every DICOM series and every .nrrd, .nhdr, .mha and .mhd"
        " file as NIfTI, on the same grid with the same values. Needs SimpleITK.",
    )
    parser.add_argument("source", type=Path, nargs="+", help="a folder or a file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument(
        "--skip", action="store_true", help="leave out those that are in --out"
    )
    return parser


def _check_targets(targets: Sequence[Path], *, skip: bool) -> None:
    for target in targets:
        if targets.count(target) > 1:
            raise UserError(
                f"two volumes would be written to {target}; convert them into different"
                " folders."
            )
        if target.exists() and not skip:
            raise UserError(
                f"{target} exists; choose another --out, or --skip what is there."
            )


if __name__ == "__main__":
    sys.exit(main())
