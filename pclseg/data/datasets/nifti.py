"""The user's own NIfTI files, found by patterns, without renaming or moving any."""

import difflib
import glob
import os
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from pclseg.data.channels import (
    case_of,
    checked_option,
    names_of,
    of_file,
    unnumbered,
)
from pclseg.data.datasets.base import (
    Case,
    Dataset,
    class_names_for,
    is_nifti,
    natural_key,
    nifti_files,
    num_frames,
    require_folder,
    safe_name,
    scan_label_values,
    stem,
)
from pclseg.data.patients import OPTION, grouped, patients_of, relative
from pclseg.errors import UserError

# Words that say what a file is, not which case it shows.
ROLES = frozenset(
    "image images img imgs im imagestr imagests imagesva volume volumes vol scan scans"
    " label labels labelstr labelsts labelsva lbl lab seg dseg segs segmentation"
    " segmentations mask masks gt groundtruth ground truth manual annotation".split()
)
# Entities that BIDS adds to the name of an image for what is derived from it.
DERIVED = frozenset(("space", "res", "den", "label", "desc", "seg"))
NO_IMAGE = "matches no image"
ADVICE = (
    f"narrow the patterns, or set {OPTION}.match to a regular expression whose group is"
    " what the names of an image and of what belongs to it share"
)
Key = Callable[[Path], Hashable]


def make(
    *,
    raw_dir: str | Path,
    images: str | Sequence[str],
    labels: str | Sequence[str] = "",
    more_images: Sequence[str] = (),
    channels: Sequence[int] = (),
    match: str = "",
    patient: str = "",
    patient_csv: str = "",
    label_values: Sequence[int] = (),
    class_names: Sequence[str] = (),
) -> Dataset:
    """The volumes that patterns find; those that no label matches are unlabelled.

    A label belongs to the image of the same name. Names may differ in nnU-Net's channel
    (x_0000 and x), in words such as image, label, seg or gt (x_image and x_label), and
    where files of all cases are called alike, the folders count (x/image and x/label).
    In BIDS names the entities decide (sub-1_run-2_T1w and sub-1_run-2_desc-x_dseg).
    Where no name helps, it belongs to the only image of its folder (x/t1 and x/seg).
    A 4-D image is the frames of one patient, labelled by a 4-D label, unless `channels`
    says that its fourth axis holds channels. Channels that are files of their own are
    found by `more_images`, and belong to images as labels do.

    Args:
        raw_dir: the folder that relative patterns and `patient_csv` start from.
        images: a pattern such as "images/*.nii.gz" or "**/t2.nii.gz", or several.
        labels: likewise; "" where nothing is labelled.
        more_images: a pattern for each further channel of the images, in the order in
            which the network gets them, such as "images/*_0001.nii.gz".
        channels: of 4-D images, by number on the fourth axis, such as (0, 1); () takes
            that axis for frames.
        match: regular expression searched in the path of images and labels; its groups
            are what both share. "" matches names as above.
        patient: regular expression searched in the path of an image; its group
            `patient`, or its first, is the patient. "" takes each file for a patient.
        patient_csv: a file with the columns file and patient, instead of `patient`.
        label_values: the value in the files of class 0, 1, ...; () reads all labels.
        class_names: one for each value, the background first; () makes them up.

    Raises:
        UserError: a pattern that finds nothing, a label that matches no image or
            several, an image without a patient or a channel, frames that do not pair
            up.
    """
    channels = checked_option(channels)
    if channels and more_images:
        raise UserError(
            f"set one of {OPTION}.channels, of 4-D files, and {OPTION}.more_images, not"
            " both."
        )
    root = require_folder(Path(raw_dir).expanduser(), "where the patterns start")
    label_paths = _find(root, labels, "labels") if labels else []
    patterns = [more_images] if isinstance(more_images, str) else more_images
    more_paths = [_find(root, pattern, "more_images") for pattern in patterns]
    taken = check_apart([label_paths, *more_paths])
    image_paths = [p for p in _find(root, images, "images") if place(p) not in taken]
    if not image_paths:
        raise UserError(
            f"{OPTION}.images finds only files that {OPTION}.labels or .more_images"
            " finds too; make the patterns differ."
        )
    label_of, clean = _match(root, image_paths, label_paths, match)
    more_of = []
    for paths in more_paths:
        found, channel_clean = further_channel(
            image_paths, paths, root=root, match=match
        )
        more_of.append(found)
        clean = clean if label_paths else channel_clean
    names = _names(root, image_paths, clean)
    given = patient or patient_csv
    patient_of = patients_of(root, patient, patient_csv) if given else names.__getitem__
    cases: list[Case] = []
    for path in image_paths:
        name = names[path]
        person = patient_of(path)
        label = label_of.get(path)
        if channels:
            read = of_file(path, channels)
        elif more_of:
            read = [(path, None), *((of[path], None) for of in more_of)]
        else:
            cases.extend(_frames(name, person, path, label))
            continue
        cases.append(case_of(name, person, read, label))
    values = tuple(label_values) or scan_label_values(label_paths)
    return Dataset(
        name="nifti",
        cases=tuple(cases),
        class_names=class_names_for(values, class_names),
        label_values=values,
        channels=channels
        or _names_of_channels(images, patterns, [image_paths, *more_paths]),
    )


def _names_of_channels(
    images: str | Sequence[str],
    more_images: Sequence[str],
    files: Sequence[Sequence[Path]],
) -> tuple[int | str, ...]:
    """Of channels that are files of their own; () where images have one channel."""
    if not more_images:
        return ()
    first = images if isinstance(images, str) else " or ".join(images)
    return names_of([first, *more_images], files)


def check_apart(lists: Sequence[Sequence[Path]]) -> set[tuple[str, str]]:
    """The places of all files.

    Args:
        lists: of labels and of channels after the first.

    Raises:
        UserError: a file is in two of the lists.
    """
    taken: set[tuple[str, str]] = set()
    for paths in lists:
        own = {place(path): path for path in paths}
        if twice := taken & own.keys():
            raise UserError(
                f"{own[min(twice)]} is found twice, as a channel and as another one or"
                " a label; make the patterns differ."
            )
        taken |= own.keys()
    return taken


def further_channel(
    images: list[Path],
    files: list[Path],
    *,
    root: Path,
    match: str,
    advice: str = ADVICE,
) -> tuple[dict[Path, Path], Callable[[Path], str]]:
    """({image: its further channel}, what of an image's name is its case's name).

    They belong together by the rules for labels.

    Args:
        images: first channels.
        files: further ones, one an image.
        root: folder that both lie below.
        match: as in `make`.
        advice: what to do where they do not pair up.

    Raises:
        UserError: they do not.
    """
    found, clean = _match(root, images, files, match, what="channel", advice=advice)
    lacking = [image for image in images if image not in found]
    if lacking:
        raise UserError(
            f"{lacking[0]} lacks a channel ({len(lacking)} such images; the first file"
            f" of that channel is {files[0]}), and every image needs one; {advice}."
        )
    return found, clean


def _find(root: Path, patterns: str | Sequence[str], option: str) -> list[Path]:
    """The NIfTI files that the patterns find, each once, in natural order."""
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        pattern = os.path.expanduser(pattern)
        if (root / pattern).is_dir():
            paths = nifti_files(root / pattern)
        else:
            hits = glob.glob(pattern, root_dir=root, recursive=True)
            paths = [root / hit for hit in hits if is_nifti(root / hit)]
        if not paths:
            raise UserError(
                f"{OPTION}.{option}: {pattern!r} finds no .nii.gz or .nii file from"
                f" {root}; mend the pattern or config.data.raw_dir."
            )
        found.extend(paths)
    found.sort(key=lambda path: natural_key(relative(path, root)))
    once: dict[tuple[str, str], Path] = {}  # a link or .. may lead here on other ways
    for path in found:
        once.setdefault(place(path), path)
    return list(once.values())


def place(path: Path) -> tuple[str, str]:
    """(real folder, name) of a file.

    A link that is a file itself is not followed: version control of data may keep the
    equal masks of two patients as links to one file.
    """
    return os.path.realpath(path.parent), path.name


def _match(
    root: Path,
    images: list[Path],
    labels: list[Path],
    pattern: str,
    *,
    what: str = "label",
    advice: str = ADVICE,
) -> tuple[dict[Path, Path], Callable[[Path], str]]:
    """({image: label}, what of an image's name is its case's name).

    The first rule that gives every label, or whatever else belongs to images, one of
    its own is taken; if none does, the one that comes nearest to it is reported.
    """

    def words(path: Path) -> Hashable:
        return _words(stem(path))

    def folder_words(path: Path) -> Hashable:
        return _words(relative(path.with_name(stem(path)), root))

    def entities(path: Path) -> Hashable:
        pairs = dict(
            part.split("-", 1) for part in stem(path).split("_") if "-" in part
        )
        kept = {key: value for key, value in pairs.items() if key not in DERIVED}
        return tuple(sorted(kept.items())) if "sub" in kept else path

    def folder(path: Path) -> Hashable:
        return os.path.realpath(path.parent)

    rules: list[tuple[Key, Key, Callable[[Path], str]]] = [
        (stem, stem, stem),
        (unnumbered, unnumbered if what == "channel" else stem, unnumbered),
        (words, words, stem),
        (folder_words, folder_words, stem),
        (entities, entities, stem),
        (folder, folder, stem),
    ]
    if pattern:
        regex = grouped(pattern, "match")

        def groups(path: Path) -> Hashable:
            found = regex.search(relative(path, root))
            return tuple(g for g in found.groups() if g) if found else path

        rules = [(groups, groups, stem)]
    faults: list[list[str]] = []
    for image_key, label_key, clean in rules:
        pairs, wrong = _pair(images, labels, image_key, label_key, what)
        if not wrong:
            return pairs, clean
        faults.append(wrong)
    # Of equals, an ambiguous match says more than none at all.
    fewest = min(faults, key=lambda f: (len(f), sum(NO_IMAGE in line for line in f)))
    others = f" (and {len(fewest) - 1} more)" if len(fewest) > 1 else ""
    raise UserError(f"{fewest[0]}{others}; {advice}.")


def _words(text: str) -> Hashable:
    """The words and numbers of a name, without those that say what the file is."""
    parts = re.findall(r"[^\W\d_]+|\d+", text.lower())
    return tuple(part for part in parts if part not in ROLES)


def _pair(
    images: list[Path],
    labels: list[Path],
    image_key: Key,
    label_key: Key,
    what: str,
) -> tuple[dict[Path, Path], list[str]]:
    """({image: label}, one line for each label that has no image of its own)."""
    images_of: dict[Hashable, list[Path]] = {}
    for image in images:
        images_of.setdefault(image_key(image), []).append(image)
    pairs: dict[Path, Path] = {}
    wrong = []
    for label in labels:
        found = images_of.get(label_key(label), [])
        if not found:
            near = difflib.get_close_matches(
                str(label), map(str, images), n=1, cutoff=0
            )
            wrong.append(f"{what} {label} {NO_IMAGE} (the nearest is {near[0]})")
        elif len(found) > 1:
            wrong.append(f"{what} {label} matches both {found[0]} and {found[1]}")
        elif found[0] in pairs:
            wrong.append(f"{what}s {pairs[found[0]]} and {label} both match {found[0]}")
        else:
            pairs[found[0]] = label
    return pairs, wrong


def _names(
    root: Path, images: list[Path], clean: Callable[[Path], str]
) -> dict[Path, str]:
    """A name for each image: the file's, or with its folders where names repeat."""
    names = {path: safe_name(clean(path)) for path in images}
    if len(set(names.values())) == len(images):
        return names
    return {p: safe_name(relative(p.with_name(clean(p)), root)) for p in images}


def _frames(name: str, patient: str, image: Path, label: Path | None) -> list[Case]:
    """One case for a 3-D file, one for each frame of a 4-D file."""
    count = num_frames(image)
    if label is not None and num_frames(label) != count:
        raise UserError(
            f"{image} has {count} frame(s) and its label {label} has"
            f" {num_frames(label)}; give each frame its label."
        )
    if count == 1:
        return [
            Case(
                name=name, patient=patient, frame="", image_path=image, label_path=label
            )
        ]
    digits = max(2, len(str(count - 1)))
    return [
        Case(
            name=f"{name}_frame{index:0{digits}d}",
            patient=patient,
            frame=f"{index:0{digits}d}",
            image_path=image,
            label_path=label,
            time_index=index,
        )
        for index in range(count)
    ]
