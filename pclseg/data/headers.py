"""What the headers of a dataset's files promise: sizes and spacings, no voxel read."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pclseg.data.datasets.base import Case, Dataset
from pclseg.data.geometry import AXIS_KEY, prepared_geometry
from pclseg.data.tfds_store import CaseInfo, check_size
from pclseg.data.volume_file import check_grids, naming, open_volume, read_affine
from pclseg.errors import UserError

log = logging.getLogger(__name__)
# Cosine of 60 degrees: slices that run farther apart are not of the same anatomy.
SAME_DIRECTION = 0.5
Header = tuple[tuple[int, ...], np.ndarray]  # shape, [4, 4] affine


def header_infos(
    dataset: Dataset, *, slice_axis: int | str, spacing: Sequence[float]
) -> tuple[CaseInfo, ...]:
    """The infos that the store of `dataset` will have.

    Warns where slices are not counted in one direction in all volumes.

    Args:
        dataset: its cases.
        slice_axis: as in `geometry.prepared_geometry`.
        spacing: likewise.

    Raises:
        UserError: a file that is missing, whose header cannot be read, or that is no
            volume; a label on another grid than its image; a volume too large.
    """
    read: dict[Path, Header] = {}  # the frames of a 4-D file share one header
    infos = tuple(_info(case, slice_axis, spacing, read) for case in dataset.cases)
    _warn_of_directions(infos)
    return infos


def _warn_of_directions(infos: Sequence[CaseInfo]) -> None:
    directions = np.stack([info.geometry.slice_direction for info in infos])
    most = common_direction(directions)
    astray = [
        info
        for info, cosine in zip(infos, directions @ most, strict=True)
        if cosine < SAME_DIRECTION
    ]
    if astray:
        first = astray[0].geometry.slice_direction
        log.warning(
            "%d of %d volumes count slices in another direction than most, such as %s"
            " (%s): along %s, not %s (right, front, up); equal positions are then not"
            " the same anatomy: set %s, mend their headers or leave them out.",
            len(astray),
            len(infos),
            astray[0].name,
            astray[0].image_path,
            *(
                np.array2string(v, precision=2, suppress_small=True)
                for v in (first, most)
            ),
            AXIS_KEY,
        )


def common_direction(directions: np.ndarray) -> np.ndarray:
    """Of unit vectors [N, 3] the one that is nearest to their sum."""
    return directions[np.argmax(directions @ directions.sum(axis=0))]


def _info(
    case: Case,
    slice_axis: int | str,
    spacing: Sequence[float],
    read: dict[Path, Header],
) -> CaseInfo:
    with naming(case, case.image_path):
        file_shape, affine = _header(case.image_path, read)
        geometry, shape, prepared_spacing = prepared_geometry(
            file_shape[:3], affine, slice_axis=slice_axis, spacing=spacing
        )
    beside = [(path, "channel") for path, _ in case.more_channels]
    if case.label_path is not None:
        beside.append((case.label_path, "label"))
    for path, what in beside:
        with naming(case, path):
            own_shape, own_affine = _header(path, read)
            check_grids(file_shape[:3], affine, own_shape[:3], own_affine, what=what)
    info = CaseInfo(
        name=case.name,
        patient=case.patient,
        frame=case.frame,
        shape=shape,
        channels=len(case.channels),
        spacing=prepared_spacing,
        labelled=case.label_path is not None,
        spacing_known=case.spacing_known,
        in_series=case.in_series,
        geometry=geometry,
        image_path=str(case.image_path.absolute()),
    )
    check_size(info)
    return info


def _header(path: Path, read: dict[Path, Header]) -> Header:
    """Shape and affine of a file, read once."""
    if path not in read:
        read[path] = _read_header(path)
    return read[path]


def _read_header(path: Path) -> Header:
    image = open_volume(path)
    if len(image.shape) < 3:
        raise UserError(f"the file's shape is {image.shape}; expected a 3-D volume.")
    return image.shape, read_affine(image)
