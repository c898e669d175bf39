"""Which slice, at which place, in which step: a pure function of seed and step."""

import dataclasses
import functools

import numpy as np

from pclseg.data.slices import PARTITIONS, SliceTable
from pclseg.data.slices import partition as height_class
from pclseg.errors import UserError

_MULTIPLE = 16  # the networks halve a slice four times
_ORDER, _CROP, _DRAW = 0, 1, 2  # streams of random numbers under one seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """The slices of one step.

    Attributes:
        volume: [B] int32, row of the volume in the prepared store.
        index: [B] int32, index of the slice in its volume, from 0.
        count: [B] int32, number of slices of that volume.
        top: [B] int32, first row of the crop in the slice padded to the crop's size.
        left: [B] int32, first column of the crop in that padded slice.
        slice: [B] int32, number of the slice in the plan's table.
        num_slices: [B] int32, slices of that table.
        partition: [B] int32 in 1..4, the quarter that the slice was drawn from; its
            height class, `slices.partition`, where sampling is "slices".
    """

    volume: np.ndarray
    index: np.ndarray
    count: np.ndarray
    top: np.ndarray
    left: np.ndarray
    slice: np.ndarray
    num_slices: np.ndarray
    partition: np.ndarray


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
        sampling: "slices", every slice once an epoch, or "partitions": batches of
            whole volumes, from each one slice of every quarter of its height, from
            below; Chaitanya et al. 2020, arXiv 2006.10511. Their epochs have as many
            steps as those of "slices".
        share: (i, n): `rows` are the i-th n-th of a batch, for one process of several.
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
    sampling: str
    last_batch: str
    share: tuple[int, int] = (0, 1)

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
        if self.sampling not in ("slices", "partitions"):
            raise UserError(
                f"data.sampling is {self.sampling!r}; expected 'slices' or"
                " 'partitions'."
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
        if self.sampling == "partitions":
            self._check_partitions()

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
        """The slices of step `step`, counted from 0 over all epochs; of the share."""
        if step < 0:
            raise ValueError(f"step is {step}; expected 0 or more.")
        draw = {"slices": self._slices, "partitions": self._partitions}
        item = draw[self.sampling](int(step))
        table = self.table
        size = np.stack([table.height[item], table.width[item]], axis=1)
        index, count = table.index[item], table.count[item]
        partition = {
            "slices": height_class(index, count),
            "partitions": (np.arange(len(item)) % PARTITIONS + 1).astype(np.int32),
        }
        top, left = self._crop_starts(step, size.astype(np.int64)).T
        number, of = self.share
        own = np.s_[number * len(item) // of : (number + 1) * len(item) // of]
        return Rows(
            volume=table.volume[item][own],
            index=index[own],
            count=count[own],
            top=top[own],
            left=left[own],
            slice=item.astype(np.int32)[own],
            num_slices=np.full(len(item), self.num_slices, np.int32)[own],
            partition=partition[self.sampling][own],
        )

    def _slices(self, step: int) -> np.ndarray:
        """[B] rows of the table, every one once an epoch."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        slots = batch * self.batch_size + np.arange(self.batch_size)
        item = slots % self.num_slices
        if self.shuffle:
            item = _epoch_order(self.seed, epoch, self.num_slices)[item]
        return item

    def _partitions(self, step: int) -> np.ndarray:
        """[B] rows of the table, volume after volume, PARTITIONS of each from below.

        A partition has floor(count / PARTITIONS) slices; what is left on top is never
        drawn, as in the authors' code. No volume is twice in a batch that has room for
        all: those that fill no batch of a pass are left out of that pass.
        """
        first, size = self._partitioned
        volumes = self.batch_size // PARTITIONS
        one_pass, batch = divmod(step, max(len(first) // volumes, 1))
        volume = (batch * volumes + np.arange(volumes)) % len(first)
        if self.shuffle:
            volume = _epoch_order(self.seed, one_pass, len(first))[volume]
        shape = (volumes, PARTITIONS)
        bits = _random_bits(self.seed, _DRAW, step, self.batch_size).reshape(shape)
        size = size[volume][:, None]
        start = first[volume][:, None] + size * np.arange(PARTITIONS)
        return (start + _choose(bits, size)).reshape(-1)

    @property
    def num_partitioned(self) -> int:
        """Volumes that "partitions" draws from: those of PARTITIONS slices or more."""
        return len(self._partitioned[0])

    @functools.cached_property
    def _partitioned(self) -> tuple[np.ndarray, np.ndarray]:
        """Of every volume that can be partitioned: its first row, slices a part."""
        first = np.flatnonzero(self.table.index == 0)
        size = self.table.count[first].astype(np.int64) // PARTITIONS
        return first[size > 0], size[size > 0]

    def _check_partitions(self) -> None:
        if self.batch_size % PARTITIONS:
            raise UserError(
                f"data.batch_size is {self.batch_size}; data.sampling='partitions'"
                f" needs a multiple of {PARTITIONS}, one slice of each a volume."
            )
        if not self.num_partitioned:
            raise UserError(
                "data.sampling is 'partitions', but no volume has"
                f" {PARTITIONS} slices or more; use data.sampling='slices'."
            )

    def _crop_starts(self, step: int, size: np.ndarray) -> np.ndarray:
        """[B, 2] int32 start of the crops in slices of `size`, [B, 2], once padded."""
        crop = np.asarray(self.crop_size, np.int64)
        padded = np.maximum(size, crop)
        if not self.random_crop:
            return (padded // 2 - crop // 2).astype(np.int32)
        bits = _random_bits(self.seed, _CROP, step, size.size).reshape(size.shape)
        return _choose(bits, padded - crop + 1).astype(np.int32)


def _check_crop_size(crop_size: tuple[int, int]) -> None:
    fits = [size > 0 and size % _MULTIPLE == 0 for size in crop_size]
    if len(fits) != 2 or not all(fits):
        near = tuple(max(round(size / _MULTIPLE), 1) * _MULTIPLE for size in crop_size)
        raise UserError(
            f"data.crop_size is {tuple(crop_size)}; expected two positive multiples of"
            f" {_MULTIPLE} (the networks halve a slice four times), such as {near}."
        )


def _choose(bits: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """int64 in 0..choices-1: the upper 32 bits as a fraction of 1, times the choices.

    Uniform to 2^-32.
    """
    scaled = (bits >> np.uint64(32)) * choices.astype(np.uint64)
    return (scaled >> np.uint64(32)).astype(np.int64)


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
