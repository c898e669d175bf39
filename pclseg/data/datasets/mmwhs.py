"""MM-WHS: whole hearts in CT, the 20 labelled volumes, seven classes.

Zhuang et al., Medical Image Analysis 58, 101537, 2019. Expected, in one folder or in
several: ct_train_NNNN_image.nii.gz and ct_train_NNNN_label.nii.gz.
"""

from pathlib import Path

from pclseg.data.datasets.base import LARGEST, Dataset, Stray
from pclseg.data.datasets.paired import paired_cases

CLASS_NAMES = (
    "background",
    "myocardium",
    "left atrium",
    "left ventricle",
    "right atrium",
    "right ventricle",
    "ascending aorta",
    "pulmonary artery",
)
PATIENTS = [str(number) for number in range(1001, 1021)]


def make(*, raw_dir: str | Path) -> Dataset:
    """The 20 labelled CT volumes; patients are called mmwhs1001 and so on.

    Other label values above 100 are background, as in PCL's code, but 421 is taken for
    the left atrium's 420, which preparation tells.

    Args:
        raw_dir: a folder that holds the files, at any depth; MRI and test volumes in it
            are passed over.

    Raises:
        UserError: no file, a file without its partner, two files of one patient.
    """
    return Dataset(
        name="mmwhs",
        cases=paired_cases(
            "mmwhs",
            raw_dir,
            image="ct_train_{}_image",
            label="ct_train_{}_label",
            published=PATIENTS,
        ),
        class_names=CLASS_NAMES,
        label_values=(0, 205, 420, 500, 550, 600, 820, 850),
        strays=(Stray(421, 421, 420), Stray(101, LARGEST, 0)),
    )
