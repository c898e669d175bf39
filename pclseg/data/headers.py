"""What the headers of a dataset's files promise: sizes and spacings, no voxel read."""

from collections.abc import Sequence

import nibabel as nib

from pclseg.data.datasets.base import READ_ERRORS, Case, Dataset
from pclseg.data.tfds_store import CaseInfo
from pclseg.data.volume import naming, prepared_geometry
from pclseg.errors import UserError


def header_infos(
    dataset: Dataset, *, slice_axis: int | str, spacing: Sequence[float]
) -> tuple[CaseInfo, ...]:
    """The infos that the store of `dataset` will have.

    Args:
        dataset: its cases.
        slice_axis, spacing: as in `volume.prepared_geometry`.

    Raises:
        UserError: a file whose header cannot be read, or that is no volume.
    """
    return tuple(_info(case, slice_axis, spacing) for case in dataset.cases)


def _info(case: Case, slice_axis: int | str, spacing: Sequence[float]) -> CaseInfo:
    with naming(case, case.image_path):
        try:
            header = nib.load(case.image_path)
        except READ_ERRORS as error:
            raise UserError(
                "the file cannot be read; copy or download it again."
            ) from error
        if len(header.shape) < 3:
            raise UserError(
                f"the file's shape is {header.shape}; expected a 3-D volume."
            )
        geometry, shape, prepared_spacing = prepared_geometry(
            header.shape[:3], header.affine, slice_axis=slice_axis, spacing=spacing
        )
    return CaseInfo(
        name=case.name,
        patient=case.patient,
        frame=case.frame,
        shape=shape,
        spacing=prepared_spacing,
        labelled=case.label_path is not None,
        spacing_known=case.spacing_known,
        in_series=case.in_series,
        geometry=geometry,
        image_path=str(case.image_path.absolute()),
    )
