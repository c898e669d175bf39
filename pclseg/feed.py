"""What training is fed with: batches of a host pipeline, or cut on the devices."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pclseg import parallel
from pclseg.batch import UNLABELLED
from pclseg.data import make_batches
from pclseg.data.lines import Lines, load_lines
from pclseg.data.plan import Plan
from pclseg.data.tfds_store import Store
from pclseg.errors import UserError

log = logging.getLogger(__name__)

Array = jax.Array
HostBatch = Mapping[str, np.ndarray]
_PLACES = ("line", "column", "zero", "scale")  # of a crop, see `Lines.places`
_ROOM = 0.8  # of the free memory of a device, for slices


class Feed(NamedTuple):
    """Batches of a stage, step by step.

    Attributes:
        batches: of the host.
        place: from one of them to what the method sees of it, with the axis of
            `parallel.shard`.
    """

    batches: Iterator[HostBatch]
    place: Callable[[HostBatch], dict[str, Array]]


def host_feed(pipeline: str, *, devices: Sequence[jax.Device], **kwargs) -> Feed:
    """Batches that the host has cut.

    Args:
        pipeline: "tf" or "numpy".
        devices: to split the rows among.
        **kwargs: of `data.make_batches`.
    """
    batches = make_batches(pipeline, prefetch=4, **kwargs)
    number = len(parallel.local(devices))
    return Feed(batches, lambda batch: parallel.shard(dict(batch), number))


class _Stream(NamedTuple):
    plan: Plan
    keys: Collection[str]
    lines: Lines

    def without_pixels(self) -> "_Stream":
        nothing = np.empty((0, 0, 0), self.lines.image.dtype)
        lines = dataclasses.replace(self.lines, image=nothing, label=None)
        return self._replace(lines=lines)


def device_feed(
    *,
    store: Store,
    plan: Plan,
    unlabelled: Plan | None,
    keys: Collection[str],
    first_step: int,
    num_steps: int,
    devices: Sequence[jax.Device],
    dtype: str,
) -> Feed:
    """Batches cut on the devices, each of which keeps all slices of the stage.

    Args:
        store: prepared store that the plans were made from.
        plan: of the keys without the prefix UNLABELLED.
        unlabelled: of those with it; None where there are none.
        keys: of `pclseg.batch.KEYS`.
        first_step: 0 or more.
        num_steps: number of batches.
        devices: to split the rows among.
        dtype: of the pixels that are kept, one of `data.lines.DTYPES`; with "float32"
            the batches are those of the host, bit for bit.

    Raises:
        UserError: labels are asked for and a volume has none; the slices do not fit.
    """
    plans = {"": plan} | ({UNLABELLED: unlabelled} if unlabelled else {})
    streams = {}
    for prefix, own_plan in plans.items():
        own = {key for key in keys if key.startswith(UNLABELLED) == bool(prefix)}
        own = {key.removeprefix(prefix) for key in own}
        lines = load_lines(store, own_plan, label="label" in own, dtype=dtype)
        streams[prefix] = _Stream(own_plan, own, lines)
    held = {prefix: _pixels(stream.lines) for prefix, stream in streams.items()}
    size = sum(x.nbytes for x in jax.tree.leaves(held))
    _check_room(size, parallel.local(devices), dtype)
    held = parallel.replicate(held, devices)
    # The host needs where slices lie, not their pixels, which the devices have now.
    streams = {prefix: stream.without_pixels() for prefix, stream in streams.items()}

    def cut(held: Mapping, batch: Mapping[str, Array]) -> dict[str, Array]:
        out = {
            key: value
            for key, value in batch.items()
            if key.removeprefix(UNLABELLED) not in _PLACES
        }
        for prefix, stream in streams.items():
            place = {name: batch[prefix + name] for name in _PLACES}
            crops = _crops(held[prefix], place, stream.plan.crop_size)
            out |= {prefix + key: crop for key, crop in crops.items()}
        return out

    def batches() -> Iterator[HostBatch]:
        for step in range(first_step, first_step + num_steps):
            yield {
                prefix + key: value
                for prefix, stream in streams.items()
                for key, value in stream.lines.places(
                    stream.plan, stream.keys, step
                ).items()
            }

    cut_shares = parallel.pmap_shares(cut, devices)
    number = len(parallel.local(devices))
    return Feed(
        batches(),
        lambda batch: cut_shares(held, parallel.shard(dict(batch), number)),
    )


def _pixels(lines: Lines) -> dict[str, np.ndarray]:
    label = {} if lines.label is None else {"label": lines.label}
    return {"image": lines.image, **label}


def _crops(
    held: Mapping[str, Array], place: Mapping[str, Array], crop_size: tuple[int, int]
) -> dict[str, Array]:
    """Crops "image", [B, *crop_size, C] float32, and "label", int32, if it is held."""

    def rectangles(pixels: Array) -> Array:
        def one(line: Array, column: Array) -> Array:
            first = (line, column, *(0 for _ in pixels.shape[2:]))
            size = (*crop_size, *pixels.shape[2:])
            return jax.lax.dynamic_slice(pixels, first, size)

        return jax.vmap(one)(place["line"], place["column"])

    def each(values: Array) -> Array:
        return values.astype(jnp.float32)[:, None, None]

    image = rectangles(held["image"])
    steps = jnp.issubdtype(image.dtype, jnp.integer)
    image = image.astype(jnp.float32)
    if steps:
        image = each(place["scale"]) * (image - each(place["zero"]))
    crops = {"image": image}
    if "label" in held:
        crops["label"] = rectangles(held["label"]).astype(jnp.int32)
    return crops


def _check_room(size: int, devices: Sequence[jax.Device], dtype: str) -> None:
    """Raises UserError unless `size` bytes fit into every device that tells."""
    for device in devices:
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            continue
        room = _ROOM * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
        if size > room:
            smaller = "" if dtype == "uint8" else " --config.data.device_dtype=uint8 or"
            raise UserError(
                f"config.data.pipeline is 'device', but the slices of a stage take"
                f" {size / 2**30:.1f} GiB as {dtype} of {room / 2**30:.1f} GiB on"
                f" {device}; set{smaller} --config.data.pipeline=numpy."
            )
    log.info("%.0f MiB of slices are kept on every device", size / 2**20)
