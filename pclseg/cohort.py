"""Who and what takes part in a run: volumes, folds, subsets."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from pclseg.config import settings
from pclseg.data import datasets, prepare, splits
from pclseg.data.datasets.base import Dataset
from pclseg.data.headers import header_infos
from pclseg.data.patients import look_alike
from pclseg.data.tfds_store import CaseInfo
from pclseg.errors import UserError
from pclseg.named import checked_call, nearest


def open_dataset(data: ml_collections.ConfigDict) -> Dataset:
    """Lists the cases of `config.data`; nothing is decoded.

    The phantom, which pclseg makes itself, is written where it is missing.

    Raises:
        UserError: unknown dataset or option, missing folder or files.
    """
    given = {"raw_dir": data.raw_dir, **settings(data.options, "raw_dir")}
    try:
        datasets.generate(data.name, **given)
        return datasets.make(data.name, **given)
    except OSError as error:
        raise UserError(
            f"{error.filename or data.raw_dir}: {error.strerror}; mend its permissions,"
            " or set config.data.raw_dir to another folder."
        ) from error


def prepare_dataset(
    data: ml_collections.ConfigDict, dataset: Dataset, report: Callable[[str], None]
) -> Path:
    """Prepares the volumes, once; returns the store's folder.

    Raises:
        UserError: a volume that cannot be used, or a store that cannot be written.
    """
    try:
        return checked_call(
            prepare.prepare,
            "config.data.prepare",
            dataset=dataset,
            store_dir=Path(data.store_dir),
            report=report,
            **settings(data.prepare),
        )
    except OSError as error:
        raise UserError(
            f"config.data.store_dir: {error.filename or data.store_dir} cannot be"
            f" written: {error.strerror}; free space, or choose another folder."
        ) from error


def make_splits(
    data: ml_collections.ConfigDict, infos: Sequence[CaseInfo]
) -> dict[str, Any]:
    """The splits of `config.data.split`: the user's file, or seeded folds."""
    labelled = _patients(info for info in infos if info.labelled)
    unlabelled = [name for name in _patients(infos) if name not in set(labelled)]
    split = data.split
    if split.file:
        return splits.read_splits(
            Path(split.file), labelled, unlabelled, draw_seed=split.draw_seed
        )
    return splits.make_splits(
        labelled,
        unlabelled,
        folds=split.folds,
        fold_seed=split.fold_seed,
        draw_seed=split.draw_seed,
    )


def remarks(
    data: ml_collections.ConfigDict, infos: Sequence[CaseInfo], split: splits.Split
) -> list[str]:
    """What to be told of the patients of a split, a line each."""
    return [*_left_out(data, infos), *_on_both_sides(split)]


def _on_both_sides(split: splits.Split) -> list[str]:
    """A line on patients of both sides whose names look like scans of one."""
    held_out = {*split.validation, *split.test}
    everyone = {*split.train, *split.unlabelled, *held_out}
    for group in look_alike(everyone):
        inside = [name for name in group if name in held_out]
        outside = [name for name in group if name not in held_out]
        if inside and outside:
            return [
                f"split: patients {outside[0]}, to train on, and {inside[0]}, held out,"
                " look like one, and scores may be too good; set"
                r" config.data.options.patient, such as '(patient\d+)', or patient_csv"
            ]
    return []


def _left_out(data: ml_collections.ConfigDict, infos: Sequence[CaseInfo]) -> list[str]:
    """A line on patients of the split file that the dataset lacks; none if complete."""
    file = data.split.file
    if not file:
        return []
    absent = splits.left_out(file, _patients(infos), fold=data.split.fold)
    if not absent:
        return []
    shown = ", ".join(
        f"{len(who)} of {side} ({', '.join(who)})" for side, who in absent.items()
    )
    return [
        f"split: the dataset lacks patients of {file}, who are left out: {shown}; where"
        " one would be labelled, the next one of the draw takes its place"
    ]


def _patients(infos: Iterable[CaseInfo]) -> list[str]:
    return list(dict.fromkeys(info.patient for info in infos))


def rows_of(
    infos: Sequence[CaseInfo], split: splits.Split, subset: str, *, transductive: bool
) -> list[int]:
    """Rows of the store that a subset holds.

    Args:
        infos: of the store.
        split: who is in which part.
        subset: "train", every volume that pre-training may see, once; "labelled", the
            labelled volumes of the drawn patients; "validation" and "test", the
            labelled volumes of those patients.
        transductive: pre-training may see the images of validation and test patients.

    Raises:
        UserError: an unknown subset.
    """
    if subset == "train":
        allowed = set(splits.pretraining_patients(split, transductive=transductive))
        return [
            row
            for row, info in enumerate(infos)
            if info.patient in allowed and not info.in_series
        ]
    members = {
        "labelled": split.labelled,
        "validation": split.validation,
        "test": split.test,
    }
    if subset not in members:
        raise UserError(
            f"subset {subset!r} is unknown; known are: train, {', '.join(members)}."
            f"{nearest(subset, ['train', *members])}"
        )
    chosen = set(members[subset])
    return [
        row
        for row, info in enumerate(infos)
        if info.patient in chosen and info.labelled
    ]


def select_split(
    all_splits: dict[str, Any], data: ml_collections.ConfigDict
) -> splits.Split:
    """The split that `config.data.split` names.

    Raises:
        UserError: a fold or a number of patients that is not there.
    """
    chosen = {key: data.split[key] for key in ("fold", "labelled", "holdout")}
    return splits.select(all_splits, **chosen)


def plan_data(
    data: ml_collections.ConfigDict,
) -> tuple[Dataset, tuple[CaseInfo, ...], splits.Split, dict[str, Any]]:
    """The dataset, what its headers promise, and the splits; no voxel is read.

    Raises:
        UserError: files that are missing or unreadable, folds that do not work out.
    """
    dataset = open_dataset(data)
    infos = header_infos(
        dataset, slice_axis=data.prepare.slice_axis, spacing=tuple(data.prepare.spacing)
    )
    all_splits = make_splits(data, infos)
    return dataset, infos, select_split(all_splits, data), all_splits
