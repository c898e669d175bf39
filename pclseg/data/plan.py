"""Which slice, at which place, in which step: a pure function of seed and step."""

import dataclasses
import functools

import numpy as np

from pclseg.data.slices import SliceTable
from pclseg.errors import UserError

_MULTIPLE = 16  # the networks halve a slice four times
_ORDER, _CROP = 0, 1  # streams of random numbers under one seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """The slices of one step.

    Attributes:
        volume: [B] int32, row of the volume in the prepared store.
        index: [B] int32, index of the slice in its volume, from 0.
        count: [B] int32, number of slices of that volume.
        top: [B] int32, first row of the crop in the slice padded to the crop's size.
        left: [B] int32, first column of the crop in that padded slice.
    """

    volume: np.ndarray
    index: np.ndarray
    count: np.ndarray
    top: np.ndarray
    left: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Order and crops of the slices of a stage.

    Every step is computed from its number alone, so a resumed run continues at no cost
    and every input pipeline serves the same batches.

    Attributes:
        table: the slices that take part.
        seed: 0 <= seed < 2^64.
        batch_size: slices per step.
        crop_size: (rows, columns) in pixels, multiples of 16.
        random_crop: crop at a uniformly random place, else in the centre.
        shuffle: a new order for every epoch, else the order of the table.
        last_batch: of an epoch: "drop" the slices that fill no batch, or "fill" up with
            the first slices of the same epoch's order. (The authors' fine-tuning has a
            smaller last batch; here the shape is static.)

    Raises:
        UserError: a value outside of these; no slice; "drop" leaves no batch.
    """

    table: SliceTable
    seed: int
    batch_size: int
    crop_size: tuple[int, int]
    random_crop: bool
    shuffle: bool
    last_batch: str

    def __post_init__(self) -> None:
        """Checks what a config can get wrong."""
        if not 0 <= self.seed < 2**64:
            raise UserError(f"config.seed is {self.seed}; expected 0 to 2^64 - 1.")
        if self.batch_size < 1:
            raise UserError(
                f"data.batch_size is {self.batch_size}; expected 1 or more."
            )
        _check_crop_size(self.crop_size)
        if self.last_batch not in ("drop", "fill"):
            raise UserError(
                f"data.last_batch is {self.last_batch!r}; expected 'drop' or 'fill'."
            )
        slices = self.num_slices
        if slices == 0:
            raise UserError(
                "no volume is left to train on, so there are no slices; check"
                " data.subset of the stage, config.data.split, and where"
                " config.data.options names the label files."
            )
        if self.last_batch == "drop" and slices < self.batch_size:
            raise UserError(
                f"data.batch_size is {self.batch_size}, but there are only {slices}"
                " slices and data.last_batch='drop' drops them all; set data.batch_size"
                f" to {slices} or less, or data.last_batch='fill'."
            )

    @property
    def num_slices(self) -> int:
        """Slices that take part."""
        return len(self.table)

    @property
    def num_volumes(self) -> int:
        """Volumes that take part."""
        return len(np.unique(self.table.volume))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        full, rest = divmod(self.num_slices, self.batch_size)
        return full + (rest > 0 and self.last_batch == "fill")

    def rows(self, step: int) -> Rows:
        """The slices of step `step`, counted from 0 over all epochs."""
        if step < 0:
            raise ValueError(f"step is {step}; expected 0 or more.")
        epoch, batch = divmod(int(step), self.steps_per_epoch)
        slots = batch * self.batch_size + np.arange(self.batch_size)
        item = slots % self.num_slices
        if self.shuffle:
            item = _epoch_order(self.seed, epoch, self.num_slices)[item]
        table = self.table
        size = np.stack([table.height[item], table.width[item]], axis=1)
        top, left = self._crop_starts(step, size.astype(np.int64)).T
        return Rows(
            volume=table.volume[item],
            index=table.index[item],
            count=table.count[item],
            top=top,
            left=left,
        )

    def _crop_starts(self, step: int, size: np.ndarray) -> np.ndarray:
        """[B, 2] int32 start of the crops in slices of `size`, [B, 2], once padded."""
        crop = np.asarray(self.crop_size, np.int64)
        padded = np.maximum(size, crop)
        if not self.random_crop:
            return (padded // 2 - crop // 2).astype(np.int32)
        bits = _random_bits(self.seed, _CROP, step, size.size).reshape(size.shape)
        choices = (padded - crop + 1).astype(np.uint64)
        # The upper 32 bits as a fraction of 1, times the choices: uniform to 2^-32.
        return ((bits >> np.uint64(32)) * choices >> np.uint64(32)).astype(np.int32)


def _check_crop_size(crop_size: tuple[int, int]) -> None:
    fits = [size > 0 and size % _MULTIPLE == 0 for size in crop_size]
    if len(fits) != 2 or not all(fits):
        near = tuple(max(round(size / _MULTIPLE), 1) * _MULTIPLE for size in crop_size)
        raise UserError(
            f"data.crop_size is {tuple(crop_size)}; expected two positive multiples of"
            f" {_MULTIPLE} (the networks halve a slice four times), such as {near}."
        )


def _random_bits(seed: int, stream: int, number: int, size: int) -> np.ndarray:
    """[size] uint64, the same for the same arguments on every machine and NumPy.

    NumPy keeps the raw output of its bit generators fixed, but not what `Generator`
    derives from it.
    """
    key = np.array([seed, stream], np.uint64)
    counter = np.array([0, 0, number, 0], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(size)


@functools.lru_cache(maxsize=4)  # the steps of an epoch share their order
def _epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """[size] permutation of 0..size-1; ties, once in 2^64 pairs, keep their order."""
    order = np.argsort(_random_bits(seed, _ORDER, epoch, size), kind="stable")
    order.setflags(write=False)
    return order
