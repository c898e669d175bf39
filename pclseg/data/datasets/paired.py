"""Datasets of one image and one label a patient, whose number is in both names."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pclseg.data.datasets.base import (
    Case,
    is_nifti,
    natural_key,
    require_folder,
    stem,
)
from pclseg.errors import UserError

log = logging.getLogger(__name__)


def paired_cases(
    name: str,
    raw_dir: str | Path,
    *,
    image: str,
    label: str,
    published: Sequence[str],
) -> tuple[Case, ...]:
    """One labelled case a number, from files at any depth below a folder.

    Warns where the numbers are not the published ones: folds then differ from those of
    the paper, which depend on the list of patients.

    Args:
        name: of the dataset; cases and patients are called by it and their number, so
            that no two datasets have a patient of the same name.
        raw_dir: the folder that files are looked for in.
        image: name of an image without its ending, with {} for the number.
        label: likewise of a label.
        published: the numbers that the paper used, in order.

    Returns:
        The cases in the order of their numbers.

    Raises:
        UserError: a missing folder, no file, a number that two files have, an image
            without label or the other way round.
    """
    folder = Path(raw_dir).expanduser()
    first = f"{image.format(published[0])}.nii.gz"
    root = require_folder(folder, f"{name}: {first} and the others, at any depth")
    images, labels = _by_number(root, image), _by_number(root, label)
    if not images and not labels:
        raise UserError(
            f"neither {root} nor a folder below it holds {first} or another image of"
            f" {name}; set config.data.raw_dir to the folder of the download."
        )
    _require_partners(images, labels, label)
    _require_partners(labels, images, image)
    _warn_of_other_numbers(name, set(images), set(published))
    return tuple(
        Case(
            name=f"{name}{number}",
            patient=f"{name}{number}",
            frame="",
            image_path=images[number],
            label_path=labels[number],
        )
        for number in sorted(images, key=int)
    )


def _by_number(root: Path, template: str) -> dict[str, Path]:
    """{number: file} of the files below `root` that are called as the template says."""
    pattern = re.escape(template).replace(r"\{\}", r"(\d+)")
    found: dict[str, Path] = {}
    for path in sorted(_files_below(root), key=natural_key):
        match = re.fullmatch(pattern, stem(path))
        if match and is_nifti(path):
            first = found.setdefault(match[1], path)
            if first != path and not first.samefile(path):
                raise UserError(
                    f"{first} and {path} are both {template.format(match[1])}; take one"
                    " of them out."
                )
    return found


def _files_below(root: Path) -> Iterator[Path]:
    """Files at any depth, those of a folder once, though links may lead in circles."""
    visited = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()  # where os.walk goes on
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from filter(os.path.isfile, (Path(folder, name) for name in files))


def _require_partners(
    files: dict[str, Path], partners: dict[str, Path], template: str
) -> None:
    """Raises UserError for the first file that has no partner."""
    for number in sorted(files.keys() - partners.keys(), key=int):
        folder = next(iter(partners.values()), files[number]).parent
        raise UserError(
            f"{files[number]} stands alone: expected"
            f" {folder / template.format(number)}.nii.gz too; copy it from the download"
            " or take the other out."
        )


def _warn_of_other_numbers(name: str, found: set[str], published: set[str]) -> None:
    parts = {"missing": published - found, "not among them": found - published}
    listed = [
        f"{what}: {' '.join(sorted(numbers, key=int))}"
        for what, numbers in parts.items()
        if numbers
    ]
    if listed:
        log.warning(
            "%s: %d patients, other than the %d of the paper (%s); folds and drawn"
            " patients differ from the paper's.",
            name,
            len(found),
            len(published),
            "; ".join(listed),
        )
