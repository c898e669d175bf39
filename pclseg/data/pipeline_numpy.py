"""Batches of a plan without TensorFlow, assembled ahead in a background thread."""

import collections
import concurrent.futures
from collections.abc import Collection, Generator
from typing import TYPE_CHECKING

import numpy as np

from pclseg.batch import KEYS
from pclseg.data.plan import Plan, Rows
from pclseg.data.slices import Pixels, attributes, load_pixels

if TYPE_CHECKING:
    from pclseg.data.tfds_store import Store


def make(
    *,
    store: "Store",
    plan: Plan,
    keys: Collection[str],
    first_step: int,
    num_steps: int,
    prefetch: int,
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches of steps first_step..first_step+num_steps-1 of `plan`.

    The volumes of the plan are read once, now, and stay in host memory (4 bytes per
    voxel and channel, labels 1 more) while the iterator lives. Closing it ends its
    thread.

    Args:
        store: prepared store that the plan's table was made from.
        plan: which slices, at which place.
        keys: of `pclseg.batch.KEYS`.
        first_step: 0 or more; resuming there costs nothing.
        num_steps: number of batches.
        prefetch: batches to assemble ahead, 1 or more.

    Yields:
        {key: array} with the dtypes and shapes of `pclseg.batch.KEYS`.

    Raises:
        UserError: labels are asked for and a volume has none.
        ValueError: unknown key; `prefetch` below 1.
    """
    check_arguments(keys, prefetch)
    pixels = load_pixels(store, plan.table.volume, label="label" in keys)
    return _batches(pixels, plan, frozenset(keys), first_step, num_steps, prefetch)


def check_arguments(keys: Collection[str], prefetch: int) -> None:
    """Raises ValueError for keys outside of the batch contract, or no `prefetch`."""
    unknown = sorted(set(keys) - set(KEYS))
    if unknown:
        raise ValueError(f"unknown batch keys {unknown}; known are {sorted(KEYS)}.")
    if prefetch < 1:
        raise ValueError(f"prefetch is {prefetch}; expected 1 or more.")


def _batches(
    pixels: Pixels,
    plan: Plan,
    keys: frozenset[str],
    first_step: int,
    num_steps: int,
    prefetch: int,
) -> Generator[dict[str, np.ndarray], None, None]:
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        for step in range(first_step, first_step + num_steps):
            pending.append(thread.submit(_batch, pixels, plan, keys, step))
            if len(pending) > prefetch:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


def _batch(
    pixels: Pixels, plan: Plan, keys: frozenset[str], step: int
) -> dict[str, np.ndarray]:
    rows = plan.rows(step)
    batch = attributes(rows, keys)
    if "image" in keys:
        image = _crop(pixels.image, pixels, rows, plan.crop_size, np.float32)
        batch["image"] = image
    if pixels.label is not None:  # loaded only if asked for
        batch["label"] = _crop(pixels.label, pixels, rows, plan.crop_size, np.int32)
    return batch


def _crop(
    flat: np.ndarray,
    pixels: Pixels,
    rows: Rows,
    crop_size: tuple[int, int],
    dtype: type[np.generic],
) -> np.ndarray:
    """[B, *crop_size, ...] crops of the slices `rows`, smaller ones centred on 0.

    Pixels of `flat`, [P, ...], are numbers, or one a channel.

    An axis shorter than the crop is padded to it, floor(missing / 2) before the slice,
    and is then taken whole; a longer one is not padded.
    """
    out = np.zeros((len(rows.volume), *crop_size, *flat.shape[1:]), dtype)
    first = pixels.first_pixel(rows.volume, rows.index)
    height, width = pixels.height[rows.volume], pixels.width[rows.volume]
    for item in range(len(out)):
        size = height[item], width[item]
        plane = flat[first[item] : first[item] + size[0] * size[1]]
        plane = plane.reshape(*size, *flat.shape[1:])
        kept = plane[rows.top[item] :, rows.left[item] :][
            : crop_size[0], : crop_size[1]
        ]
        down, right = ((crop_size[axis] - kept.shape[axis]) // 2 for axis in (0, 1))
        place = np.s_[down : down + kept.shape[0], right : right + kept.shape[1]]
        out[item][place] = kept
    return out
