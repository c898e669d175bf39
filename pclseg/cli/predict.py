"""Segments images with a finished run.

python -m pclseg.cli.predict --run=runs/mine --images='new/*.nii.gz' --out=predicted
"""

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from pclseg.cli.status import exit_status
from pclseg.compiled import keep_compiled
from pclseg.data.datasets.base import is_nifti, natural_key, nifti_files
from pclseg.errors import UserError
from pclseg.files import check_local
from pclseg.predicting import predict_files
from pclseg.trained import load_segmenter


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts; returns the exit status."""
    args = command_line().parse_args(argv)

    def predict() -> None:
        check_local("--out", args.out)
        if args.out.exists() and not args.out.is_dir():
            raise UserError(f"--out {args.out} is a file; name a folder.")
        paths = [path for name in args.images for path in _found(name, "--images")]
        more_paths = [_found(name, "--more_images") for name in args.more_images]
        if args.memory is not None and not args.memory >= 0:
            raise UserError(f"--memory is {args.memory}; expected GiB, 0 or more.")
        segmenter = load_segmenter(
            args.run,
            batch_size=args.batch_size,
            tile=args.tile,
            flips=args.flips,
            largest_part=args.largest_part,
        )
        keep_compiled()
        predict_files(
            segmenter,
            paths,
            args.out,
            more_paths=more_paths,
            match=args.match,
            overwrite=args.overwrite,
            skip=args.skip,
            probabilities=args.probabilities,
            memory=None if args.memory is None else int(args.memory * 2**30),
        )

    return exit_status(predict)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.predict",
        description="Writes a label file for every image, on the image's own grid and"
        " with the label values that the run was trained on.",
    )
    parser.add_argument(
        "--run",
        "--model",
        dest="run",
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="a run's --workdir, a model folder of `pclseg share`, or hf://OWNER/NAME"
        " on the Hugging Face hub; of several, such as all folds, the mean",
    )
    parser.add_argument(
        "--images", nargs="+", required=True, help="NIfTI files, folders or globs"
    )
    parser.add_argument(
        "--more_images",
        nargs="+",
        default=[],
        metavar="GLOB",
        help="of networks of several channels, for each after the first: its files,"
        " where they are not called x_0000.nii.gz, x_0001.nii.gz (one 4-D file needs"
        " nothing)",
    )
    parser.add_argument(
        "--match",
        default="",
        help="regular expression whose groups are what the files of an image share",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the label files"
    )
    parser.add_argument(
        "--batch_size", type=int, default=10, help="slices a forward pass (10)"
    )
    parser.add_argument(
        "--tile", type=int, help="predict slices in tiles of so many pixels (whole)"
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="larger volumes are worked on in files of --out (all of the machine's)",
    )
    parser.add_argument(
        "--flips",
        action="store_true",
        help="mean over mirror images, four times as long",
    )
    parser.add_argument(
        "--largest_part",
        action="store_true",
        help="of classes whose Dice that raised on held-out patients, drop all parts"
        " but the largest",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="write those of every class too"
    )
    parser.add_argument(
        "--skip", action="store_true", help="leave out volumes that are in --out"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that are in --out"
    )
    return parser


def _found(pattern: str, option: str) -> list[Path]:
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]
    paths = [path for path in found if is_nifti(path)]
    if Path(pattern).is_file():  # also where its name has a bracket
        paths = [Path(pattern)]
    if Path(pattern).is_dir():
        paths = nifti_files(Path(pattern))
    if not paths:
        raise UserError(
            f"{option} {pattern!r} finds no .nii.gz or .nii file; quote globs,"
            " '*.nii.gz'."
        )
    return sorted(paths, key=natural_key)


if __name__ == "__main__":
    sys.exit(main())
