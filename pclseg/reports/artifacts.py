"""What a finished run left beside its scores: curves, diagnostics, cases to look at."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pclseg.data.tfds_store import CaseInfo, Store, open_store
from pclseg.data.volume import prepare_label
from pclseg.data.volume_file import read_volume
from pclseg.errors import UserError
from pclseg.evaluation.cases import case_values, read_cases, worst_median_best
from pclseg.files import read_json
from pclseg.reports.figures import Overlay
from pclseg.reports.stages import store_folder

WHEN = ("before", "after")  # the training; JSON keeps no order
MEASURES = {  # key of the diagnostics: title
    "std": "SD of a component",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "position_r2": "R² of position",
    "neighbour_error": "neighbour error",
    "neighbour_error_chance": "by chance",
}
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # of embeddings.similarity_curve
Map = tuple[np.ndarray, np.ndarray]  # of embeddings.principal_components


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What a stage knew of position; names are "before" and "after".

    Attributes:
        measures: {name: {key of MEASURES: number or None}}.
        similarity: {name: (distance, mean, pairs)}, each [bins].
        maps: {name: (points [N, 2], share [2])}.
        position: [N] float64 in (0, 1].
        patient: [N] names.
    """

    measures: dict[str, dict[str, float | None]]
    similarity: dict[str, Curve]
    maps: dict[str, Map]
    position: np.ndarray
    patient: np.ndarray


def read_diagnostics(path: Path) -> Diagnostics:
    """Reads what `diagnostics.write_diagnostics` wrote.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    found = read_json(path)
    try:
        points = found["map"]
        position, patient = map(np.array, (points["position"], points["patient"]))
        return Diagnostics(
            measures={when: _measures(found["measures"][when]) for when in WHEN},
            similarity={when: _curve(found["similarity"][when]) for when in WHEN},
            maps={
                when: (
                    _shaped(points[when], (len(position), 2)),
                    _shaped(points["share"][when], (2,)),
                )
                for when in WHEN
            },
            position=_shaped(position, (len(position),)),
            patient=_shaped(patient, (len(position),), np.str_),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not as this version writes it ({error}); delete it and start"
            " the run's command again."
        ) from error


def _measures(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: None if found[key] is None else float(found[key]) for key in MEASURES}


def _curve(found: Mapping[str, Any]) -> Curve:
    bins = (len(found["distance"]),)
    return (
        _shaped(found["distance"], bins),
        _shaped(found["mean"], bins),  # None becomes NaN
        _shaped(found["pairs"], bins),
    )


def _shaped(values: Any, shape: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
    array = np.array(values, dtype)
    if array.size == 0:
        array = array.reshape(0, *shape[1:])  # of a list that is empty
    if array.shape != shape:
        raise ValueError(f"it has values of shape {array.shape} for {shape}")
    return array


def cases_to_show(workdir: Path) -> tuple[list[Overlay], tuple[str, ...]]:
    """Worst, median and best case by mean Dice, and the names of all classes.

    Image and label are those of the prepared volumes. The prediction is the run's file,
    resampled onto them.

    Raises:
        UserError: the prepared volumes or a prediction are gone.
    """
    store = open_store(store_folder(workdir))
    rows = read_cases(workdir / "cases.csv")
    dice = case_values(rows, "dice")
    shown = [
        _overlay(workdir, store, case, role=role, dice=dice[case])
        for role, case in worst_median_best(rows).items()
    ]
    return shown, store.class_names


def _overlay(
    workdir: Path, store: Store, case: str, *, role: str, dice: float
) -> Overlay:
    found = [row for row, info in enumerate(store.infos) if info.name == case]
    volume = store.volume(found[0]) if found else None
    if volume is None or volume.label is None:
        raise UserError(
            f"{store.path} holds no labelled volume {case!r} of {workdir}/cases.csv;"
            " restore the prepared volumes of this run."
        )
    path = workdir / "predictions" / f"{case}.nii.gz"
    return Overlay(
        role=role,
        case=case,
        dice=dice,
        image=volume.image[..., 0],  # the first channel
        label=volume.label,
        prediction=_read_prediction(path, volume.info, store.label_values),
        spacing=volume.info.spacing,
    )


def _read_prediction(
    path: Path, info: CaseInfo, label_values: tuple[int, ...]
) -> np.ndarray:
    try:
        array, _ = read_volume(path, None)
        if array.shape != info.geometry.file_shape:
            raise UserError(
                f"its shape is {array.shape}, the image's {info.geometry.file_shape}."
            )
        return prepare_label(
            array, info.geometry, label_values=label_values, label_order=1
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
