"""DICOM series, NRRD and MetaImage files as NIfTI, read by SimpleITK.

A DICOM series becomes a volume only if its slices are a regular stack: one that is
tilted, mixed or has a gap fits no such grid and is refused with its id.
"""

import contextlib
import importlib
import locale
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from pclseg.data.datasets.base import natural_key, safe_name
from pclseg.errors import UserError
from pclseg.files import replacing

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
TOLERANCE = 0.01  # of the distance of slices, by which they may lie off a regular stack
_LEAST_MM = 1e-3  # below which coordinates are taken for equal
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# What a file of a DICOM series says of itself, by its tag.
_TAGS = {
    "position": "0020|0032",
    "orientation": "0020|0037",
    "modality": "0008|0060",
    "series number": "0020|0011",
    "rows": "0028|0010",
    "columns": "0028|0011",
    "pixel spacing": "0028|0030",
}
_ALIKE = ("orientation", "rows", "columns", "pixel spacing")


class Source(NamedTuple):
    """What becomes one NIfTI file."""

    name: str  # without ending
    paths: tuple[Path, ...]  # the files of a DICOM series, or a single file
    series: str  # id of the DICOM series, or ""


@contextlib.contextmanager
def _locale_kept() -> Iterator[None]:
    """ITK's reader of DICOM leaves another locale behind, in which é is no letter."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@_locale_kept()
def find_sources(root: Path) -> tuple[list[Source], list[str]]:
    """The volumes of a file, or of a folder with all that lies below it.

    Args:
        root: an NRRD or MetaImage file, or a folder of those and of DICOM files.

    Returns:
        The volumes, each named by where it lies below `root`; a line for every DICOM
        series that holds no volume, such as a report or a single slice.

    Raises:
        UserError: `root` does not exist or holds none of them; SimpleITK is missing.
    """
    sitk = _sitk()
    if not root.exists():
        raise UserError(f"there is no {root}; name a file or a folder.")
    if root.is_file():
        if not root.name.lower().endswith(SUFFIXES):
            raise UserError(
                f"{root} is not {', '.join(SUFFIXES)}; name the folder of a DICOM"
                " series, or leave NIfTI files as they are."
            )
        return [Source(safe_name(_stem(root)), (root,), "")], []
    sources: list[Source] = []
    notes: list[str] = []
    for folder in [
        root,
        *sorted(filter(Path.is_dir, root.rglob("*")), key=natural_key),
    ]:
        for path in sorted(folder.iterdir(), key=natural_key):
            if path.is_file() and path.name.lower().endswith(SUFFIXES):
                sources.append(
                    Source(_named(root, path.with_name(_stem(path))), (path,), "")
                )
        own = []
        for series in sorted(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))):
            names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
            paths = tuple(map(Path, names))
            about = _about(paths[0])
            if why := _no_volume(paths, about):
                notes.append(f"{folder}: series {series} is left out: {why}")
            else:
                own.append((about["series number"], paths, series))
        for number, paths, series in own:
            suffix = f"_series{number}" if len(own) > 1 else ""
            sources.append(Source(f"{_named(root, folder)}{suffix}", paths, series))
    if not sources:
        more = f" ({notes[0]})" if notes else ""
        raise UserError(
            f"{root} holds no DICOM series of a volume, and no {', '.join(SUFFIXES)}"
            f" file{more}."
        )
    names = [source.name for source in sources]
    return [_unique(source, names) for source in sources], notes


@_locale_kept()
def convert(source: Source, target: Path) -> tuple[int, ...]:
    """Writes a volume as NIfTI, whole or not at all; returns its shape.

    Voxels keep their values (DICOM's slope and intercept applied), axes and places;
    affine, qform and sform are in mm, RAS+.

    Raises:
        UserError: the file cannot be read, is no 3-D volume of numbers, or the DICOM
            series is no regular stack; the message names file or series.
    """
    sitk = _sitk()
    where = f"series {source.series} in {source.paths[0].parent}"
    try:
        if source.series:
            paths, first, step = _stack(source.paths, where)
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames([str(path) for path in paths])
            image = reader.Execute()
            affine = _affine(image)
            affine[:3, 2], affine[:3, 3] = step, first
        else:
            where = str(source.paths[0])
            image = sitk.ReadImage(where)
            affine = _affine(image)
    except RuntimeError as error:
        raise UserError(f"{where} cannot be read: {_reason(error)}") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(
            f"{where} has {image.GetDimension()} dimensions and"
            f" {image.GetNumberOfComponentsPerPixel()} numbers a voxel; expected three"
            " dimensions and one number."
        )
    array = sitk.GetArrayFromImage(image).T  # [X, Y, Z]
    array = array.astype(np.float32) if array.dtype.kind == "f" else _as_nifti(array)
    written = nib.Nifti1Image(array, _LPS_TO_RAS @ affine)
    written.header.set_xyzt_units("mm")
    written.set_qform(written.affine, 1)
    written.set_sform(written.affine, 1)
    with replacing(target) as temporary:
        nib.save(written, temporary)
    return array.shape


def _sitk() -> Any:
    try:
        sitk = importlib.import_module("SimpleITK")
    except ImportError:
        raise UserError(
            "DICOM, NRRD and MetaImage are read by SimpleITK, which is not installed;"
            " `pip install SimpleITK`."
        ) from None
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what matters is checked here
    return sitk


def _stem(path: Path) -> str:
    return path.name[: -len(path.suffix)]


def _named(root: Path, path: Path) -> str:
    inside = path.relative_to(root)
    return safe_name(str(inside if inside.parts else root.resolve().name)) or "volume"


def _unique(source: Source, names: Sequence[str]) -> Source:
    if names.count(source.name) == 1:
        return source
    raise UserError(
        f"two volumes would be called {source.name}.nii.gz, one of them"
        f" {source.paths[0]}; convert them by themselves, into other folders."
    )


def _about(path: Path) -> dict[str, str]:
    """What a DICOM file says of itself; "" where it does not."""
    reader = _sitk().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}") from error
    keys = set(reader.GetMetaDataKeys())
    return {
        name: reader.GetMetaData(tag).strip() if tag in keys else ""
        for name, tag in _TAGS.items()
    }


def _no_volume(paths: Sequence[Path], about: Mapping[str, str]) -> str:
    """Why a DICOM series is no volume; "" where it may be one."""
    modality = about["modality"]
    if modality in ("SEG", "RTSTRUCT", "RTDOSE", "SR", "PR", "KO", "REG"):
        return f"its modality is {modality}, which is no image; export labels as NIfTI."
    if len(paths) == 1:
        return "it is a single file; expected one file a slice."
    return ""


def _stack(
    paths: Sequence[Path], where: str
) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """The files of a series from slice to slice, once they are a regular stack.

    Returns:
        The files; the place of the first, and the step from one to the next, mm LPS+.

    Raises:
        UserError: they differ in size or direction, or are tilted, apart or double.
    """
    said = [_about(path) for path in paths]
    for name in _ALIKE:
        values = sorted({about[name] for about in said})
        if name == "orientation":
            values = _directions(values)
        if len(values) > 1:
            raise UserError(
                f"{where} is mixed: its {name} is {values[0]} in some files and"
                f" {values[1]} in others; separate them."
            )
    try:
        positions = np.array([_numbers(about["position"], 3) for about in said])
        across, down = np.reshape(_numbers(said[0]["orientation"], 6), (2, 3))
    except ValueError:
        raise UserError(
            f"{where} does not say where its slices lie (image position and"
            " orientation); export it again."
        ) from None
    normal = np.cross(across, down)
    height = positions @ normal
    order = np.argsort(height)
    steps = np.diff(height[order])
    usual = float(np.median(steps))
    for here, step in zip(order[1:], steps, strict=True):
        if step < max(_LEAST_MM, TOLERANCE * usual):
            raise UserError(
                f"{where} has several files for one place, such as {paths[here].name}:"
                " phases, echoes or copies; separate them."
            )
        if abs(step - usual) > TOLERANCE * usual:
            raise UserError(
                f"{where} has slices {usual:g} mm apart, but {step:g} mm before"
                f" {paths[here].name}: slices are missing, or spaced unevenly; add"
                " them, or resample the series first."
            )
    aside = positions[order] - np.outer(height[order], normal)
    drift = np.abs(aside - aside[0]).max()
    if drift > max(_LEAST_MM, TOLERANCE * usual):
        raise UserError(
            f"{where} is tilted: slices are shifted by up to {drift:g} mm within their"
            " plane; correct the gantry tilt first (dcm2niix does)."
        )
    first, last = positions[order[0]], positions[order[-1]]
    step = (last - first) / (len(paths) - 1)
    return [paths[number] for number in order], first, step


def _directions(values: Sequence[str]) -> list[str]:
    """Those that differ by more than rounding."""
    kept = values[:1]
    for value in values[1:]:
        try:
            apart = np.abs(np.subtract(_numbers(value, 6), _numbers(kept[0], 6))).max()
        except ValueError:
            apart = np.inf
        if apart > 1e-4:
            kept = [*kept, value]
    return list(kept)


def _numbers(text: str, count: int) -> list[float]:
    numbers = [float(part) for part in text.split("\\")]
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(text)
    return numbers


def _affine(image: Any) -> np.ndarray:
    """[4, 4], voxel index to mm, LPS+ as ITK has it; three dimensions or the first."""
    if image.GetDimension() != 3:
        return np.eye(4)
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (3, 3))
    affine[:3, :3] = direction * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return affine


def _as_nifti(array: np.ndarray) -> np.ndarray:
    """The same whole numbers in the smallest dtype that viewers read."""
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.int16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return array.astype(dtype)
    return array


def _reason(error: Exception) -> str:
    """The last line of ITK's own words, without where in its source it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
