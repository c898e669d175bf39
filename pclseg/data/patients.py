"""Whose a volume is, by a pattern or a table; which names look like one patient's."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from pclseg.data.datasets.base import natural_key, read_columns, stem
from pclseg.errors import UserError

OPTION = "config.data.options"
_SUBJECT = re.compile(r"(?:^|[^a-z0-9])(sub-[a-z0-9]+)", re.IGNORECASE)  # BIDS
# What the names of several scans of one patient differ in.
_SCAN = re.compile(
    r"[^a-z0-9](?:frame|session|ses|run|timepoint|time|tp|visit|phase|followup|fu"
    r"|baseline|ed|es)[-_]?\d*(?![a-z0-9])",
    re.IGNORECASE,
)


def patients_of(root: Path, pattern: str, table: str) -> Callable[[Path], str]:
    """The function from an image's path to its patient.

    Args:
        root: folder that paths, and `table`, are relative to.
        pattern: regular expression searched in the path; its group `patient`, or its
            first, is the patient.
        table: a CSV file with the columns file and patient, in place of `pattern`.

    Raises:
        UserError: both are given, or one cannot be used; the function, when a path has
            no patient.
    """
    if pattern and table:
        raise UserError(
            f"set one of {OPTION}.patient and {OPTION}.patient_csv, not both."
        )
    if table:
        return _of_table(root, root / Path(table).expanduser())
    regex = grouped(pattern, "patient")

    def of_path(path: Path) -> str:
        found = regex.search(relative(path, root))
        patient = found and found["patient" if "patient" in found.groupdict() else 1]
        if not patient:
            raise UserError(f"{OPTION}.patient: {pattern!r} finds nothing in {path}.")
        return patient

    return of_path


def _of_table(root: Path, table: Path) -> Callable[[Path], str]:
    if not table.is_file():
        raise UserError(f"{OPTION}.patient_csv: there is no file {table}.")
    patient_of: dict[str, str] = {}
    for file, patient in read_columns(table, "file", "patient"):
        if patient_of.setdefault(file, patient) != patient:
            raise UserError(f"{table} gives {file} two patients; keep one row.")

    def of_path(path: Path) -> str:
        for key in (relative(path, root), str(path), path.name, stem(path)):
            if patient_of.get(key):
                return patient_of[key]
        raise UserError(
            f"{table} has no patient for {path}; add a row for {path.name}."
        )

    return of_path


def look_alike(patients: Iterable[str]) -> list[list[str]]:
    """Groups of patients whose names look like scans of one, each of two or more.

    Such as patient1_frame01 and patient1_frame12, x_tp1 and x_tp2, and, whatever else
    they are called, sub-01_ses-1 and sub-01_ses-2. All of one name, as in scan_run1,
    scan_run2, are no group: then that part is no patient's name.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(set(patients), key=natural_key):
        subject = _SUBJECT.search(patient)
        groups[subject[1] if subject else _SCAN.sub("", patient)].append(patient)
    several = [group for group in groups.values() if len(group) > 1]
    return several if len(groups) > 1 else []


def relative(path: Path, root: Path) -> str:
    """The path from `root`, with slashes."""
    return Path(os.path.relpath(path, root)).as_posix()


def grouped(pattern: str, option: str) -> re.Pattern[str]:
    """A regular expression with a group, as an option of config.data.options."""
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"{OPTION}.{option} is not a regular expression: {pattern!r} ({error})."
        ) from error
    if not regex.groups:
        raise UserError(
            f"{OPTION}.{option} is {pattern!r}, without a group; put brackets round the"
            r" part that counts, such as '(sub-\d+)'."
        )
    return regex
