"""What the files of one volume hold: every fault and the facts, nothing prepared."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from pclseg.data.datasets.base import READ_ERRORS, Case, open_nifti
from pclseg.data.findings import ERROR, NOTE, WARNING, Finding, as_error
from pclseg.data.geometry import (
    Geometry,
    has_slice_axis,
    orient,
    prepared_geometry,
)
from pclseg.data.volume import class_ids
from pclseg.data.volume_file import (
    check_grids,
    check_image,
    check_whole,
    file_planes,
    read_channel,
    read_volume,
)

BYTES_PER_VOXEL = 16  # of image and label as they are read, with what is made of them
PERCENTILES = (0.0, 0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5, 100.0)
PROFILE = 16  # heights at which the profile of a volume is told
STOPS = "preparation stops at it"
_MOST_SAMPLES = 2**20  # voxels that percentiles are taken of
_OBLIQUE_DEGREES = 5.0
_CONSTANT_SHARE = 0.1  # of slices without content, from which on they are told
_FORMS_APART_MM = 0.5
_UNITS = {"micron": "0.001", "meter": "1000"}  # factor to mm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One volume to look at, as it is sent to a worker."""

    case: Case
    slice_axis: int | str
    label_values: tuple[int, ...]  # of the classes
    strays: tuple  # of datasets.base.Stray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a volume, of several channels the first one, holds; JSON-able."""

    name: str
    patient: str
    image: str
    more_channels: tuple[str, ...]
    label: str  # "" where there is none
    shape: tuple[int, int, int]  # of the file
    spacing: tuple[float, float, float]  # mm, of the axes of the file
    orientation: str  # such as RAS: where the axes of the file point
    oblique_degrees: float  # between an axis of the file and one of the body, at most
    dtype: str
    slice_axis: int  # 0 to the right, 1 to the front, 2 up
    slice_direction: tuple[float, float, float]  # unit vector, RAS+
    slices: int
    slice_spacing: float  # mm
    plane: tuple[int, int]  # rows, columns of a slice
    plane_spacing: tuple[float, float]  # mm
    percentiles: tuple[float, ...]  # grey values at PERCENTILES
    profile: tuple[float, ...]  # mean grey value at PROFILE heights
    constant_slices: int  # of one grey value
    label_voxels: dict[int, int]  # value of the file: voxels; {} without label
    label_profile: dict[int, tuple[float, ...]]  # its area at PROFILE heights, most 1
    # The same along every axis (0 to the right, 1 to the front, 2 up), where the
    # spacing does not say which one a volume is cut along; else {}.
    axis_profiles: dict[int, dict[int, tuple[float, ...]]]
    digest: str  # of the voxels of the image

    @property
    def voxel_ml(self) -> float:
        """Millilitres of a voxel."""
        return math.prod(self.spacing) / 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examined:
    """What came of a request; `facts` is None where the image cannot be used."""

    findings: tuple[Finding, ...]
    facts: Facts | None


def size_bytes(request: Request) -> int:
    """An upper estimate of the memory that examining the volume takes."""
    try:
        shape = open_nifti(request.case.image_path).shape
    except READ_ERRORS:  # the worker says what is wrong
        return 0
    return BYTES_PER_VOXEL * math.prod(shape[:3])


def examine(request: Request) -> Examined:
    """Reads the files of a case and looks for all that is wrong with them."""
    case, found = request.case, []
    facts = None
    try:
        with as_error(found, case.name, case.image_path, STOPS):
            image, affine = read_volume(case.image_path, case.time_index)
            check_image(image)
            geometry, _, _ = prepared_geometry(
                image.shape, affine, slice_axis=request.slice_axis, spacing=()
            )
            found += _header_findings(case, affine)
            facts = _facts(case, image, geometry)
            found += _image_findings(case, facts)
        for path, index in case.more_channels if facts else ():
            with as_error(found, case.name, path, STOPS):
                read_channel(path, index, image.shape, affine)
        if case.label_path is not None:
            with as_error(found, case.name, case.label_path, STOPS):
                label, label_affine = read_volume(case.label_path, case.time_index)
                check_whole(label)
                if facts is not None:
                    check_grids(image.shape, affine, label.shape, label_affine)
                    facts = _with_label(facts, orient(label, geometry), geometry)
                    found += _label_findings(case, facts, request.label_values)
                class_ids(label, request.label_values, request.strays)
    except MemoryError:
        found.append(
            _fault(
                case,
                "there is not enough memory to read it",
                "use a machine with more, or --workers=1",
            )
        )
    except Exception as error:  # one odd file must not take the others' results along
        name = type(error).__name__
        found.append(
            _fault(
                case,
                f"it cannot be understood ({name}: {error})",
                "write it anew with another program, or leave it out",
            )
        )
    return Examined(findings=tuple(found), facts=facts)


def _fault(case: Case, what: str, remedy: str) -> Finding:
    return Finding(
        level=ERROR,
        where=case.name,
        path=str(case.image_path),
        what=what,
        consequence=STOPS,
        remedy=remedy,
    )


def _facts(case: Case, image: np.ndarray, geometry: Geometry) -> Facts:
    affine = np.asarray(geometry.affine)
    volume = orient(image, geometry)
    flat = image.reshape(-1, order="A")
    # Odd, or it would see few of the places along an axis of 2^n voxels.
    stride = flat.size // _MOST_SAMPLES | 1
    sample = flat[::stride].astype(np.float64)
    percentiles = np.percentile(sample, PERCENTILES)
    percentiles[[0, -1]] = image.min(), image.max()  # the sample may have missed them
    means = np.array([plane.mean(dtype=np.float64) for plane in volume])
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    nearest = np.abs(steps).max(axis=0).clip(0, 1)
    digest = hashlib.blake2b(digest_size=16)
    for plane in file_planes(image):
        digest.update(plane.tobytes(order="A"))
    _, *plane_spacing = geometry.native_spacing
    file_spacing = dict(zip(geometry.axes, geometry.native_spacing, strict=True))
    return Facts(
        name=case.name,
        patient=case.patient,
        image=str(case.image_path),
        more_channels=tuple(str(path) for path, _ in case.more_channels),
        label=str(case.label_path or ""),
        shape=geometry.file_shape,
        spacing=(file_spacing[0], file_spacing[1], file_spacing[2]),
        orientation="".join(nib.aff2axcodes(affine)),
        oblique_degrees=float(np.degrees(np.arccos(nearest.min()))),
        dtype=str(image.dtype),
        slice_axis=geometry.slice_axis,
        slice_direction=tuple(geometry.slice_direction.tolist()),
        slices=geometry.native_shape[0],
        slice_spacing=geometry.native_spacing[0],
        plane=geometry.native_shape[1:],
        plane_spacing=(plane_spacing[0], plane_spacing[1]),
        percentiles=tuple(percentiles.tolist()),
        profile=tuple(_profile(means).tolist()),
        constant_slices=int(sum(plane.min() == plane.max() for plane in volume)),
        label_voxels={},
        label_profile={},
        axis_profiles={},
        digest=digest.hexdigest(),
    )


def _profile(of_slices: np.ndarray) -> np.ndarray:
    """Means of one number a slice over PROFILE equal parts of the height."""
    edges = np.linspace(0, len(of_slices), PROFILE + 1)
    until = np.concatenate([[0.0], np.cumsum(of_slices, dtype=np.float64)])
    return np.diff(np.interp(edges, np.arange(len(until)), until)) / np.diff(edges)


def _with_label(facts: Facts, label: np.ndarray, geometry: Geometry) -> Facts:
    """`facts` with those of a label [Z, H, W] of whole numbers."""
    areas = _areas(label)
    along = {}
    if not has_slice_axis(geometry):
        canonical = _canonical_axes(geometry)
        for axis in range(3):
            moved = np.moveaxis(label, canonical.index(axis), 0)
            along[axis] = _profiles(_areas(moved))
    return dataclasses.replace(
        facts,
        label_voxels={value: int(area.sum()) for value, area in areas.items()},
        label_profile=_profiles(areas),
        axis_profiles=along,
    )


def _canonical_axes(geometry: Geometry) -> list[int]:
    """Of Z, H and W: 0, 1 or 2."""
    orientation = nib.io_orientation(np.asarray(geometry.affine))[:, 0]
    return [int(orientation[axis]) for axis in geometry.axes]


def _areas(label: np.ndarray) -> dict[int, np.ndarray]:
    """Of every value, ascending: voxels in each slice of the first axis."""
    areas: dict[int, np.ndarray] = {}
    for z, plane in enumerate(label):
        values, counts = np.unique(np.rint(plane).astype(np.int64), return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            areas.setdefault(value, np.zeros(len(label), np.int64))[z] = count
    return dict(sorted(areas.items()))


def _profiles(areas: dict[int, np.ndarray]) -> dict[int, tuple[float, ...]]:
    return {
        value: tuple((profile / profile.max()).tolist())
        for value, area in areas.items()
        for profile in (_profile(area),)
    }


def _header_findings(case: Case, affine: np.ndarray) -> list[Finding]:
    header = open_nifti(case.image_path).header
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    about = dict(where=case.name, path=str(case.image_path))
    found = []
    if sform == 0 and qform == 0:
        found.append(
            Finding(
                **about,
                level=WARNING,
                what="the header says how large voxels are, not how they lie",
                consequence="left and right, and up and down, may be wrong",
                remedy="export it again with qform or sform, or compare it with others",
            )
        )
    if sform > 0 and qform > 0:
        corner = np.array([*(n - 1 for n in header["dim"][1:4]), 1.0])
        try:
            apart = np.abs(((header.get_qform() - affine) @ corner)[:3]).max()
        except (ValueError, HeaderDataError):  # no quaternion
            apart = np.inf
        if apart > max(_FORMS_APART_MM, 0.5 * header["pixdim"][1:4].min()):
            found.append(
                Finding(
                    **about,
                    level=WARNING,
                    what=f"qform and sform of the header are {apart:.3g} mm apart",
                    consequence="pclseg goes by the sform, some viewers by the qform",
                    remedy="keep the right one of them",
                )
            )
    try:
        unit = str(header.get_xyzt_units()[0])
    except KeyError:  # a code that means nothing
        unit = ""
    if unit in _UNITS:
        found.append(
            Finding(
                **about,
                level=WARNING,
                what=f"the header gives sizes in {unit}s",
                consequence="pclseg takes them for mm, so spacing and distances are"
                " wrong",
                remedy=f"multiply pixdim and affine by {_UNITS[unit]} and set the unit"
                " to mm",
            )
        )
    return found


def _image_findings(case: Case, facts: Facts) -> list[Finding]:
    about = dict(where=case.name, path=str(case.image_path))
    found = []
    if facts.oblique_degrees > _OBLIQUE_DEGREES:
        found.append(
            Finding(
                **about,
                level=NOTE,
                what=f"its axes are {facts.oblique_degrees:.0f} degrees oblique",
                consequence="slices are those of the file, as it is not turned",
                remedy="nothing to do, unless the others are not",
            )
        )
    if facts.constant_slices > _CONSTANT_SHARE * facts.slices:
        found.append(
            Finding(
                **about,
                level=WARNING,
                what=f"{facts.constant_slices} of {facts.slices} slices are of one grey"
                " value",
                consequence="they count as heights of the body, so all positions are"
                " off",
                remedy="crop them away",
            )
        )
    return found


def _label_findings(
    case: Case, facts: Facts, label_values: Sequence[int]
) -> list[Finding]:
    background = label_values[0]
    if any(n for value, n in facts.label_voxels.items() if value != background):
        return []
    return [
        Finding(
            level=WARNING,
            where=case.name,
            path=str(case.label_path),
            what=f"the label holds nothing but the background, {background}",
            consequence="as a training case it teaches that nothing is there, and as a"
            " test case it has no Dice",
            remedy="export it again, or move the file away: the case then counts as"
            " unlabelled",
        )
    ]
