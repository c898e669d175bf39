"""Slices of volumes: where they lie along the body axis, and their pixels in memory."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from pclseg.errors import UserError

if TYPE_CHECKING:
    from pclseg.data.plan import Rows
    from pclseg.data.tfds_store import CaseInfo, Store

PARTITIONS = 4


def position(index: ArrayLike, count: ArrayLike) -> np.ndarray:
    """Height of a slice in its volume, (index + 1) / count; the last slice is at 1.

    Args:
        index: integers, index of the slice in its volume, from 0.
        count: integers, number of slices of that volume.

    Returns:
        float64 in (0, 1], of the broadcast shape.
    """
    return (np.asarray(index, np.float64) + 1.0) / np.asarray(count, np.float64)


def position_bits(position: ArrayLike) -> np.ndarray:
    """A float64 position as three unsigned words, for devices that have no float64.

    position = words[0] * 2^-31 + words[1] * 2^-63 + words[2] * 2^-95, exactly for every
    double in [2^-43, 1], as the last bit of such a one weighs 2^-95 or more. Slices of
    any int32 count lie well inside.

    Args:
        position: float64 in (0, 1].

    Returns:
        uint32 [..., 3].
    """
    rest = np.asarray(position, np.float64) * 2.0**31
    words = []
    for _ in range(3):
        word = np.floor(rest)
        words.append(word.astype(np.uint32))
        rest = (rest - word) * 2.0**32
    return np.stack(words, axis=-1)


def partition(index: ArrayLike, count: ArrayLike, *, even: bool = False) -> np.ndarray:
    """Which of four height classes a slice belongs to, counted from 1.

    As in the authors' code of PCL, classes are count / 4 slices high, rounded half up,
    and the last class takes what is left: some counts (2, 3, 6) leave it empty. One
    slice, where their code divides by zero, is in class 1.

    Args:
        index: integers, index of the slice in its volume, from 0.
        count: integers, number of slices of that volume.
        even: 1 + floor(4 * index / count) instead; sizes differ by one slice at most.

    Returns:
        int32 in 1..4, of the broadcast shape.
    """
    index, count = np.asarray(index, np.int64), np.asarray(count, np.int64)
    if even:
        return (1 + PARTITIONS * index // count).astype(np.int32)
    size = np.maximum((count + PARTITIONS // 2) // PARTITIONS, 1)
    return (np.minimum(index // size, PARTITIONS - 1) + 1).astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceTable:
    """All slices of some volumes, volume after volume, each from its first slice on.

    Attributes:
        volume: [N] int32, row of the volume in the prepared store.
        index: [N] int32, index of the slice in its volume, from 0.
        count: [N] int32, number of slices of that volume.
        height: [N] int32, rows of the slice, in pixels.
        width: [N] int32, columns of the slice, in pixels.
    """

    volume: np.ndarray
    index: np.ndarray
    count: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.volume)


def slice_table(infos: Sequence["CaseInfo"], rows: Sequence[int]) -> SliceTable:
    """The slices of the volumes `rows`, in that order.

    Args:
        infos: of the prepared store, one per volume; `shape` (Z, H, W) is read.
        rows: rows of the store, each in 0..len(infos)-1.
    """
    shapes = np.array([infos[row].shape for row in rows], np.int32).reshape(-1, 3)
    count, height, width = (np.repeat(size, shapes[:, 0]) for size in shapes.T)
    index = [np.arange(slices, dtype=np.int32) for slices in shapes[:, 0]]
    return SliceTable(
        volume=np.repeat(np.asarray(rows, np.int32), shapes[:, 0]),
        index=np.concatenate([np.zeros(0, np.int32), *index]),
        count=count,
        height=height,
        width=width,
    )


def attributes(rows: "Rows", keys: Collection[str]) -> dict[str, np.ndarray]:
    """What a batch says of its slices beside their pixels.

    Args:
        rows: slices of a step.
        keys: of `pclseg.batch.KEYS`; "image" and "label" are left to the pipelines.
    """
    makers = {
        "volume": lambda: rows.volume,
        "index": lambda: rows.index,
        "count": lambda: rows.count,
        "position_bits": lambda: position_bits(position(rows.index, rows.count)),
        "partition": lambda: rows.partition,
        "slice": lambda: rows.slice,
        "num_slices": lambda: rows.num_slices,
    }
    return {key: make() for key, make in makers.items() if key in keys}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """Volumes end to end in host memory; the plane of a slice is a range of pixels.

    Attributes:
        image: [P, C] float32.
        label: [P] uint8, or uint16 with more than 256 classes; None if not asked for.
        start: [V] int64 by store row, first pixel of the volume; -1 if not loaded.
        height: [V] int64 by store row.
        width: [V] int64 by store row.
    """

    image: np.ndarray
    label: np.ndarray | None
    start: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def first_pixel(self, volume: np.ndarray, index: np.ndarray) -> np.ndarray:
        """[B] int64, where the planes of the slices `index` of `volume`, [B], begin."""
        return self.start[volume] + index * (self.height[volume] * self.width[volume])


def load_pixels(store: "Store", rows: Iterable[int], *, label: bool) -> Pixels:
    """Reads volumes once into host memory.

    4 bytes per voxel and channel, 1 (or 2) more per voxel with labels.

    Args:
        store: prepared store.
        rows: rows of the store; repeated ones are read once.
        label: whether to keep the labels.

    Raises:
        UserError: a label is asked for and a volume has none.
    """
    rows = sorted({int(row) for row in rows})
    if label:
        check_labelled(store, rows)
    shapes = np.array([info.shape for info in store.infos], np.int64).reshape(-1, 3)
    sizes = shapes[rows].prod(axis=1)
    start = np.full(len(shapes), -1, np.int64)
    start[rows] = np.cumsum(sizes) - sizes
    channels = store.infos[rows[0]].channels if rows else 1
    image = _aligned(int(sizes.sum()) * channels, np.float32).reshape(-1, channels)
    label_dtype = np.uint8 if len(store.class_names) <= 256 else np.uint16
    labels = _aligned(int(sizes.sum()), label_dtype) if label else None
    for row, size in zip(rows, sizes, strict=True):
        volume = store.volume(row)
        place = slice(start[row], start[row] + size)
        image[place] = volume.image.reshape(-1, channels)
        if labels is not None:
            labels[place] = np.asarray(volume.label).reshape(-1)
    return Pixels(
        image=image,
        label=labels,
        start=start,
        height=shapes[:, 1],
        width=shapes[:, 2],
    )


def check_labelled(store: "Store", rows: Sequence[int]) -> None:
    """Raises UserError unless all volumes `rows` of the store have labels."""
    unlabelled = [
        store.infos[row].name for row in rows if not store.infos[row].labelled
    ]
    if unlabelled:
        raise UserError(
            f"{len(unlabelled)} of {len(rows)} volumes have no label, the first is"
            f" {unlabelled[0]!r}, but this stage trains on labels; take labelled"
            " volumes (data.subset of the stage) or a method without labels."
        )


def _aligned(size: int, dtype: DTypeLike) -> np.ndarray:
    """Empty [size] at a multiple of 64 bytes, so that TensorFlow can share it."""
    length = size * np.dtype(dtype).itemsize
    buffer = np.empty(length + 64, np.uint8)
    skip = -buffer.ctypes.data % 64
    return buffer[skip : skip + length].view(dtype)
