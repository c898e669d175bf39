"""ACDC: cine cardiac MRI, short axis, with labels at end diastole and end systole.

Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2514-2525, 2018.
Expected: training/patientNNN/{Info.cfg, patientNNN_frameKK.nii.gz,
patientNNN_frameKK_gt.nii.gz}, KK from 1, and patientNNN_4d.nii.gz where there is one.
"""

import os
import re
from pathlib import Path

from pclseg.data.datasets.base import (
    SUFFIXES,
    Case,
    Dataset,
    natural_key,
    num_frames,
    read_columns,
    require_folder,
)
from pclseg.errors import UserError

CLASS_NAMES = ("background", "right ventricle", "myocardium", "left ventricle")
TRAINING_PATIENTS = tuple(f"patient{number:03d}" for number in range(1, 101))


def make(*, raw_dir: str | Path) -> Dataset:
    """The labelled ED and ES volumes and, unlabelled, every frame of the 4-D files.

    As the authors count, labelled frames start at 1 and those of a 4-D file at 0, so
    their names differ: patient001_frame01, patient001_4d_frame00.

    Args:
        raw_dir: the folder `training`, or the one that holds it. A `spacing.csv`
            beside `training` (columns patient, spacing_from) marks patients whose
            header holds the set's median spacing; theirs counts as unknown.

    Raises:
        UserError: a folder or file is missing, or an Info.cfg lacks ED or ES.
    """
    root = Path(raw_dir).expanduser()
    training = root if _absolute(root).name == "training" else root / "training"
    require_folder(training, "ACDC: training/patient001, training/patient002, ...")
    folders = sorted(
        (p for p in training.iterdir() if re.fullmatch(r"patient\d+", p.name)),
        key=natural_key,
    )
    if not folders:
        raise UserError(
            f"{training} holds no patient folder; expected {training}/patient001 and so"
            " on, each with Info.cfg and patient001_frame01.nii.gz."
        )
    unknown = _patients_of_unknown_spacing(_absolute(training).parent / "spacing.csv")
    cases = [
        c for f in folders for c in _patient(f, spacing_known=f.name not in unknown)
    ]
    return Dataset(
        name="acdc",
        cases=tuple(cases),
        class_names=CLASS_NAMES,
        label_values=(0, 1, 2, 3),
    )


def _absolute(path: Path) -> Path:
    """The path with a name and a parent, which `.` and `..` lack; links are kept."""
    return Path(os.path.abspath(path))


def _patients_of_unknown_spacing(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    rows = read_columns(path, "patient", "spacing_from")
    return {patient for patient, origin in rows if origin.startswith("median")}


def _patient(folder: Path, *, spacing_known: bool) -> list[Case]:
    patient = folder.name
    series = _find(folder, f"{patient}_4d")
    cases = _series(series, patient, spacing_known) if series else []
    for frame, number in _labelled_frames(folder / "Info.cfg").items():
        name = f"{patient}_frame{number:02d}"
        cases.append(
            Case(
                name=name,
                patient=patient,
                frame=frame,
                image_path=_require(folder, name),
                label_path=_require(folder, f"{name}_gt"),
                spacing_known=spacing_known,
                in_series=series is not None,
            )
        )
    return cases


def _series(path: Path, patient: str, spacing_known: bool) -> list[Case]:
    return [
        Case(
            name=f"{patient}_4d_frame{index:02d}",
            patient=patient,
            frame=f"{index:02d}",
            image_path=path,
            label_path=None,
            time_index=index,
            spacing_known=spacing_known,
        )
        for index in range(num_frames(path))
    ]


def _labelled_frames(path: Path) -> dict[str, int]:
    """{"ED": number, "ES": number}, read by key: mirrors differ in the lines' order."""
    if not path.is_file():
        raise UserError(f"{path} is missing; copy it from the ACDC download.")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = [line.partition(":") for line in text.splitlines()]
    values = {key.strip(): value.strip() for key, _, value in lines}
    for key in ("ED", "ES"):
        if not values.get(key, "").isdecimal():
            raise UserError(f"{path} has no line '{key}: <frame number>'; add it.")
    return {key: int(values[key]) for key in ("ED", "ES")}


def _find(folder: Path, name: str) -> Path | None:
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), None)


def _require(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise UserError(
            f"{folder} lacks {name}.nii.gz, which its Info.cfg calls for; copy it from"
            " the ACDC download or take the patient's folder out."
        )
    return path
