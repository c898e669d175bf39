"""HVSMR 2016: cardiac MRI of congenital heart disease, 10 patients, two classes.

Only the volumes that are cropped and turned to the short axis. Expected, in folders of
any name: training_sa_crop_patN.nii.gz and training_sa_crop_patN-label.nii.gz. HVSMR-2.0
is another dataset with other labels.
"""

from pathlib import Path

from pclseg.data.datasets.base import Dataset
from pclseg.data.datasets.paired import paired_cases

CLASS_NAMES = ("background", "myocardium", "blood pool")
PATIENTS = [str(number) for number in range(10)]


def make(*, raw_dir: str | Path) -> Dataset:
    """The 10 labelled short-axis volumes; patients are called hvsmr0 to hvsmr9.

    Args:
        raw_dir: a folder that holds the files, at any depth; axial volumes in it are
            passed over.

    Raises:
        UserError: no file, a file without its partner, two files of one patient.
    """
    return Dataset(
        name="hvsmr",
        cases=paired_cases(
            "hvsmr",
            raw_dir,
            image="training_sa_crop_pat{}",
            label="training_sa_crop_pat{}-label",
            published=PATIENTS,
        ),
        class_names=CLASS_NAMES,
        label_values=(0, 1, 2),
    )
