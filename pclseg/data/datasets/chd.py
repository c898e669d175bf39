"""CHD: cardiac CT of congenital heart disease, 68 patients, seven classes.

The Kaggle set "chd68-segmentation-dataset-miccai19", which PCL's authors pre-train and
fine-tune on. Expected, in one folder or in several: ct_NNNN_image.nii.gz and
ct_NNNN_label.nii.gz.
"""

from pathlib import Path

from pclseg.data.datasets.base import LARGEST, Dataset, Stray
from pclseg.data.datasets.paired import paired_cases

CLASS_NAMES = (
    "background",
    "left ventricle",
    "right ventricle",
    "left atrium",
    "right atrium",
    "myocardium",
    "aorta",
    "pulmonary artery",
)
PATIENTS = (
    "1001 1002 1004 1007 1008 1010 1012 1016 1021 1022 1024 1026 1027 1028 1029 1030"
    " 1032 1033 1035 1036 1037 1039 1040 1041 1042 1043 1044 1046 1048 1053 1056 1059"
    " 1060 1061 1062 1066 1070 1072 1074 1077 1079 1080 1081 1083 1085 1088 1089 1090"
    " 1091 1092 1098 1099 1101 1102 1103 1106 1109 1111 1113 1114 1116 1117 1122 1124"
    " 1125 1126 1127 1128"
).split()


def make(*, raw_dir: str | Path) -> Dataset:
    """The 68 volumes, all labelled; patients are called chd1001 and so on.

    Label values above 7, such as the airway's, are background, as in PCL's code.

    Args:
        raw_dir: a folder that holds the files, at any depth.

    Raises:
        UserError: no file, a file without its partner, two files of one patient.
    """
    return Dataset(
        name="chd",
        cases=paired_cases(
            "chd",
            raw_dir,
            image="ct_{}_image",
            label="ct_{}_label",
            published=PATIENTS,
        ),
        class_names=CLASS_NAMES,
        label_values=tuple(range(8)),
        strays=(Stray(8, LARGEST, 0),),
    )
