"""The one file that knows of several devices: pmap, collectives, sharding of a batch.

Inside a step, `axis_name=None` means one device without pmap; every function here then
is the identity or its one-device meaning, so losses and methods are written once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AXIS = "devices"


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of this process."""
    return [d for d in devices if d.process_index == jax.process_index()]


def pmap_step(step: Callable, devices: Sequence[jax.Device]) -> Callable:
    """Maps `step(state, batch, key) -> (state, metrics)` over `devices` by pmap.

    State and metrics carry no device axis (they must come out equal on all devices,
    which `all_mean` and `all_gather` ensure); the batch is split by `shard`; the state
    is donated.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, None),
        devices=list(devices),
        donate_argnums=(0,),
    )


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Places every leaf whole on every device, as `pmap_step` returns its state.

    Placed otherwise, the first step is compiled, and perhaps rounded, unlike the rest.
    Of several processes each places it on its own devices.
    """
    mesh = jax.sharding.Mesh(np.asarray(local(devices)), (AXIS,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(tree, everywhere)


def pmap_shares(
    function: Callable, devices: Sequence[jax.Device], *, others: int = 0
) -> Callable:
    """Maps `function(whole, batch, *others)`; batch and result are as of `shard`."""
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(None, 0, *(None for _ in range(others))),
        devices=list(devices),
    )


def shard(batch: Any, num_devices: int) -> Any:
    """Reshapes every leaf [B, ...] to [num_devices, B / num_devices, ...]."""
    return jax.tree.map(
        lambda x: np.reshape(x, (num_devices, len(x) // num_devices, *x.shape[1:])),
        batch,
    )


def all_mean(tree: Any, axis_name: str | None) -> Any:
    """Mean of every leaf over the devices."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def all_gather(tree: Any, axis_name: str | None) -> Any:
    """Concatenates the rows of all devices, in device order; differentiable.

    The transposed operation sums the gradients of all devices, so an embedding that
    other devices used as a key receives their part too.
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def of_first(tree: Any, axis_name: str | None) -> Any:
    """Every leaf as the first device has it."""
    if axis_name is None:
        return tree
    mine = device_index(axis_name) == 0
    return jax.tree.map(lambda x: jax.lax.psum(jnp.where(mine, x, 0), axis_name), tree)


def pass_on(tree: Any, axis_name: str | None) -> Any:
    """Gives every leaf to the next device of a ring; the last gives to the first."""
    size = num_devices(axis_name)
    if axis_name is None or size == 1:
        return tree
    ring = [(device, (device + 1) % size) for device in range(size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis_name, ring), tree)


def device_index(axis_name: str | None) -> jax.Array:
    """int32 scalar: which device this is, from 0."""
    return jnp.int32(0) if axis_name is None else jax.lax.axis_index(axis_name)


def num_devices(axis_name: str | None) -> int:
    """Number of devices of the step."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def row_ids(num_rows: int, axis_name: str | None) -> jax.Array:
    """[num_rows] int32: rows of this device as counted over all devices."""
    return device_index(axis_name) * num_rows + jnp.arange(num_rows, dtype=jnp.int32)
