"""Label files for image files: read ahead, predicted slice by slice, written behind."""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from pclseg.data.datasets.base import CHANNEL, Case, num_frames, safe_name, stem
from pclseg.data.datasets.nifti import further_channel
from pclseg.data.prepare import case_bytes, prepare_case
from pclseg.data.tfds_store import Volume
from pclseg.data.volume import restore_probabilities
from pclseg.data.volume_file import naming, write_volume
from pclseg.data.workers import REPORT_SECONDS, memory_bytes
from pclseg.errors import UserError
from pclseg.trained import Segmenter

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
# A name, and of every channel the file and the index on its fourth axis.
_Volume = tuple[str, Sequence[tuple[Path, int | None]]]


def predict_files(
    segmenter: Segmenter,
    paths: Sequence[Path],
    out: Path,
    *,
    more_paths: Sequence[Sequence[Path]] = (),
    overwrite: bool = False,
    skip: bool = False,
    probabilities: bool = False,
) -> list[Path]:
    """Writes `<name>.nii.gz` for every volume, each whole or not at all.

    While a volume is predicted, the next is read and the one before written, where
    memory allows.

    Args:
        segmenter: from `load_segmenter`.
        paths: NIfTI images, 3-D or 4-D.
        out: folder for the label files, on the grid of their image.
        more_paths: files of the channels after the first, as in `cases_of`.
        overwrite: replace files that are there, which may be labels drawn by hand.
        skip: leave out volumes whose label file is there, as after a stop.
        probabilities: write `<name>_probabilities.nii.gz`, [X, Y, Z, K] float32, first.

    Returns:
        The label files.

    Raises:
        UserError: a file would be overwritten; the first file that cannot be used or
            written, while earlier ones stay written.
    """
    cases = cases_of(paths, channels=segmenter.channels, more_paths=more_paths)
    targets = {case: out / f"{case.name}.nii.gz" for case in cases}
    images = [path for case in cases for path, _ in case.channels]
    _check_spared([*targets.values()], images, overwrite=overwrite or skip)
    waiting = [case for case in cases if not (skip and targets[case].exists())]
    if len(waiting) < len(cases):
        log.info("%d of %d are there", len(cases) - len(waiting), len(cases))
    read = functools.partial(_read, segmenter)
    begun = time.monotonic()
    written: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
        for number, (case, volume) in enumerate(
            _one_ahead(read, waiting, fits=functools.partial(_fits_twice, segmenter)),
            start=1,
        ):
            label, probs = _predict(segmenter, case, volume, probabilities)
            del volume
            if written is not None:
                written.result()
            each = (time.monotonic() - begun) / number
            left = each * (len(waiting) - number)
            written = writer.submit(
                _write,
                targets[case],
                label,
                probs,
                like=case.image_path,
                told=f"predict {number}/{len(waiting)} {targets[case]}:"
                f" {_voxels(label, segmenter)}; {each:.1f} s a volume,"
                f" {_minutes(left)} left",
            )
            del label, probs
        if written is not None:
            written.result()
    return [*targets.values()]


def _one_ahead(
    function: Callable[[T], R], items: Sequence[T], *, fits: Callable[[T], bool]
) -> Iterator[tuple[T, R]]:
    """(item, function(item)), the next being worked on by a thread if it `fits`."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as thread:
        coming: Future[R] | None = None
        for number, item in enumerate(items):
            result = function(item) if coming is None else coming.result()
            following = items[number + 1 : number + 2]
            coming = (
                thread.submit(function, *following)
                if any(map(fits, following))
                else None
            )
            yield item, result
            del result


def _fits_twice(segmenter: Segmenter, case: Case) -> bool:
    """Whether a volume may be read while another of its size is predicted."""
    return 4 * case_bytes(case, segmenter.options) < memory_bytes()


def _read(segmenter: Segmenter, case: Case) -> Volume:
    """The prepared volume.

    Raises:
        UserError: the file cannot be used, or needs more memory than there is.
    """
    needed, there = case_bytes(case, segmenter.options), memory_bytes()
    if needed > there:
        with naming(case, case.image_path):
            raise UserError(
                f"it takes about {needed / 2**30:.0f} GiB of memory, and there are"
                f" {there / 2**30:.0f}; crop it, or use a machine with more."
            )
    return prepare_case(case, segmenter.options, segmenter.label_values)


def _predict(
    segmenter: Segmenter, case: Case, volume: Volume, probabilities: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """The label and, where asked for, the probabilities, on the file's grid."""
    geometry = volume.info.geometry
    slices = _telling(segmenter.slices(volume.image), case.name, len(volume.image))
    if not probabilities:
        return segmenter.label(slices, geometry), None
    probs = restore_probabilities(slices, geometry)
    return segmenter.likeliest(probs), probs


def _telling(slices: Iterable[T], name: str, number: int) -> Iterator[T]:
    """The slices; of a volume that takes long, says how many are done."""
    begun = told = time.monotonic()
    for done, item in enumerate(slices, start=1):
        yield item
        now = time.monotonic()
        if now - told > REPORT_SECONDS and done < number:
            left = (now - begun) / done * (number - done)
            log.info("%s: %d of %d slices, %s left", name, done, number, _minutes(left))
            told = now


def _minutes(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def _write(
    target: Path, label: np.ndarray, probs: np.ndarray | None, *, like: Path, told: str
) -> None:
    if probs is not None:
        name = target.name.removesuffix(".nii.gz")
        beside = target.with_name(f"{name}_probabilities.nii.gz")
        write_volume(beside, probs, like=like)
    write_volume(target, label, like=like)
    log.info("%s", told)


def _check_spared(
    targets: Sequence[Path], images: Sequence[Path], *, overwrite: bool
) -> None:
    """Raises UserError where a label file would replace an image, or any file."""
    resolved = {image.resolve() for image in images}
    for target in targets:
        if target.resolve() in resolved:
            raise UserError(
                f"{target} is one of the images and would be overwritten; choose"
                " another --out."
            )
        if target.exists() and not overwrite:
            raise UserError(
                f"{target} exists; choose another --out, or add --overwrite to replace"
                " what is there."
            )


def _voxels(label: np.ndarray, segmenter: Segmenter) -> str:
    named = zip(segmenter.class_names, segmenter.label_values, strict=True)
    counted = [f"{name} {int((label == value).sum())}" for name, value in named]
    return "voxels of " + ", ".join(counted[1:])


def cases_of(
    paths: Sequence[Path],
    *,
    channels: Sequence[int],
    more_paths: Sequence[Sequence[Path]] = (),
) -> list[Case]:
    """One case a volume.

    Args:
        paths: NIfTI images.
        channels: those to read of an image of several, by number; (): every frame of a
            4-D file is a volume.
        more_paths: for each channel after the first its files, where these are not
            named as nnU-Net does.

    Raises:
        UserError: two volumes would be predicted into the same file, or one lacks a
            channel.
    """
    paths = list(dict.fromkeys(paths))
    if more_paths:
        volumes = _of_named_channels(paths, more_paths, channels)
    elif len(channels) > 1:
        volumes = _of_channels(paths, channels)
    else:
        volumes = [found for path in paths for found in _of_file(path, channels)]
    cases: dict[str, Case] = {}
    for name, ((path, index), *more) in volumes:
        if name in cases:
            raise UserError(
                f"{path} and {cases[name].image_path} would both be written to"
                f" {name}.nii.gz; predict them into different folders."
            )
        cases[name] = Case(
            name=name,
            patient=name,
            frame="",
            image_path=path,
            label_path=None,
            time_index=index,
            more_channels=tuple(more),
        )
    return list(cases.values())


def _of_file(path: Path, channels: Sequence[int]) -> list[_Volume]:
    """The volumes, of one channel, of a file."""
    frames, name = num_frames(path), safe_name(stem(path))
    if frames == 1:
        return [(name, [(path, None)])]
    if not channels:
        return [
            (f"{name}_frame{index:02d}", [(path, index)]) for index in range(frames)
        ]
    return [(name, _of_fourth_axis(path, channels))]


def _of_fourth_axis(
    path: Path, channels: Sequence[int]
) -> list[tuple[Path, int | None]]:
    frames = num_frames(path)
    if max(channels) >= frames:
        numbers = ", ".join(map(str, channels))
        raise UserError(
            f"{path} has {frames} channels, but the run was trained on channel"
            f" {numbers}, counted from 0; give images like those of the training."
        )
    return [(path, channel) for channel in channels]


def _of_channels(paths: Sequence[Path], channels: Sequence[int]) -> list[_Volume]:
    """Volumes of several channels: 4-D files, or files x_0000, x_0001 and so on."""
    volumes: list[_Volume] = []
    files: dict[tuple[Path, str], dict[int, Path]] = {}
    for path in paths:
        suffix = CHANNEL.search(stem(path))
        if num_frames(path) > 1:
            volumes.append((safe_name(stem(path)), _of_fourth_axis(path, channels)))
        elif suffix:
            place = path.parent, CHANNEL.sub("", stem(path))
            files.setdefault(place, {})[int(suffix[1])] = path
        else:
            raise UserError(
                f"{path} is one channel, but the run was trained on {len(channels)};"
                f" name its files {stem(path)}_0000.nii.gz and so on, or give the"
                " others by --more_images."
            )
    for (_, name), found in files.items():
        lacking = [channel for channel in channels if channel not in found]
        if lacking:
            raise UserError(
                f"{next(iter(found.values()))}: {name}_{lacking[0]:04d}.nii.gz is"
                f" missing, and the run was trained on the channels"
                f" {', '.join(map(str, channels))}; give all of them."
            )
        read = [(found[channel], None) for channel in channels]
        volumes.append((safe_name(name), read))
    return volumes


def _of_named_channels(
    paths: Sequence[Path],
    more_paths: Sequence[Sequence[Path]],
    channels: Sequence[int],
) -> list[_Volume]:
    """Volumes whose channels are files that belong together by their names."""
    if 1 + len(more_paths) != (len(channels) or 1):
        raise UserError(
            f"--more_images gives {len(more_paths)} further channel(s), but the run was"
            f" trained on {len(channels) or 1} channel(s) in all."
        )
    further = [
        further_channel(
            list(paths),
            list(others),
            root=Path(),
            match="",
            advice="give their files names that are alike, or name them as nnU-Net"
            " does: x_0000.nii.gz, x_0001.nii.gz",
        )
        for others in more_paths
    ]
    _, clean = further[0]
    return [
        (
            safe_name(clean(path)),
            [(path, None), *((files[path], None) for files, _ in further)],
        )
        for path in paths
    ]
