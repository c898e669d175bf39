"""Batches of a plan by tf.data: sliced, padded and cropped in TensorFlow's threads."""

from collections.abc import Collection, Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from pclseg.data._tf import tf
from pclseg.data.pipeline_numpy import check_arguments
from pclseg.data.plan import Plan
from pclseg.data.slices import Pixels, attributes, load_pixels

if TYPE_CHECKING:
    from pclseg.data.tfds_store import Store

_PLACE = ("first", "height", "width", "top", "left")  # of a crop, int64


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
    voxel and channel, labels 1 more) while the iterator lives; TensorFlow reads them in
    place.

    Args:
        store: prepared store that the plan's table was made from.
        plan: which slices, at which place.
        keys: of `pclseg.batch.KEYS`.
        first_step: 0 or more; resuming there costs nothing.
        num_steps: number of batches.
        prefetch: batches to assemble ahead, 1 or more.

    Yields:
        {key: array} with the dtypes and shapes of `pclseg.batch.KEYS`, bit for bit as
        from `pipeline_numpy`.

    Raises:
        UserError: TensorFlow is missing; labels are asked for and a volume has none.
        ValueError: unknown key; `prefetch` below 1.
    """
    check_arguments(keys, prefetch)
    pixels = load_pixels(store, plan.table.volume, label="label" in keys)
    dataset = _dataset(pixels, plan, frozenset(keys), first_step, num_steps)
    return _batches(dataset.prefetch(prefetch).with_options(_options()))


def _batches(
    dataset: "tf.data.Dataset",
) -> Generator[dict[str, np.ndarray], None, None]:
    batches: Any = dataset.as_numpy_iterator()
    yield from batches


def _options() -> "tf.data.Options":
    """Without the thread that tunes parallelism anew every while.

    There is nothing to tune: the pipeline waits for the device. But the thread sleeps
    for up to a minute, and an iterator that is let go waits until it wakes.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _dataset(
    pixels: Pixels, plan: Plan, keys: frozenset[str], first_step: int, num_steps: int
) -> "tf.data.Dataset":
    image = _shared(pixels.image) if "image" in keys else None
    label = _shared(pixels.label) if pixels.label is not None else None

    def cut(slice_):
        place = {key: slice_[key] for key in _PLACE}
        out = {key: slice_[key] for key in keys - {"image", "label"}}
        if image is not None:
            out["image"] = _crop(image, plan.crop_size, **place)
        if label is not None:
            out["label"] = tf.cast(_crop(label, plan.crop_size, **place), tf.int32)
        return out

    slices = tf.data.Dataset.range(first_step, first_step + num_steps)
    slices = slices.map(_read_plan(pixels, plan, keys)).unbatch()
    slices = slices.map(cut, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return slices.batch(len(plan.rows(0).volume), drop_remainder=True)


def _read_plan(pixels: Pixels, plan: Plan, keys: frozenset[str]):
    """A TensorFlow function: step -> {key: [B, ...]}, what the plan says of it."""

    def read(step):
        rows = plan.rows(int(step))
        place = (
            pixels.first_pixel(rows.volume, rows.index),
            pixels.height[rows.volume],
            pixels.width[rows.volume],
            rows.top.astype(np.int64),
            rows.left.astype(np.int64),
        )
        return {**attributes(rows, keys), **dict(zip(_PLACE, place, strict=True))}

    example = read(0)

    def read_in_graph(step):
        types = [tf.as_dtype(value.dtype) for value in example.values()]
        values = tf.numpy_function(lambda s: list(read(s).values()), [step], types)
        for value, known in zip(values, example.values(), strict=True):
            value.set_shape(known.shape)
        return dict(zip(example, values, strict=True))

    return read_in_graph


def _shared(array: np.ndarray):
    """A tensor in the memory of `array`, where `tf.constant` would copy it."""
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _crop(flat, crop_size: tuple[int, int], *, first, height, width, top, left):
    """[*crop_size, ...] of the plane [height, width, ...] that begins at `flat[first]`.

    An axis shorter than the crop is padded to it with 0, floor(missing / 2) before the
    slice, and is then taken whole; a longer one is not padded.
    """
    rows = tf.minimum(height, crop_size[0])
    columns = tf.minimum(width, crop_size[1])
    channels = flat.shape[1:]  # none of labels
    first += top * width
    strip = flat[first : first + rows * width]
    kept = tf.reshape(strip, [rows, width, *channels])[:, left : left + columns]
    down, right = (crop_size[0] - rows) // 2, (crop_size[1] - columns) // 2
    after = crop_size[0] - rows - down, crop_size[1] - columns - right
    around = [[down, after[0]], [right, after[1]], *([0, 0] for _ in channels)]
    return tf.ensure_shape(tf.pad(kept, around), (*crop_size, *channels))
