"""Facts of volumes that no file has, for what is said of many volumes together."""

import numpy as np

from pclseg.data.datasets.base import Case, Dataset
from pclseg.data.examine import PERCENTILES, PROFILE, Facts


def facts(name="a", **changed):
    given = dict(
        name=name,
        patient=name,
        image=f"{name}.nii.gz",
        more_channels=(),
        label="",
        shape=(64, 64, 20),
        spacing=(1.0, 1.0, 3.0),
        orientation="RAS",
        oblique_degrees=0.0,
        dtype="int16",
        slice_axis=2,
        slice_direction=(0.0, 0.0, 1.0),
        slices=20,
        slice_spacing=3.0,
        plane=(64, 64),
        plane_spacing=(1.0, 1.0),
        percentiles=tuple(np.linspace(0, 100, len(PERCENTILES)).tolist()),
        profile=tuple(np.linspace(0, 1, PROFILE).tolist()),
        constant_slices=0,
        label_voxels={},
        label_profile={},
        axis_profiles={},
        digest=name,
    )
    return Facts(**(given | changed))


def dataset(volumes, values=(0, 1)):
    cases = [
        Case(name=v.name, patient=v.patient, frame="", image_path="x", label_path=None)
        for v in volumes
    ]
    return Dataset(
        name="d",
        cases=tuple(cases),
        class_names=tuple(map(str, values)),
        label_values=values,
    )
