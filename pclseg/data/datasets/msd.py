"""A Medical Segmentation Decathlon task, or an nnU-Net raw folder, as downloaded.

Expected: imagesTr/, labelsTr/ and, if there, imagesTs/ (unlabelled) and dataset.json.
Simpson et al. 2019, arXiv 1902.09063. nnU-Net names its channels xx_0000.nii.gz and
writes the labels of dataset.json the other way round; both forms are read.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from pclseg.data.channels import (
    by_number,
    case_of,
    checked_option,
    of_file,
    unnumbered,
)
from pclseg.data.datasets.base import (
    Case,
    Dataset,
    class_names_for,
    natural_key,
    nifti_files,
    require_folder,
    safe_name,
    scan_label_values,
    stem,
)
from pclseg.data.patients import patients_of
from pclseg.errors import UserError

ENTRY = {
    "training": '{"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/x.nii.gz"}',
    "test": '"./imagesTs/x.nii.gz"',
}
# name, image or a file a channel, label
File = tuple[str, tuple[Path, ...], Path | None]


def make(
    *,
    raw_dir: str | Path,
    label_values: Sequence[int] = (),
    channels: Sequence[int] = (),
    patient: str = "",
    patient_csv: str = "",
) -> Dataset:
    r"""The volumes of imagesTr with their labels and, unlabelled, those of imagesTs.

    The patient is the file's stem, unless an option says else. A volume of imagesTr
    without a label is unlabelled.

    Args:
        raw_dir: the task's folder.
        label_values: the value in the files of class 0, 1, ...; () takes them from
            dataset.json or, without one, from the label files, all of which are read.
        channels: which to read of images that have several (a 4-D file, or one file a
            channel, _0000 and so on), by number; () where they have one.
        patient: where patients have several volumes: a regular expression searched in
            the path of an image, as "(patient\d+)", see `patients_of`.
        patient_csv: a file with the columns file and patient, instead of `patient`.

    Raises:
        UserError: the folder, a listed image or all labels are missing, a label has no
            image, images have several channels and none is chosen.
    """
    root = require_folder(
        Path(raw_dir).expanduser(), "a task: imagesTr, labelsTr, dataset.json"
    )
    index = _read_index(root / "dataset.json")
    channels = checked_option(channels)
    files = _listed_files(root, index) or _found_files(root, index, channels)
    cases = [_case(name, images, label, channels) for name, images, label in files]
    if patient or patient_csv:
        of_path = patients_of(root, patient, patient_csv)
        cases = [
            dataclasses.replace(case, patient=of_path(case.image_path))
            for case in cases
        ]
    names_by_value = _names_by_value(root / "dataset.json", index.get("labels") or {})
    label_values = tuple(label_values) or tuple(sorted(names_by_value, key=_zero_first))
    if not label_values:
        label_values = scan_label_values(label for _, _, label in files if label)
    fallback = class_names_for(label_values, ())
    return Dataset(
        name=safe_name(root.resolve().name.lower()) or "msd",
        cases=tuple(cases),
        class_names=tuple(
            names_by_value.get(value, name)
            for value, name in zip(label_values, fallback, strict=True)
        ),
        label_values=label_values,
        channels=channels,
    )


def _zero_first(value: int) -> tuple[bool, int]:
    return value != 0, value


def _read_index(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); mend it, or rename it and the folders"
            " alone are read."
        ) from error
    if not isinstance(index, dict):
        raise UserError(f"{path} should hold one JSON object; mend or rename it.")
    return index


def _names_by_value(path: Path, labels: dict) -> dict[int, str]:
    """{value: name} of MSD's {"1": "liver"} and of nnU-Net's {"liver": 1}."""
    try:
        if all(str(key).lstrip("-").isdecimal() for key in labels):
            names = {int(key): str(name) for key, name in labels.items()}
        else:
            names = {int(value): str(name) for name, value in labels.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"'labels' of {path} should pair one whole number with each name; mend it,"
            " or take it out and the label files are scanned."
        ) from error
    if "ignore" in names.values():
        raise UserError(
            f"{path} has an 'ignore' label, which is not supported; give its voxels a"
            " class of their own and take the entry out."
        )
    return {0: "background", **names} if names else {}


def _listed_files(root: Path, index: dict) -> list[File]:
    """The files that dataset.json lists; [] where only the folders tell them.

    nnU-Net lists none, or, in its first version, images without their channel.
    """
    files: list[File] = []
    for key in ENTRY if index.get("training") else ():
        entries = index.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            match entry:
                case {"image": str(image), "label": str(label)} if key == "training":
                    files.append((stem(root / image), (root / image,), root / label))
                case str(image) | {"image": str(image)} if key == "test":
                    files.append((stem(root / image), (root / image,), None))
                case _:
                    raise UserError(
                        f"{root / 'dataset.json'}: an entry of {key!r} is {entry!r};"
                        f" expected {ENTRY[key]}."
                    )
    missing = [images[0] for _, images, _ in files if not images[0].is_file()]
    if missing and stem(missing[0]) in _bases(nifti_files(missing[0].parent)):
        return []
    if missing:
        raise UserError(
            f"{root / 'dataset.json'} lists {missing[0]}, which does not exist"
            f" ({len(missing)} such images); unpack the task again or take the entry"
            " out."
        )
    return sorted(files, key=lambda file: natural_key(file[0]))


def _found_files(root: Path, index: dict, channels: tuple[int, ...]) -> list[File]:
    """The files of imagesTr, with those of labelsTr, then those of imagesTs."""
    labels = {stem(path): path for path in nifti_files(root / "labelsTr")}
    paths = nifti_files(require_folder(root / "imagesTr", "the task's images"))
    if not paths:
        raise UserError(f"{root / 'imagesTr'} holds no .nii.gz or .nii file.")
    stems = {stem(path) for path in paths}
    suffixed = "channel_names" in index or (
        not stems & labels.keys() and labels.keys() & _bases(paths)
    )
    gather = _by_case if suffixed else lambda paths, _: {stem(p): (p,) for p in paths}
    train = gather(paths, channels)
    test = gather(nifti_files(root / "imagesTs"), channels)
    without_image = sorted(labels.keys() - train.keys(), key=natural_key)
    if without_image:
        name = without_image[0]
        file = f"{name}_0000.nii.gz" if suffixed else f"{name}.nii.gz"
        raise UserError(
            f"{labels[name]} has no image: expected {root / 'imagesTr' / file}; add it"
            " or take the label out."
        )
    files: list[File] = [
        (name, paths, labels.get(name)) for name, paths in train.items()
    ]
    return files + [(name, paths, None) for name, paths in test.items()]


def _bases(paths: list[Path]) -> set[str]:
    """The names of the images without their channel."""
    return {unnumbered(path) for path in paths}


def _by_case(
    paths: Sequence[Path], channels: tuple[int, ...]
) -> dict[str, tuple[Path, ...]]:
    """{case: a file a channel} of nnU-Net's x_0000.nii.gz, x_0001.nii.gz.

    Args:
        paths: of all channels of all cases.
        channels: the chosen ones, by number; () where each case has one.

    Raises:
        UserError: a file is not named like that, or a case lacks a chosen channel, or
            has several and none is chosen.
    """
    chosen: dict[str, tuple[Path, ...]] = {}
    for place, files in by_number(paths).items():
        if not channels and len(files) > 1:
            raise UserError(
                f"{place.name} has {len(files)} channels ({sorted(files)}); choose with"
                " config.data.options.channels=(0,), or several."
            )
        if not set(channels or (0,)) <= set(files):
            raise UserError(
                f"config.data.options.channels is {channels}, but {place.name} has the"
                f" channels {sorted(files)}."
            )
        chosen[place.name] = tuple(files[channel] for channel in channels or (0,))
    return chosen


def _case(
    name: str, images: tuple[Path, ...], label: Path | None, channels: tuple[int, ...]
) -> Case:
    """One case; a channel of a 4-D image is read like one of its frames."""
    image, *others = images
    if others:  # a file a channel
        read = [(path, None) for path in images]
    else:
        read = of_file(image, channels)
    return case_of(safe_name(name), safe_name(name), read, label)
