"""Images of several channels: which files, or places on a fourth axis, these are."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pclseg.data.datasets.base import Case, num_frames, stem
from pclseg.errors import UserError

OPTION = "config.data.options.channels"
# What a channel is called: its number on the fourth axis or at the end of the names of
# its files, as nnU-Net has it; of other files the pattern that found them.
Channel = int | str
_NUMBER = re.compile(r"_(\d{4})$")


def number_of(path: Path) -> int | None:
    """The channel that the name of a file ends in, as x_0001.nii.gz; None without."""
    found = _NUMBER.search(stem(path))
    return int(found[1]) if found else None


def unnumbered(path: Path) -> str:
    """The name of a file without .nii.gz and without its channel."""
    return _NUMBER.sub("", stem(path))


def checked_option(channels: object) -> tuple[int, ...]:
    """The option `channels` of a dataset.

    Raises:
        UserError: it is no list of different whole numbers from 0.
    """
    if not isinstance(channels, list | tuple) or not _are_numbers(channels):
        raise UserError(
            f"{OPTION} is {channels!r}; expected different numbers from 0, such as"
            " (0, 1), or () where images have one channel."
        )
    return tuple(channels)


def checked_saved(channels: object) -> tuple[Channel, ...]:
    """What a JSON file says of channels.

    Raises:
        ValueError: they are neither different numbers from 0 nor texts.
    """
    if isinstance(channels, list | tuple) and (
        _are_numbers(channels) or all(isinstance(each, str) for each in channels)
    ):
        return tuple(channels)
    raise ValueError(f"channels is {channels!r}")


def _are_numbers(channels: Sequence) -> bool:
    whole = all(type(channel) is int and channel >= 0 for channel in channels)
    return whole and len(set(channels)) == len(channels)


def of_file(path: Path, channels: Sequence[int]) -> list[tuple[Path, int | None]]:
    """File, and index on its fourth axis, of the chosen channels of a file.

    Args:
        path: NIfTI.
        channels: by number; () where it should have one.

    Raises:
        UserError: the file has other channels, or several and none is chosen.
    """
    count = num_frames(path)
    if count == 1 and len(channels) < 2:
        return [(path, None)]
    if not channels:
        raise UserError(
            f"{path} has {count} channels; choose with {OPTION}=(0,), or several."
        )
    if max(channels) >= count:
        raise UserError(
            f"{OPTION} is {tuple(channels)}, but {path} has {count} channel(s), counted"
            " from 0."
        )
    return [(path, channel) for channel in channels]


def by_number(paths: Iterable[Path]) -> dict[Path, dict[int, Path]]:
    """{folder/x: {channel: its file}} of files x_0000.nii.gz, x_0001.nii.gz.

    Raises:
        UserError: a file is not named like that, or two hold one channel.
    """
    found: dict[Path, dict[int, Path]] = {}
    for path in paths:
        number = number_of(path)
        if number is None:
            raise UserError(
                f"{path} should end in its channel, {stem(path)}_0000.nii.gz, as the"
                " other images do; rename it."
            )
        files = found.setdefault(path.with_name(unnumbered(path)), {})
        other = files.setdefault(number, path)
        if other != path:
            raise UserError(f"{other} and {path} hold the same channel; keep one.")
    return found


def names_of(
    patterns: Sequence[str], files: Sequence[Sequence[Path]]
) -> tuple[Channel, ...]:
    """What channels are called that are files of their own: numbers if all have one.

    Args:
        patterns: that found the files of each channel.
        files: of each channel.
    """
    firsts = [number_of(paths[0]) for paths in files]
    numbers = [number for number in firsts if number is not None]
    alike = all(
        number_of(path) == first
        for paths, first in zip(files, firsts, strict=True)
        for path in paths
    )
    if alike and len(set(numbers)) == len(files):
        return tuple(numbers)
    # Where the folders lie says nothing to others, and may say too much.
    return tuple("/".join(Path(pattern).parts[-2:]) for pattern in patterns)


def case_of(
    name: str,
    patient: str,
    channels: Sequence[tuple[Path, int | None]],
    label: Path | None,
) -> Case:
    """The case of an image by its channels.

    Args:
        name: of the case.
        patient: of the case.
        channels: file, and index on its fourth axis, of each.
        label: 3-D; or None.

    Raises:
        UserError: the label is 4-D.
    """
    if label is not None and num_frames(label) > 1:
        raise UserError(
            f"{label} is 4-D, but the fourth axis of images is said to be channels,"
            f" which share one label; give a 3-D label, or leave out {OPTION}."
        )
    (image, index), *more = channels
    return Case(
        name=name,
        patient=patient,
        frame="",
        image_path=image,
        label_path=label,
        time_index=index,
        more_channels=tuple(more),
    )
