"""What a dataset file returns: the cases of one dataset and its classes."""

import csv
import dataclasses
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from pclseg.errors import UserError

SUFFIXES = (".nii.gz", ".nii")
# What nibabel, gzip and zlib raise for a damaged file or one that is not NIfTI.
READ_ERRORS = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
)
LARGEST = 2**31 - 1  # a label value that none exceeds
WHOLE_TOLERANCE = 1e-4  # label values this near to a whole number count as one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One volume of one patient, by the files that hold it.

    Raises:
        UserError: the name is empty or unfit for a file name.
    """

    name: str  # unique in the dataset, made of letters, digits and . _ -
    patient: str  # the unit of splits
    frame: str  # which of the patient's volumes, as the dataset names it; may be ""
    image_path: Path
    label_path: Path | None  # None: unlabelled
    time_index: int | None = None  # index on the fourth axis of a 4-D file
    # Of an image of several channels those after the first: files and indices.
    more_channels: tuple[tuple[Path, int | None], ...] = ()
    spacing_known: bool = True  # False: metrics in mm are left out
    in_series: bool = False  # a 4-D file of the patient holds it too, as another case

    def __post_init__(self) -> None:
        """Checks that files can be called by the name."""
        if not self.name or self.name != safe_name(self.name):
            raise UserError(
                f"{self.name!r}, made from {self.image_path}, cannot name a volume;"
                " rename the file to begin with a letter or digit."
            )

    @property
    def channels(self) -> tuple[tuple[Path, int | None], ...]:
        """File, and index on its fourth axis, of every channel."""
        return ((self.image_path, self.time_index), *self.more_channels)


class Stray(NamedTuple):
    """Label values from `first` to `last`, as far as no class has them, mean `value`.

    Where that is not the background, volumes with such voxels are named.
    """

    first: int
    last: int
    value: int  # of a class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """The cases of a dataset; class id k has class_names[k] and label_values[k].

    Raises:
        UserError: no case, two cases of one name, or names and values of the classes
            that do not pair up.
    """

    name: str
    cases: tuple[Case, ...]
    class_names: tuple[str, ...]  # the background first
    label_values: tuple[int, ...]  # the value in the label files
    strays: tuple[Stray, ...] = ()  # other values, by the first range that holds them
    # What is read of images of several channels, see `data.channels`; (): an image is
    # of one channel, and the frames of a 4-D one are volumes.
    channels: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        """Checks what the user's files and options decide."""
        if not self.cases:
            raise UserError(f"dataset {self.name!r} has no volume.")
        counts = Counter(case.name for case in self.cases)
        name, count = counts.most_common(1)[0]
        if count > 1:
            paths = [c.image_path for c in self.cases if c.name == name]
            raise UserError(
                f"{count} volumes would be called {name!r}: {paths[0]} and {paths[1]};"
                " rename one of them or narrow the pattern that finds them."
            )
        if len(self.class_names) != len(self.label_values):
            raise UserError(
                f"config.data.options.class_names has {len(self.class_names)} names for"
                f" the {len(self.label_values)} label values {self.label_values}; name"
                " each, the background first."
            )
        for option in ("label_values", "class_names"):
            values = getattr(self, option)
            if len(set(values)) != len(values):
                raise UserError(f"config.data.options.{option} repeats one: {values}.")


def natural_key(text: str | Path) -> list[tuple[int, int, str]]:
    """The sort key under which digits count as numbers: case_2 before case_10."""
    parts = re.split(r"(\d+)", str(text))
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts if p]


def safe_name(text: str) -> str:
    """`text` with each run of characters unfit for a file name turned into one `_`.

    Letters of all scripts stay, in composed form: macOS may store accents apart.
    """
    return re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text)).strip("._")


def stem(path: Path) -> str:
    """The file name without .nii or .nii.gz."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI file; that of `._x.nii.gz` is not."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder in natural order; [] where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(filter(is_nifti, folder.iterdir()), key=natural_key)


def open_nifti(path: Path) -> nib.Nifti1Image | nib.Nifti2Image:
    """The file's header, with voxels that are read on demand.

    Raises:
        READ_ERRORS: where the header cannot be read.
    """
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image | nib.Nifti2Image):
        raise ImageFileError(f"{path} is not NIfTI")
    return image


def num_frames(path: Path) -> int:
    """The length of the fourth axis; 1 for a 3-D file.

    A header that cannot be read counts as one frame: the file is reported, with its
    case, once the case is loaded.
    """
    try:
        shape = open_nifti(path).shape
    except READ_ERRORS:
        return 1
    return int(shape[3]) if len(shape) > 3 else 1


def scan_label_values(paths: Iterable[Path]) -> tuple[int, ...]:
    """The label values that occur in the files: 0 first, the others ascending.

    Reads every file once. Files that cannot be read, colours and values that are not
    whole numbers are passed over here: loading that case reports them.
    """
    found: set[int] = set()
    for path in paths:
        try:
            array = np.asanyarray(open_nifti(path).dataobj)
        except READ_ERRORS:
            continue
        if array.ndim == 0 or array.dtype.kind not in "iuf":
            continue
        for plane in np.moveaxis(array, -1, 0):
            found.update(
                round(value)
                for value in np.unique(plane).tolist()
                if math.isfinite(value)
                and abs(value) <= LARGEST
                and abs(value - round(value)) <= WHOLE_TOLERANCE
            )
    return (0, *sorted(found - {0}))


def class_names_for(
    label_values: Sequence[int], class_names: Sequence[str]
) -> tuple[str, ...]:
    """`class_names`, or, where none is given, a name made from each value."""
    if class_names:
        return tuple(class_names)
    return ("background", *(f"label {value}" for value in label_values[1:]))


def read_columns(path: Path, *columns: str) -> list[list[str]]:
    """The cells of these columns of a CSV file, row by row, without blanks around them.

    Raises:
        UserError: the file is no CSV in UTF-8, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({error}); save it as CSV in UTF-8."
        ) from error
    header, *rows = lines or [[]]
    if not set(columns) <= set(header):
        raise UserError(
            f"{path} needs the columns {' and '.join(columns)} in its first line, with"
            f" commas between; it has {', '.join(header) or 'none'}."
        )
    cells = [dict(zip(header, row, strict=False)) for row in rows]
    return [[cell.get(column, "") for column in columns] for cell in cells]


def require_folder(folder: Path, meaning: str) -> Path:
    """`folder`, if it exists.

    Raises:
        UserError: naming the folder, what should be in it and the key to set.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder} ({meaning}); set config.data.raw_dir to the"
            " folder that holds the data."
        )
    return folder
