"""One row per case and foreground class: made, kept as a CSV file, summed up."""

import csv
import io
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pclseg.errors import UserError
from pclseg.evaluation import overlap, surface
from pclseg.files import write_text

GRIDS = ("file", "prepared")  # that cases are scored on
METRICS = ("dice", "hd95_mm", "asd_mm", "nsd")
LEGACY = ("dice_legacy", "asd_legacy_voxel")  # as SSL4MIS scores; older files have none
COLUMNS = {
    "case": str,
    "patient": str,
    "frame": str,
    "class": int,
    "class_name": str,
    "dice": float,
    "hd95_mm": float,
    "asd_mm": float,
    "nsd": float,
    "predicted_voxels": int,
    "labelled_voxels": int,
    "dice_legacy": float,
    "asd_legacy_voxel": float,
}
_FINITE = sys.float_info.max
GREATEST = {  # least is 0
    "dice": 1,
    "hd95_mm": _FINITE,
    "asd_mm": _FINITE,
    "nsd": 1,
    "dice_legacy": 1,
    "asd_legacy_voxel": _FINITE,
}
Row = dict[str, Any]  # one value of the stated type for each of COLUMNS


class CaseFacts(Protocol):
    """What a row needs to know of its case; `pclseg.data` has it in CaseInfo."""

    @property
    def name(self) -> str:
        """Unique name of the case."""
        ...

    @property
    def patient(self) -> str:
        """Patient of the case."""
        ...

    @property
    def frame(self) -> str:
        """Frame of the patient."""
        ...

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) mm."""
        ...

    @property
    def spacing_known(self) -> bool:
        """Whether `spacing` really is in mm."""
        ...


def case_rows(
    info: CaseFacts,
    prediction: np.ndarray,
    label: np.ndarray,
    class_names: Sequence[str],
    *,
    tolerance_mm: float,
) -> list[Row]:
    """Scores one case, class by class.

    Args:
        info: whose volume it is.
        prediction: [Z, H, W] class ids, integer.
        label: [Z, H, W] class ids, integer.
        class_names: K names, background first.
        tolerance_mm: of the NSD.

    Returns:
        K - 1 rows. dice is NaN where both masks are empty and 0 where one of them is;
        for the rest see `surface_metrics` and, for dice_legacy,
        `overlap.legacy_dice_from_counts`. Without a known spacing hd95_mm, asd_mm and
        nsd are NaN.
    """
    total = overlap.counts(prediction, label, len(class_names))
    dice = overlap.case_dice_from_counts(total)
    dice_legacy = overlap.legacy_dice_from_counts(total)
    rows = []
    for class_id, class_name in enumerate(class_names[1:], start=1):
        row = {
            "case": info.name,
            "patient": info.patient,
            "frame": info.frame,
            "class": class_id,
            "class_name": class_name,
            "dice": float(dice[class_id - 1]),
            "predicted_voxels": int(total[class_id, 1]),
            "labelled_voxels": int(total[class_id, 2]),
            "dice_legacy": float(dice_legacy[class_id - 1]),
            **surface.surface_metrics(
                prediction == class_id,
                label == class_id,
                info.spacing if info.spacing_known else None,
                tolerance_mm=tolerance_mm,
            ),
        }
        rows.append({key: row[key] for key in COLUMNS})
    return rows


def write_cases(path: str | Path, rows: Iterable[Row]) -> None:
    """Writes rows as CSV, whole or not at all; NaN is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _to_cell(row[key]) for key in COLUMNS})
    write_text(Path(path), text.getvalue())


def read_cases(path: str | Path) -> list[Row]:
    """Reads what `write_cases` wrote, floats bit for bit.

    LEGACY is NaN in the rows of a file without these columns, as of an earlier version.

    Raises:
        UserError: there is no such file, it is not such a table, or a score is out of
            its range.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            needed = [key for key in COLUMNS if key not in LEGACY]
            missing = [key for key in needed if key not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path} lacks the columns {', '.join(missing)}; expected a table"
                    " of cases as an evaluation writes it. Evaluate the run again."
                )
            rows = [
                {
                    key: _from_cell(row.get(key, ""), kind)
                    for key, kind in COLUMNS.items()
                }
                for row in reader
            ]
        _check_rows(rows)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); expected the table of cases of"
            " a finished run. Start the run again to finish it."
        ) from error
    except (TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} holds a broken row ({error}); expected a table of cases as an"
            " evaluation writes it. Evaluate the run again."
        ) from error
    return rows


def _check_rows(rows: Sequence[Row]) -> None:
    seen = set()
    for row in rows:
        for key, most in GREATEST.items():
            if not (math.isnan(row[key]) or 0 <= row[key] <= most):
                raise ValueError(f"{key} of case {row['case']!r} is {row[key]}")
        of_row = (row["case"], row["class_name"])
        if of_row in seen:
            raise ValueError(f"case {of_row[0]!r} has class {of_row[1]!r} twice")
        seen.add(of_row)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and spread of METRICS and LEGACY, with the values left out and why.

    `overall` takes the mean over the classes of a case first, then over cases. sd is
    the sample standard deviation (ddof = 1). Values that do not exist take no part:
    both_empty rows have none of METRICS, one_empty rows no distance (but dice and nsd
    of 0), spacing_unknown rows no metric in mm. LEGACY has a value in every row.

    Returns:
        {"cases": int, "overall": part, "classes": {name: part}}, where part is
        {metric: {"mean", "sd", "n"}, "both_empty", "one_empty", "spacing_unknown"};
        fit for JSON, with None where there is no number.
    """
    names = dict.fromkeys(row["class_name"] for row in rows)
    by_name = {
        name: [row for row in rows if row["class_name"] == name] for name in names
    }
    metrics = (*METRICS, *LEGACY)
    overall = {m: spread(list(case_values(rows, m).values())) for m in metrics}
    classes = {
        name: {m: spread([row[m] for row in part]) for m in metrics} | exclusions(part)
        for name, part in by_name.items()
    }
    return {
        "cases": len({row["case"] for row in rows}),
        "overall": overall | exclusions(rows),
        "classes": classes,
    }


def case_values(
    rows: Iterable[Row], metric: str, class_name: str | None = None
) -> dict[str, float]:
    """{case: metric}: of one class, or the mean of the classes that have a value."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if class_name in (None, row["class_name"]):
            values.setdefault(row["case"], []).append(row[metric])
    return {case: nan_mean(of_case) for case, of_case in values.items()}


def exclusions(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows lack a metric, by reason; a row counts under one reason only.

    Every row that is not both_empty has an NSD if its spacing is known, so one without
    counts as spacing_unknown, also where one of its masks is empty.
    """
    found = {"both_empty": 0, "one_empty": 0, "spacing_unknown": 0}
    for row in rows:
        empty = (row["predicted_voxels"] == 0) + (row["labelled_voxels"] == 0)
        if empty == 2:
            found["both_empty"] += 1
        elif math.isnan(row["nsd"]):
            found["spacing_unknown"] += 1
        elif empty:
            found["one_empty"] += 1
    return found


def worst_median_best(rows: Iterable[Row]) -> dict[str, str]:
    """{"worst": case, "median": case, "best": case} by mean Dice over the classes.

    Of an even number the lower median; cases without any Dice are passed over, and of
    one or two cases the same one stands for several. Empty where no case has a Dice.
    """
    values = case_values(rows, "dice")
    scored = [case for case in values if not math.isnan(values[case])]
    order = sorted(scored, key=lambda case: (values[case], case))
    if not order:
        return {}
    middle = order[(len(order) - 1) // 2]
    return {"worst": order[0], "median": middle, "best": order[-1]}


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """{"mean", "sd" (ddof = 1), "n"} of the values that are not NaN, or None."""
    known = [value for value in values if not math.isnan(value)]
    mean = float(np.mean(known)) if known else None
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": mean, "sd": sd, "n": len(known)}


def nan_mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _to_cell(value: Any) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else str(value)


def _from_cell(text: str, kind: type) -> Any:
    return math.nan if kind is float and text == "" else kind(text)
