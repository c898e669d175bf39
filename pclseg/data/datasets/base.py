"""What a dataset file returns: the cases of one dataset and its classes."""

import dataclasses
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    zlib.error,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One volume of one patient, by the files that hold it."""

    name: str  # unique in the dataset, made of letters, digits and . _ -
    patient: str  # the unit of splits
    frame: str  # which of the patient's volumes, as the dataset names it; may be ""
    image_path: Path
    label_path: Path | None  # None: unlabelled
    time_index: int | None = None  # index on the fourth axis of a 4-D file
    spacing_known: bool = True  # False: metrics in mm are left out
    in_series: bool = False  # a 4-D file of the patient holds it too, as another case


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """The cases of a dataset; class id k has class_names[k] and label_values[k].

    Raises:
        UserError: no case, two cases of one name, a name unfit for a file name, or
            names and values of the classes that do not pair up.
    """

    name: str
    cases: tuple[Case, ...]
    class_names: tuple[str, ...]  # the background first
    label_values: tuple[int, ...]  # the value in the label files
    channel: int = -1  # the one read of a 4-D image; -1: its frames are volumes

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
        for name in counts:
            if name != safe_name(name):
                raise UserError(f"{name!r} cannot name a volume: use A-Z a-z 0-9 . _ -")
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
    """`text` with each run of characters unfit for a file name turned into one `_`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")


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

    Reads every file once. Files that cannot be read and values that are not whole
    numbers are passed over here: loading that case reports them.
    """
    found: set[int] = set()
    for path in paths:
        try:
            array = np.asanyarray(open_nifti(path).dataobj)
        except READ_ERRORS:
            continue
        for plane in np.moveaxis(array, -1, 0) if array.ndim else ():
            found.update(int(v) for v in np.unique(plane) if float(v).is_integer())
    return (0, *sorted(found - {0}))


def class_names_for(
    label_values: Sequence[int], class_names: Sequence[str]
) -> tuple[str, ...]:
    """`class_names`, or, where none is given, a name made from each value."""
    if class_names:
        return tuple(class_names)
    return ("background", *(f"label {value}" for value in label_values[1:]))


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
