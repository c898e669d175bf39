"""Makes a start for fine-tuning from weights of the authors' PyTorch code.

python -m pclseg.cli.import_weights latest.pth --out=runs/official --seen=acdc
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pclseg import __version__
from pclseg.cli.status import exit_status
from pclseg.data.datasets import acdc, chd
from pclseg.errors import UserError
from pclseg.importing.authors_unet import Imported, convert
from pclseg.importing.stage import check_free, write_stage
from pclseg.importing.torch_file import read_torch_file

log = logging.getLogger("pclseg.import_weights")  # also when run as __main__

_KNOWN = {
    "none": (),
    "acdc": acdc.TRAINING_PATIENTS,
    "chd": tuple(f"chd{number}" for number in chd.PATIENTS),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Imports; returns the exit status."""
    args = command_line().parse_args(argv)

    def run() -> None:
        check_free(args.out)
        patients = seen_patients(args.seen)
        imported = convert(read_torch_file(args.file))
        about = {
            "file": args.file.name,
            "sha256": _sha256(args.file),
            "seen": args.seen,
            "pclseg": __version__,
            "width": imported.width,
            "leaves": {name: path for name, (path, _) in imported.leaves.items()},
            "dropped": imported.dropped,
            "unknown": imported.unknown,
        }
        write_stage(
            args.out,
            imported.variables,
            patients=patients,
            saw_labels=segments(imported),
            about=about,
        )
        log.info("%s", receipt(imported))
        log.info(
            "wrote %s, which has seen %d patients; start from it with"
            " --config.finetune.init_from=%s --config.finetune.model.width=%d",
            args.out,
            len(patients),
            args.out,
            imported.width,
        )
        if patients and segments(imported):
            log.warning(
                "%s has a decoder, so it counts as having seen labels: no run may"
                " validate or test on the patients that it saw.",
                args.file,
            )

    return exit_status(run)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.import_weights",
        description="Writes a folder that a config starts from by"
        " --config.finetune.init_from=FOLDER. Nothing in the file is executed.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.pth")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--seen",
        required=True,
        metavar="none|acdc|chd|NAMES.txt",
        help="whom the weights were trained on, since a run refuses weights that saw"
        " its validation or test patients: none of your patients; patient001 to"
        " patient100; chd1001 to chd1128; or those of a text file, one a line."
        " The official weights of ACDC and CHD saw all patients of their data set, so"
        " that fine-tuning on it needs --config.data.transductive=True",
    )
    return parser


def seen_patients(seen: str) -> tuple[str, ...]:
    """The patients that `--seen` means.

    Raises:
        UserError: a file that cannot be read or names nobody.
    """
    if seen in _KNOWN:
        return _KNOWN[seen]
    try:
        lines = Path(seen).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--seen {seen!r} is not one of {', '.join(_KNOWN)}, nor a text file"
            f" that can be read ({getattr(error, 'strerror', 'no UTF-8')})."
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"--seen {seen} names no patient; write --seen=none.")
    return names


def segments(imported: Imported) -> bool:
    """Whether the file has a decoder, whole or not, which labels may have trained."""
    names = (*imported.leaves, *imported.unknown)
    return any(name.partition(".")[0] == "decoder" for name in names)


def receipt(imported: Imported) -> str:
    """What became of every entry of the file, counts first."""
    done, unknown = imported.leaves, imported.unknown
    return "\n".join(
        [
            f"imported {len(done)} arrays of a net of width {imported.width}; dropped"
            f" {len(imported.dropped)} counters of batches; left {len(unknown)} out",
            *(f"imported {n} -> {path} {shape}" for n, (path, shape) in done.items()),
            *(f"left out {ascii(name)[:200]}" for name in unknown),
        ]
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
