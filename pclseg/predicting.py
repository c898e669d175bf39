"""Label files for image files: read ahead, predicted slice by slice, written behind."""

import functools
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from pclseg.data import scratch
from pclseg.data.channels import Channel, by_number, case_of, number_of, unnumbered
from pclseg.data.datasets.base import Case, num_frames, safe_name, stem
from pclseg.data.datasets.nifti import check_apart, further_channel, place
from pclseg.data.prepare import case_bytes, prepare_case
from pclseg.data.tfds_store import Volume
from pclseg.data.volume import restore_probabilities
from pclseg.data.volume_file import write_volume
from pclseg.data.workers import REPORT_SECONDS, memory_bytes, minutes
from pclseg.errors import UserError
from pclseg.trained import Segmenter

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


def predict_files(
    segmenter: Segmenter,
    paths: Sequence[Path],
    out: Path,
    *,
    more_paths: Sequence[Sequence[Path]] = (),
    match: str = "",
    overwrite: bool = False,
    skip: bool = False,
    probabilities: bool = False,
    memory: int | None = None,
) -> list[Path]:
    """Writes `<name>.nii.gz` for every volume, each whole or not at all.

    While a volume is predicted, the next is read and the one before written, where
    memory allows. One that memory cannot hold is worked on in files of `out`.

    Args:
        segmenter: from `load_segmenter`.
        paths: NIfTI images, 3-D or 4-D.
        out: folder for the label files, on the grid of their image.
        more_paths: files of the channels after the first, as in `cases_of`.
        match: likewise.
        overwrite: replace files that are there, which may be labels drawn by hand.
        skip: leave out volumes whose label file is there, as after a stop.
        probabilities: write `<name>_probabilities.nii.gz`, [X, Y, Z, K] float32, first.
        memory: bytes that a volume may take; None for those of the machine.

    Returns:
        The label files.

    Raises:
        UserError: a file would be overwritten; the first file that cannot be used or
            written, while earlier ones stay written.
    """
    cases = cases_of(
        paths, channels=segmenter.channels, more_paths=more_paths, match=match
    )
    targets = {case: _targets(out, case, probabilities) for case in cases}
    images = [path for case in cases for path, _ in case.channels]
    _check_spared([*targets.values()], images, overwrite=overwrite or skip)
    waiting = [
        case for case in cases if not (skip and all(t.exists() for t in targets[case]))
    ]
    if len(waiting) < len(cases):
        log.info("%d of %d are there", len(cases) - len(waiting), len(cases))
    memory = memory_bytes() if memory is None else memory
    read = functools.partial(_read, segmenter, _there(out), memory)
    fits = functools.partial(_fits_twice, segmenter, memory)
    begun = time.monotonic()
    written: Future[None] | None = None
    try:
        ahead = _one_ahead(read, waiting, fits=fits)
        for number, (case, (volume, on_disk)) in enumerate(ahead, start=1):
            label, probs = _predict(segmenter, case, volume, probabilities, on_disk)
            del volume
            if written is not None:
                written.result()
            each = (time.monotonic() - begun) / number
            told = (
                f"predict {number}/{len(waiting)} {targets[case][0]}:"
                f" {_voxels(label, segmenter)}; {each:.1f} s a volume,"
                f" {minutes(each * (len(waiting) - number))} left"
            )
            written = _in_thread(
                _write, targets[case], label, probs, like=case.image_path, told=told
            )
            del label, probs
        if written is not None:
            written.result()
    except BaseException as raised:
        if written is not None and not written.done():
            log.info("ending after the file that is being written")
        error = None if written is None else written.exception()
        if error is not None and error is not raised:
            log.error("%s", error)  # else the other one alone would be told
        raise
    return [label for label, *_ in targets.values()]


def _targets(out: Path, case: Case, probabilities: bool) -> tuple[Path, ...]:
    """The label file and, where asked for, that of the probabilities."""
    label = out / f"{case.name}.nii.gz"
    beside = out / f"{case.name}_probabilities.nii.gz"
    return (label, beside) if probabilities else (label,)


def _in_thread(
    function: Callable[..., R], *args: object, **kwargs: object
) -> "Future[R]":
    """What a function will return, called in a thread that Ctrl-C need not wait for."""
    future: Future[R] = Future()

    def work() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _one_ahead(
    function: Callable[[T], R], items: Sequence[T], *, fits: Callable[[T], bool]
) -> Iterator[tuple[T, R]]:
    """(item, function(item)), the next being worked on by a thread if it `fits`."""
    coming: Future[R] | None = None
    for number, item in enumerate(items):
        result = function(item) if coming is None else coming.result()
        following = items[number + 1 : number + 2]
        ahead = [_in_thread(function, item) for item in following if fits(item)]
        coming = ahead[0] if ahead else None
        yield item, result
        del result


def _fits_twice(segmenter: Segmenter, memory: int, case: Case) -> bool:
    """Whether a volume may be read while another of its size is predicted."""
    return 4 * case_bytes(case, segmenter.options) < memory


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _read(
    segmenter: Segmenter, folder: Path, memory: int, case: Case
) -> tuple[Volume, Path | None]:
    """The prepared volume, and `folder` where it lies there and not in memory.

    Raises:
        UserError: the file cannot be used, or neither memory nor disk can hold it.
    """
    needed = case_bytes(case, segmenter.options)
    on_disk = folder if needed > memory else None
    if on_disk:
        log.info(
            "%s takes about %.3g GiB of memory, and there are %.3g; it is worked on in"
            " files of %s, which takes longer",
            case.name,
            needed / 2**30,
            memory / 2**30,
            folder,
        )
    volume = prepare_case(
        case, segmenter.options, segmenter.label_values, on_disk=on_disk
    )
    return volume, on_disk


def _predict(
    segmenter: Segmenter,
    case: Case,
    volume: Volume,
    probabilities: bool,
    on_disk: Path | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The label and, where asked for, the probabilities, on the file's grid."""
    geometry = volume.info.geometry
    blocks = segmenter.blocks(volume.image)
    slices = _telling(blocks, case.name, len(volume.image))
    if not probabilities:
        return segmenter.label(slices, geometry, on_disk), None
    probs = restore_probabilities(slices, geometry, on_disk=on_disk)
    return segmenter.likeliest(probs, on_disk), probs


def _telling(
    blocks: Iterable[np.ndarray], name: str, number: int
) -> Iterator[np.ndarray]:
    """The slices of blocks; of a volume that takes long, says how many are done."""
    begun = told = time.monotonic()
    done = 0
    for block in blocks:
        yield from block
        done += len(block)
        now = time.monotonic()
        if now - told > REPORT_SECONDS and done < number:
            left = minutes((now - begun) / done * (number - done))
            log.info("%s: %d of %d slices, %s left", name, done, number, left)
            told = now


def _write(
    targets: tuple[Path, ...],
    label: np.ndarray,
    probs: np.ndarray | None,
    *,
    like: Path,
    told: str,
) -> None:
    target, *beside = targets
    for path in beside:
        if probs is not None:
            write_volume(path, probs, like=like)
    write_volume(target, label, like=like)
    log.info("%s", told)


def _check_spared(
    targets: Sequence[tuple[Path, ...]], images: Sequence[Path], *, overwrite: bool
) -> None:
    """Raises UserError where a file would replace an image, another one, or any."""
    resolved = {image.resolve() for image in images}
    own: set[Path] = set()
    for target in itertools.chain.from_iterable(targets):
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
        if target in own:
            raise UserError(
                f"two volumes would both be written to {target}; predict them into"
                " different folders."
            )
        own.add(target)


def _voxels(label: np.ndarray, segmenter: Segmenter) -> str:
    named = zip(segmenter.class_names, segmenter.label_values, strict=True)
    planes = np.moveaxis(label, scratch.slowest_axis(label), 0)
    counted = [
        f"{name} {sum(np.count_nonzero(plane == value) for plane in planes)}"
        for name, value in named
    ]
    return "voxels of " + ", ".join(counted[1:])


def cases_of(
    paths: Sequence[Path],
    *,
    channels: Sequence[Channel],
    more_paths: Sequence[Sequence[Path]] = (),
    match: str = "",
) -> list[Case]:
    """One case a volume, named by its file, and by its folders where names repeat.

    Args:
        paths: NIfTI images.
        channels: what those of an image of several are called; (): an image has one,
            and every frame of a 4-D file is a volume.
        more_paths: for each channel after the first its files, where these are not
            named as nnU-Net does.
        match: regular expression whose groups are what the files of an image share, as
            in `datasets.nifti`; "" goes by their names.

    Raises:
        UserError: a volume lacks a channel, or a file is no image of the training's
            kind.
    """
    taken = check_apart(more_paths)
    paths = [
        *{place(path): path for path in paths if place(path) not in taken}.values()
    ]
    if more_paths:
        volumes = _of_named_channels(paths, more_paths, channels, match)
    elif channels:
        volumes = _of_channels(paths, channels)
    else:
        # Named as nnU-Net does, whose labels lack the number.
        name = unnumbered if {number_of(path) for path in paths} == {0} else stem
        volumes = [volume for path in paths for volume in _frames(path, name(path))]
    if len(channels) > 1 and volumes:
        read = [
            f"{channel}: {path}" + ("" if index is None else f" at {index}")
            for channel, (path, index) in zip(channels, volumes[0].read, strict=True)
        ]
        log.info("channels, of the first volume: %s", ", ".join(read))
    names = _names([volume.where for volume in volumes])
    return [
        case_of(f"{name}{volume.suffix}", name, volume.read, None)
        for name, volume in zip(names, volumes, strict=True)
    ]


class _Volume(NamedTuple):
    """What is read for a volume: of every channel the file and the index in it."""

    where: Path  # folder and name
    read: Sequence[tuple[Path, int | None]]
    suffix: str = ""  # of the name, for a frame


def _names(places: Sequence[Path]) -> list[str]:
    """Of the names alone where these differ, else with folders."""
    if len({safe_name(each.name) for each in places}) < len(set(places)):
        root = os.path.commonpath([each.absolute().parent for each in places])
        places = [each.absolute().relative_to(root) for each in places]
        return [safe_name(each.as_posix()) for each in places]
    return [safe_name(each.name) for each in places]


def _frames(path: Path, name: str) -> list[_Volume]:
    """The volumes, of one channel, of a file."""
    frames, where = num_frames(path), path.with_name(name)
    if frames == 1:
        return [_Volume(where, [(path, None)])]
    return [
        _Volume(where, [(path, index)], f"_frame{index:02d}") for index in range(frames)
    ]


def _of_channels(paths: Sequence[Path], channels: Sequence[Channel]) -> list[_Volume]:
    """Volumes of chosen channels: 4-D files, or files x_0000, x_0001 and so on."""
    volumes: list[_Volume] = []
    numbered: list[Path] = []
    for path in paths:
        where = path.with_name(stem(path))
        if num_frames(path) > 1:
            volumes.append(_Volume(where, _of_fourth_axis(path, channels)))
        elif number_of(path) is not None:
            numbered.append(path)
        elif len(channels) == 1:
            volumes.append(_Volume(where, [(path, None)]))
        else:
            raise UserError(
                f"{path} is one channel, but the run was trained on {len(channels)}:"
                f" {_listed(channels)}; name its files {stem(path)}_0000.nii.gz and so"
                " on, or give the others by --more_images."
            )
    for where, found in by_number(numbered).items():
        if len(channels) == len(found) == 1:  # one file, whatever its number
            volumes.append(_Volume(where, [(path, None) for path in found.values()]))
            continue
        wanted = _numbers(channels, sorted(found))
        lacking = [number for number in wanted if number not in found]
        if lacking or not wanted:
            first = next(iter(found.values()))
            raise UserError(
                f"{first}: the run was trained on {len(channels)} channel(s),"
                f" {_listed(channels)}, but the files {where.name}_* have the numbers"
                f" {_listed(sorted(found))}; give the same, or use --more_images."
            )
        volumes.append(_Volume(where, [(found[number], None) for number in wanted]))
    return volumes


def _of_fourth_axis(
    path: Path, channels: Sequence[Channel]
) -> list[tuple[Path, int | None]]:
    frames = num_frames(path)
    numbers = _numbers(channels, range(frames))
    if not numbers or max(numbers) >= frames:
        raise UserError(
            f"{path} has {frames} channels, but the run was trained on channel"
            f" {_listed(channels)}, counted from 0; give images like those of the"
            " training."
        )
    return [(path, number) for number in numbers]


def _numbers(channels: Sequence[Channel], there: Sequence[int]) -> Sequence[int]:
    """The numbers of the channels; of files without one those there, if as many."""
    numbers = [channel for channel in channels if isinstance(channel, int)]
    if numbers:
        return numbers
    return there if len(there) == len(channels) else ()


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _of_named_channels(
    paths: Sequence[Path],
    more_paths: Sequence[Sequence[Path]],
    channels: Sequence[Channel],
    match: str,
) -> list[_Volume]:
    """Volumes whose channels are files that belong together by their names."""
    if 1 + len(more_paths) != (len(channels) or 1):
        raise UserError(
            f"--more_images names {len(more_paths)} further channel(s), but the run was"
            f" trained on {len(channels) or 1} in all; name one folder or glob for each"
            " channel after the first, and quote globs."
        )
    if not paths:
        raise UserError("--images finds only files that --more_images finds too.")
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    further = [
        further_channel(
            list(paths),
            list(others),
            root=root,
            match=match,
            advice="give their files names that are alike, name them as nnU-Net does"
            " (x_0000.nii.gz, x_0001.nii.gz), or use --match",
        )
        for others in more_paths
    ]
    _, clean = further[0]
    return [
        _Volume(
            path.with_name(clean(path)),
            [(path, None), *((files[path], None) for files, _ in further)],
        )
        for path in paths
    ]
