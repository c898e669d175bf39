"""A batch embedded group by group: the same step in the memory of one group."""

import functools

import jax
import numpy as np
import optax
import pytest

from pclseg import augment, methods, models, parallel
from pclseg.train.step import init_state, make_train_step

ROWS, SIZE = 16, 16


def make(groups, in_turn, axis_name=parallel.AXIS, width=2):
    model = models.make(
        "unet2d_contrast",
        width=width,
        out_dim=8,
        dtype="float32",
        bn_groups=groups,
        axis_name=axis_name,
    )
    return methods.make(
        "simclr",
        model=model,
        augment=augment.make(name="none"),
        axis_name=axis_name,
        temperature=0.1,
        base_temperature=0.07,
        views="separate",
        groups_in_turn=in_turn,
        similarities="auto",
    )


def images(rows=ROWS):
    noise = np.random.default_rng(0).normal(size=(rows, SIZE, SIZE, 1))
    return {"image": noise.astype(np.float32)}


@functools.cache
def after_one_step(groups, in_turn, num_devices):
    """(state, metrics) after a step of SGD at a rate of 1: the gradient shows."""
    method, tx = make(groups, in_turn), optax.sgd(1.0)
    step = parallel.pmap_step(
        make_train_step(method, tx, parallel.AXIS), jax.devices()[:num_devices]
    )
    state = init_state(method, tx, jax.random.key(1), images())
    state, metrics = step(
        state, parallel.shard(images(), num_devices), jax.random.key(2)
    )
    return jax.device_get((state, metrics))


@pytest.mark.parametrize(
    ("groups", "num_devices"), [(1, 1), (4, 1), (4, 2), (4, 4)], ids=str
)
def test_groups_in_turn_take_the_step_of_all_groups_together(groups, num_devices):
    want = after_one_step(groups, in_turn=False, num_devices=1)
    have = after_one_step(groups, in_turn=True, num_devices=num_devices)
    leaves = zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_group_on_two_devices_is_refused():
    with pytest.raises(ValueError, match="bn_groups is 1; .* a multiple of the 2"):
        after_one_step(1, in_turn=True, num_devices=2)


def test_memory_in_turn_is_that_of_a_group():
    def temporary(groups, in_turn):
        method = make(groups, in_turn, axis_name=None)
        step = make_train_step(method, optax.sgd(1.0), None)
        batch = images(64)
        state = jax.eval_shape(
            lambda: init_state(method, optax.sgd(1.0), jax.random.key(1), batch)
        )
        compiled = jax.jit(step).lower(state, batch, jax.random.key(2)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(16, in_turn=True) < temporary(16, in_turn=False) / 4
