"""The U-Net of SSL4MIS: its sizes and layers; methods on it are in test_methods."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pclseg import models, parallel
from pclseg.errors import UserError
from pclseg.models import layers

COMMON = dict(dtype="float32", bn_groups=1, backbone="ssl4mis")


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_it_has_the_number_of_parameters_of_the_specification():
    model = models.make("unet2d", width=16, num_classes=4, **COMMON)
    image = jax.ShapeDtypeStruct((1, 256, 256, 1), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), image
    )
    assert count(shapes["params"]) == 1_813_764
    assert set(shapes["params"]) == {"encoder", "decoder"}


def test_logits_of_bfloat16_features_are_not_rounded_to_bfloat16():
    model = models.make(
        "unet2d", width=2, num_classes=4, **(COMMON | {"dtype": "bfloat16"})
    )
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 1))
    variables = model.init(jax.random.key(0), image, train=False)
    logits = model.apply(variables, image, train=False)
    assert logits.dtype == jnp.float32
    rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
    assert (logits != rounded).mean() > 0.9


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 4), (16, 8)])
def test_twice_the_size_is_linear_between_corners(shape):
    values = np.random.default_rng(0).normal(size=(2, *shape, 3))
    found = layers.double_size(jnp.asarray(values, jnp.float32))

    def along(values, axis):
        size = values.shape[axis]
        places = np.linspace(0, size - 1, 2 * size)
        return np.apply_along_axis(
            lambda row: np.interp(places, np.arange(size), row), axis, values
        )

    expected = along(along(values, 1), 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dropout_keeps_the_mean_and_draws_by_row_of_the_global_batch():
    x = jnp.ones((8, 16, 16, 4))
    key = jax.random.key(3)

    def drop(axis_name):
        layer = layers.Dropout(0.3, axis_name)
        return lambda x: layer.apply({}, x, train=True, rngs={"dropout": key})

    whole = drop(None)(x)
    assert set(np.unique(whole)) == {np.float32(0), np.float32(1 / 0.7)}
    np.testing.assert_allclose(whole.mean(), 1, atol=0.02)
    assert not np.array_equal(whole[0], whole[1])
    shares = jax.pmap(drop("devices"), axis_name="devices")(parallel.shard(x, 4))
    np.testing.assert_array_equal(shares.reshape(x.shape), whole)
    layer = layers.Dropout(0.3, None)
    np.testing.assert_array_equal(layer.apply({}, x, train=False), x)


def test_weights_start_as_those_of_pytorch():
    layer = layers.conv3x3(64, dtype="float32", name="conv", fan_in=9 * 32)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))["params"]
    for leaf in (params["kernel"], params["bias"]):
        limit = 1 / np.sqrt(9 * 32)
        assert np.abs(leaf).max() <= limit < 1.1 * np.abs(leaf).max()
        np.testing.assert_allclose(leaf.std(), limit / np.sqrt(3), rtol=0.15)


def test_an_unknown_backbone_is_named():
    with pytest.raises(UserError, match="model.backbone is 'vnet'; expected one of"):
        models.make("unet2d", width=4, num_classes=3, **(COMMON | {"backbone": "vnet"}))
