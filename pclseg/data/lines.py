"""Slices in one array of pixel rows, from which a device cuts its own batches."""

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from pclseg.data.plan import Plan
from pclseg.data.slices import attributes, check_labelled

if TYPE_CHECKING:
    from pclseg.data.tfds_store import Store

# dtypes of pixels in memory; those of whole numbers come with a scale a volume
DTYPES = ("float32", "float16", "int16", "uint8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines:
    """The slices of a plan below each other, each padded to the plan's crop.

    A slice smaller than the crop stands in the middle of zeros, floor(missing / 2)
    before it, so that every crop of the plan is one rectangle of `image`.

    Attributes:
        image: [L, W, C] of one of DTYPES; grey value = scale * (pixel - zero).
        label: [L, W] uint8 or uint16, or None.
        start: [V] int64 by store row, first line of the volume; -1 if not loaded.
        height: [V] int64 by store row, lines of a slice.
        scale: [V, C] float32 by store row.
        zero: [V, C] int32 by store row.
    """

    image: np.ndarray
    label: np.ndarray | None
    start: np.ndarray
    height: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    def places(
        self, plan: Plan, keys: Collection[str], step: int
    ) -> dict[str, np.ndarray]:
        """What a device needs for a batch.

        Args:
            plan: that these lines were loaded for.
            keys: of `pclseg.batch.KEYS`.
            step: of the plan.

        Returns:
            The attributes of the slices, and of every crop its first "line" and
            "column", [B] int32 each, and of its channels the "zero", [B, C] int32, and
            "scale", [B, C] float32.
        """
        rows = plan.rows(step)
        line = self.start[rows.volume] + rows.index * self.height[rows.volume]
        return {
            **attributes(rows, keys),
            "line": (line + rows.top).astype(np.int32),
            "column": rows.left,
            "scale": self.scale[rows.volume],
            "zero": self.zero[rows.volume],
        }


def load_lines(store: "Store", plan: Plan, *, label: bool, dtype: str) -> Lines:
    """Reads the volumes of a plan once.

    Args:
        store: prepared store that the plan's table was made from.
        plan: whose slices and crop size.
        label: whether to keep the labels.
        dtype: one of DTYPES: "float32" is exact, "float16" rounds to 11 bits, and
            "int16" and "uint8" to 65,535 and 255 steps from the least to the largest
            grey value of the volume, of each channel.

    Raises:
        UserError: a label is asked for and a volume has none.
    """
    rows = sorted(set(plan.table.volume.tolist()))
    if label:
        check_labelled(store, rows)
    crop_height, crop_width = plan.crop_size
    shapes = np.array([info.shape for info in store.infos], np.int64).reshape(-1, 3)
    height = np.maximum(shapes[:, 1], crop_height)
    lines = shapes[rows, 0] * height[rows]
    start = np.full(len(shapes), -1, np.int64)
    start[rows] = np.cumsum(lines) - lines
    size = int(lines.sum()), int(max(crop_width, *shapes[rows, 2]))
    image = np.zeros((*size, store.infos[rows[0]].channels), dtype)
    label_dtype = np.uint8 if len(store.class_names) <= 256 else np.uint16
    labels = np.zeros(size, label_dtype) if label else None
    of_volumes = len(shapes), image.shape[-1]
    scale, zero = np.ones(of_volumes, np.float32), np.zeros(of_volumes, np.int32)
    for row, number in zip(rows, lines, strict=True):
        volume = store.volume(row)
        place = slice(start[row], start[row] + number)
        for channel in range(image.shape[-1]):
            at = row, channel
            pixels, scale[at], zero[at] = _in_steps(volume.image[..., channel], dtype)
            own = image[place, :, channel]
            own[...] = zero[at]
            _put(own, pixels, int(height[row]), crop_width)
        if labels is not None:
            _put(labels[place], np.asarray(volume.label), int(height[row]), crop_width)
    return Lines(
        image=image,
        label=labels,
        start=start,
        height=height,
        scale=scale,
        zero=zero,
    )


def _in_steps(image: np.ndarray, dtype: str) -> tuple[np.ndarray, float, int]:
    """(pixels of `dtype`, scale, zero): image is about scale * (pixels - zero)."""
    if np.issubdtype(dtype, np.floating):
        return image.astype(dtype), 1.0, 0
    limits = np.iinfo(dtype)
    # What slices are padded with is one of the steps, and so stays what it is.
    least, most = min(float(image.min()), 0.0), max(float(image.max()), 0.0)
    scale = (most - least) / (limits.max - limits.min) or 1.0
    zero = int(limits.min - np.round(least / scale))
    pixels = np.clip(np.round(image / scale) + zero, limits.min, limits.max)
    return pixels.astype(dtype), scale, zero


def _put(lines: np.ndarray, slices: np.ndarray, height: int, crop_width: int) -> None:
    """Writes slices [Z, H, W] into their lines, [Z * height, >= W]."""
    # A view: only the first axis, which is of even steps, is divided.
    place = lines.reshape(len(slices), height, lines.shape[1])
    down = (height - slices.shape[1]) // 2
    right = max(crop_width - slices.shape[2], 0) // 2
    place[:, down : down + slices.shape[1], right : right + slices.shape[2]] = slices
