"""Folds by patient, nested labelled subsets, and the user's own split files."""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pclseg.data.datasets.base import natural_key
from pclseg.errors import UserError
from pclseg.named import nearest

FILE_KEYS = (
    "folds",
    "test",
    "unlabelled",
    "draw_seed",
    "fold_seed",
    "absent",
    "strata",
)
FOLD_KEYS = ("train", "validation", "draw")
LEAVE_OUT = "leave out"
ABSENT = ("refuse", LEAVE_OUT)  # what to do about patients that the dataset lacks
SIDES = ("train", "validation", "test", "unlabelled")  # a patient is in one of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Who is used for what in one run; patients, never volumes or slices.

    Attributes:
        train: have labels, and are neither in `validation` nor in `test`.
        labelled: those of `train` whose labels fine-tuning sees, in the drawn order.
        validation: the fold's patients for measuring.
        test: set apart from all folds; often empty.
        unlabelled: have no labels, so they can serve pre-training only.
    """

    train: tuple[str, ...]
    labelled: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    unlabelled: tuple[str, ...]


def make_splits(
    labelled_patients: Iterable[str],
    unlabelled_patients: Iterable[str],
    *,
    folds: int,
    fold_seed: int,
    draw_seed: int,
) -> dict[str, Any]:
    """Shuffled k-fold cross-validation with nested draws, as the authors of PCL do it.

    Folds equal scikit-learn's `KFold(folds, shuffle=True, random_state=fold_seed)`. The
    draw of a fold is its training patients in the order of
    `random.Random(draw_seed).sample`; the first M are the labelled subset of size M.

    Args:
        labelled_patients: ids in any order, also repeated; sorted here with digits as
            numbers, so that folds do not depend on the order of a folder's listing.
        unlabelled_patients: ids without any label; they stay out of the folds.
        folds: 2 to the number of labelled patients; without any, there is one fold
            with nobody in it, and only pre-training is possible.
        fold_seed: 0 to 2^32 - 1.
        draw_seed: any integer.

    Returns:
        {"fold_seed", "draw_seed", "unlabelled": [...],
        "folds": [{"train": [...], "validation": [...], "draw": [...]}]}, for JSON.

    Raises:
        UserError: `folds` or `fold_seed` out of range, one labelled patient.
    """
    patients = sorted(set(labelled_patients), key=natural_key)
    if patients:
        _check_folds(len(patients), folds, fold_seed)
    else:
        folds = 1
    order = np.arange(len(patients))
    np.random.RandomState(fold_seed).shuffle(order)  # noqa: NPY002 - the authors' folds
    made = []
    for block in np.array_split(order, folds):  # the first n mod k are one longer
        held_out = set(block.tolist())
        train = [p for row, p in enumerate(patients) if row not in held_out]
        validation = [p for row, p in enumerate(patients) if row in held_out]
        draw = random.Random(draw_seed).sample(train, len(train))
        made.append({"train": train, "validation": validation, "draw": draw})
    unlabelled = sorted(set(unlabelled_patients) - set(patients), key=natural_key)
    return {
        "fold_seed": fold_seed,
        "draw_seed": draw_seed,
        "unlabelled": unlabelled,
        "folds": made,
    }


def select(
    splits: Mapping[str, Any], *, fold: int, labelled: int, holdout: int
) -> Split:
    """The split of one run.

    Args:
        splits: of `make_splits` or `read_splits`.
        fold: from 0.
        labelled: number of patients whose labels fine-tuning may see; 0 for all of the
            fold's training patients. Of no meaning where nobody has labels.
        holdout: where settings are chosen: so many training patients, the last of the
            draw, are validated on, and the fold's validation and the test patients
            take no part. 0 for the usual validation.

    Raises:
        UserError: `fold`, `labelled` or `holdout` out of range.
    """
    folds = splits["folds"]
    if not 0 <= fold < len(folds):
        raise UserError(
            f"config.data.split.fold is {fold}; there are {len(folds)} folds, so"
            f" expected 0 to {len(folds) - 1}."
        )
    chosen = folds[fold]
    draw = chosen["draw"]
    if draw and not 0 <= holdout < len(draw):
        raise UserError(
            f"config.data.split.holdout is {holdout}; fold {fold} has {len(draw)}"
            f" labelled patients to train on, so expected 0 to {len(draw) - 1}."
        )
    left = len(draw) - holdout
    if draw and not 0 <= labelled <= left:
        raise UserError(
            f"config.data.split.labelled is {labelled}; fold {fold} has {left} labelled"
            f" patients to train on, so expected 1 to {left}, or 0 for all."
        )
    held_out = draw[left:]
    return Split(
        train=tuple(p for p in chosen["train"] if p not in set(held_out)),
        labelled=tuple(draw[: labelled or left]),
        validation=tuple(held_out or chosen["validation"]),
        test=() if held_out else tuple(splits.get("test", ())),
        unlabelled=tuple(splits["unlabelled"]),
    )


def pretraining_patients(split: Split, *, transductive: bool) -> tuple[str, ...]:
    """Whose images pre-training may see.

    Args:
        split: of the run.
        transductive: also those of `validation` and `test`, without their labels. The
            authors of PCL do so; a result then says nothing about unseen patients.
    """
    patients = split.train + split.unlabelled
    return patients + split.validation + split.test if transductive else patients


def read_splits(
    path: str | Path,
    labelled_patients: Iterable[str],
    unlabelled_patients: Iterable[str],
    *,
    draw_seed: int = 1234,
) -> dict[str, Any]:
    """A user's split file, in the format that `make_splits` returns.

    Required is "folds", each with "train" and "validation". A fold without "draw" gets
    one as in `make_splits`; a file without "unlabelled" gets all unlabelled patients;
    "test" (default: nobody) is apart from all folds. Any number of folds may share
    validation patients, e.g. repeated splits. "absent" (default: "refuse") may be
    "leave out": patients that the dataset lacks are then dropped from every list, so
    that the next ones of a draw move up. `left_out` tells whom it is about. "strata"
    (default: none) gives patients a group each; where a draw is not in the file, the
    groups take turns in it.

    Args:
        path: JSON file.
        labelled_patients: ids of the dataset.
        unlabelled_patients: ids of the dataset without any label.
        draw_seed: for draws that are not in the file, unless the file has "draw_seed".

    Raises:
        UserError: no JSON; missing or unknown key; unknown patient; a patient twice or
            on two sides; a fold without patients; no label where one is needed; a list
            whose patients are all left out.
    """
    path = Path(path)
    content = _read_object(path)
    _check_keys(content, FILE_KEYS, str(path))
    labelled = set(labelled_patients)
    without_label = sorted(set(unlabelled_patients) - labelled, key=natural_key)
    present = labelled.union(without_label)
    # Whom a file may leave out is checked like everybody else, and dropped at the end.
    known = None if _leaves_out(content, path) else present
    barred = set(without_label)
    seed = content.get("draw_seed", draw_seed)
    if type(seed) is not int:
        raise UserError(f"{path}: 'draw_seed' is {seed!r}; expected an integer.")
    test = _patients(content.get("test", []), f"{path}: 'test'", known, barred)
    unlabelled = _patients(
        content.get("unlabelled", without_label), f"{path}: 'unlabelled'", known, set()
    )
    folds = content.get("folds")
    if not isinstance(folds, list) or not folds:
        raise UserError(
            f"{path}: 'folds' is missing or empty; expected a list such as"
            ' [{"train": ["p1", "p2"], "validation": ["p3"]}].'
        )
    strata = _strata(content, path)
    read = []
    for number, given in enumerate(folds):
        where = f"{path}: fold {number}"
        fold = _fold(given, where, known, barred, seed)
        _check_apart({**fold, "test": test, "unlabelled": unlabelled}, where)
        kept = {key: _kept(fold[key], present, where, key) for key in FOLD_KEYS}
        if strata and "draw" not in given:
            kept["draw"] = _in_turns(kept["draw"], strata, where)
        read.append(kept)
    test = _kept(test, present, str(path), "test")
    return {
        **({"fold_seed": content["fold_seed"]} if "fold_seed" in content else {}),
        "draw_seed": seed,
        "unlabelled": _kept(unlabelled, present, str(path), "unlabelled"),
        **({"test": test} if test else {}),
        "folds": read,
    }


def left_out(
    path: str | Path, patients: Iterable[str], *, fold: int
) -> dict[str, list[str]]:
    """Whom a split file names in vain.

    Args:
        path: a file that `read_splits` takes.
        patients: all ids of the dataset.
        fold: of the run.

    Returns:
        {"train", "validation", "test" or "unlabelled": those of its patients, of this
        fold, that are left out}; without the lists that are complete.
    """
    content = _read_object(Path(path))
    named = {**content["folds"][fold], **content}
    present = set(patients)
    absent = {
        side: [str(p) for p in named.get(side, ()) if str(p) not in present]
        for side in SIDES
    }
    return {side: names for side, names in absent.items() if names}


def _check_folds(patients: int, folds: int, fold_seed: int) -> None:
    if patients < 2:
        raise UserError(
            f"folds need 2 patients with labels, but the dataset has {patients}; check"
            " config.data.options, where the label files are named."
        )
    if not 2 <= folds <= patients:
        raise UserError(
            f"config.data.split.folds is {folds}; with {patients} labelled patients"
            f" expected 2 to {patients}."
        )
    if not 0 <= fold_seed < 2**32:
        raise UserError(
            f"config.data.split.fold_seed is {fold_seed}; expected 0 to 2^32 - 1."
        )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"config.data.split.file: {path} is no JSON file ({error}); give one, or ''"
            " for folds made from config.data.split."
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"config.data.split.file: {path} holds a {type(content).__name__}; expected"
            ' an object with the key "folds".'
        )
    return content


def _leaves_out(content: Mapping[str, Any], path: Path) -> bool:
    absent = content.get("absent", ABSENT[0])
    if absent not in ABSENT:
        raise UserError(
            f"{path}: 'absent' is {absent!r}; expected"
            f" {' or '.join(map(repr, ABSENT))}."
        )
    return absent == LEAVE_OUT


def _strata(content: Mapping[str, Any], path: Path) -> dict[str, str]:
    strata = content.get("strata", {})
    if isinstance(strata, dict) and all(isinstance(g, str) for g in strata.values()):
        return strata
    raise UserError(
        f"{path}: 'strata' does not give every patient a text; expected such as"
        ' {"p1": "healthy", "p2": "ill"}.'
    )


def _in_turns(draw: list[str], strata: Mapping[str, str], where: str) -> list[str]:
    """The first patient of each group, then the second of each, and so on.

    So of the first M, no group has two more than another that has any left.
    """
    taken: Counter[str] = Counter()
    turn = {}
    for patient in draw:
        if patient not in strata:
            raise UserError(
                f"{where}: patient {patient!r} has no group in 'strata'; add it."
                f"{nearest(patient, strata)}"
            )
        turn[patient] = taken[strata[patient]]
        taken[strata[patient]] += 1
    return sorted(draw, key=turn.__getitem__)  # within a turn as they were drawn


def _kept(patients: list[str], present: set[str], where: str, key: str) -> list[str]:
    """Those of `patients` that the dataset has."""
    kept = [patient for patient in patients if patient in present]
    if patients and not kept:
        raise UserError(
            f"{where}: the dataset has none of the patients of {key!r}, and a list is"
            " not left out as a whole; name one that it has."
        )
    return kept


def _check_keys(content: Iterable[str], known: Sequence[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise UserError(
                f"{where}: the key {key!r} is unknown; known are: {', '.join(known)}."
                f"{nearest(key, known)}"
            )


def _fold(
    fold: Any, where: str, known: set[str] | None, barred: set[str], draw_seed: int
) -> dict[str, list[str]]:
    if not isinstance(fold, dict):
        raise UserError(
            f'{where} is no object; expected {{"train": [...], "validation": [...]}}.'
        )
    _check_keys(fold, FOLD_KEYS, where)
    sides = {}
    for key in ("train", "validation"):
        if key not in fold:
            raise UserError(f"{where} lacks the key {key!r}; add its list of patients.")
        sides[key] = _patients(fold[key], f"{where}, {key!r}", known, barred)
        if not sides[key]:
            raise UserError(f"{where}, {key!r} is empty; name at least one patient.")
    train = sides["train"]
    drawn = fold.get("draw", random.Random(draw_seed).sample(train, len(train)))
    sides["draw"] = _patients(drawn, f"{where}, 'draw'", known, barred)
    if not sides["draw"]:
        raise UserError(
            f"{where}, 'draw' is empty; name patients or leave the key out."
        )
    for patient in sides["draw"]:
        if patient not in train:
            raise UserError(
                f"{where}: patient {patient!r} is in 'draw' but not in 'train'; labels"
                " are drawn from training patients only."
            )
    return sides


def _patients(
    value: Any, where: str, known: set[str] | None, barred: set[str]
) -> list[str]:
    """`value` as a list of ids, each named once.

    Args:
        value: of the file.
        where: it stands, for messages.
        known: ids that there are; None where others may be named, too.
        barred: ids that may not stand there, since they have no label.
    """
    if not isinstance(value, list) or not all(type(p) in (str, int) for p in value):
        raise UserError(f"{where} is not a list of patient ids; expected such a list.")
    patients = [str(patient) for patient in value]
    seen: set[str] = set()
    for patient in patients:
        if known is not None and patient not in known:
            raise UserError(
                f"{where}: patient {patient!r} is not in the dataset."
                f"{nearest(patient, sorted(known)) or ' Check its id.'}"
            )
        if patient in barred:
            raise UserError(
                f"{where}: patient {patient!r} has no label; move it to 'unlabelled'."
            )
        if patient in seen:
            raise UserError(
                f"{where}: patient {patient!r} is named twice; name it once."
            )
        seen.add(patient)
    return patients


def _check_apart(groups: Mapping[str, Iterable[str]], where: str) -> None:
    """Raises UserError if a patient is in two of the groups that must not mix."""
    owner: dict[str, str] = {}
    for group in SIDES:
        for patient in groups[group]:
            if patient in owner:
                raise UserError(
                    f"{where}: patient {patient!r} is both in {owner[patient]!r} and in"
                    f" {group!r}; a patient belongs to one side, so remove one of them."
                )
            owner[patient] = group
