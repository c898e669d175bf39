"""Layers against PyTorch's rules, naive NumPy twins in float64 and flax."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pclseg import parallel
from pclseg.models import layers


def _normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _batch_norm(*, groups=1, axis_name=None, dtype="float32"):
    return layers.BatchNorm(dtype, groups, axis_name)


def _train(norm, x):
    @jax.jit
    def train(x):
        variables = norm.init(jax.random.key(0), x, train=False)
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])

    y, state = train(x)
    return y, state["batch_stats"]


def _twin(x, groups):
    """Batch normalisation in float64: result, running mean, running variance."""
    parts = np.split(np.asarray(x, np.float64), groups)
    y = [(p - p.mean((0, 1, 2))) / np.sqrt(p.var((0, 1, 2)) + 1e-5) for p in parts]
    mean, var = parts[0].mean((0, 1, 2)), parts[0].var((0, 1, 2), ddof=1)
    return np.concatenate(y), 0.1 * mean, 0.9 + 0.1 * var


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("values", [2, 1000000], ids=["ties", "no ties"])
def test_max_pool_and_its_gradient_equal_select_and_scatter(values, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, values, (3, 8, 6, 5)), dtype)
    weight = jnp.asarray(_normal((3, 4, 3, 5)), dtype)
    ours = jax.vjp(layers.max_pool, x)
    flax = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    np.testing.assert_array_equal(ours[0], flax[0])
    np.testing.assert_array_equal(ours[1](weight)[0], flax[1](weight)[0])


def test_max_pool_of_equal_values_feeds_the_first_only():
    gradient = jax.grad(lambda x: layers.max_pool(x).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])


def test_leaky_relu_has_slope_one_hundredth_up_to_zero():
    x = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(layers.leaky_relu(x), [-0.02, 0.0, 3.0], rtol=1e-6)
    slope = jax.vmap(jax.grad(layers.leaky_relu))(x)
    np.testing.assert_allclose(slope, [0.01, 0.01, 1.0], rtol=1e-6)


def test_up_conv_puts_kernel_u_v_at_row_u_column_v():
    x = _normal((2, 3, 4, 5))
    up = layers.UpConv(6, "float32")
    params = up.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.arange(6.0)
    kernel = np.asarray(params["kernel"], np.float64)
    expected = np.zeros((2, 6, 8, 6))
    for i, j, u, v in np.ndindex(3, 4, 2, 2):
        expected[:, 2 * i + u, 2 * j + v] = x[:, i, j] @ kernel[:, u, v] + np.arange(6)
    actual = up.apply({"params": params}, x)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_up_conv_takes_its_fan_in_from_the_output():
    # Level 4 for width 32: 512 -> 256 channels, fan-in 4 * 256.
    params = layers.UpConv(256, "float32").init(
        jax.random.key(0), jnp.zeros((1, 1, 1, 512))
    )["params"]
    assert np.std(params["kernel"]) == pytest.approx(0.04419, rel=0.02)
    assert not params["bias"].any()


def test_conv_is_normal_with_the_gain_of_the_leaky_relu():
    # Level 2 for width 32: 32 -> 64 channels, fan-in 288.
    conv = layers.conv3x3(64, dtype="float32", name=None)
    params = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]
    kernel = np.asarray(params["kernel"])
    assert kernel.std() == pytest.approx(0.08333, rel=0.02)
    assert np.abs(kernel).max() > 3 * kernel.std()  # not truncated
    assert not params["bias"].any()


def test_dense_is_uniform_in_one_over_root_fan_in():
    dense = layers.dense(2000, fan_in=64, name=None)
    params = dense.init(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    for leaf in (params["kernel"], params["bias"]):
        assert np.abs(leaf).max() <= 1 / 8
        assert np.std(leaf) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)
        assert abs(np.mean(leaf)) < 0.005


def test_batch_norm_of_one_two_three_four():
    y, stats = _train(_batch_norm(), jnp.array([1.0, 2, 3, 4]).reshape(1, 2, 2, 1))
    expected = [-1.3416353, -0.4472117, 0.4472119, 1.3416355]
    np.testing.assert_allclose(y.ravel(), expected, atol=2e-6)
    np.testing.assert_allclose(stats["mean"], [0.25], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [1.0666666], rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_batch_norm_equals_float64_twin_of_every_group(groups):
    x = 3 * _normal((6, 5, 4, 7)) + np.arange(6)[:, None, None, None]
    y, stats = _train(_batch_norm(groups=groups), jnp.asarray(x, jnp.float32))
    expected = _twin(x.astype("float32"), groups)
    np.testing.assert_allclose(y, expected[0], atol=2e-6)
    np.testing.assert_allclose(stats["mean"], expected[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(stats["var"], expected[2], rtol=1e-5)


def test_batch_norm_is_sound_where_the_mean_is_10000_deviations():
    x = (10000 + _normal((4, 16, 16, 3))).astype("float32")
    y, stats = _train(_batch_norm(), jnp.asarray(x))
    expected = _twin(x, 1)
    np.testing.assert_allclose(y, expected[0], atol=2e-3)  # float32 of 10000: 5e-4
    np.testing.assert_allclose(stats["var"], expected[2], rtol=1e-5)


def test_batch_norm_of_a_constant_is_the_shift_with_finite_gradient():
    x = jnp.full((2, 4, 4, 3), 7.0)
    y, _ = _train(_batch_norm(), x)
    assert not y.any()
    gradient = jax.grad(lambda x: jnp.sum(jnp.exp(_train(_batch_norm(), x)[0])))(x)
    assert jnp.isfinite(gradient).all()


def test_batch_norm_gradient_equals_flax():
    x, weight = _normal((4, 6, 5, 3)), _normal((4, 6, 5, 3), seed=1)
    params = {"scale": jnp.array([0.5, 1, 2]), "bias": jnp.array([1.0, 0, -1])}
    flax = nn.BatchNorm(use_running_average=False)
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}

    def loss(params, x, norm, **kwargs):
        variables = {"params": params, "batch_stats": stats}
        y, _ = norm.apply(variables, x, mutable=["batch_stats"], **kwargs)
        return jnp.sum(jnp.tanh(y) * weight)

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnames=("norm", "train"))
    ours = gradient(params, x, norm=_batch_norm(), train=True)
    theirs = gradient(params, x, norm=flax)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


def test_batch_norm_without_training_uses_and_keeps_the_running_averages():
    x = jnp.asarray(_normal((2, 3, 3, 2)))
    variables = {
        "params": {"scale": jnp.array([2.0, 1]), "bias": jnp.array([0.0, 3])},
        "batch_stats": {"mean": jnp.array([1.0, 2]), "var": jnp.array([4.0, 9])},
    }
    y, state = _batch_norm(groups=2).apply(
        variables, x, train=False, mutable=["batch_stats"]
    )
    expected = (np.asarray(x) - [1, 2]) / np.sqrt([4.00001, 9.00001]) * [2, 1] + [0, 3]
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_array_equal(state["batch_stats"]["mean"], [1, 2])


def test_batch_norm_keeps_float32_statistics_of_bfloat16():
    x = jnp.asarray(_normal((8, 16, 16, 2)) + 3, "bfloat16")
    y, stats = _train(_batch_norm(dtype="bfloat16"), x)
    expected = _twin(np.asarray(x, np.float64), 1)
    assert y.dtype == "bfloat16"
    assert stats["mean"].dtype == stats["var"].dtype == "float32"
    np.testing.assert_allclose(stats["mean"], expected[1], rtol=1e-5)
    np.testing.assert_allclose(stats["var"], expected[2], rtol=1e-5)


def test_batch_norm_names_the_option_when_groups_do_not_divide_the_batch():
    with pytest.raises(ValueError, match="bn_groups is 2, but the batch has 3 slices"):
        _train(_batch_norm(groups=2), jnp.zeros((3, 4, 4, 1)))


def _step(params, x, weight, *, groups, axis_name):
    """Result, running averages, gradients of sum(tanh(y) weight) over all devices."""
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    norm = _batch_norm(groups=groups, axis_name=axis_name)

    def loss(params, x):
        variables = {"params": params, "batch_stats": stats}
        y, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.tanh(y) * weight), (y, state["batch_stats"])

    gradients, (y, state) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return y, state, parallel.all_mean(gradients[0], axis_name), gradients[1]


# 16 rows: groups of 16, 8 and 4 rows on devices of 8, 4 and 2; with 3 groups of 24 rows
# the boundaries fall inside devices.
@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize(("groups", "rows"), [(1, 16), (2, 16), (4, 16), (3, 24)])
def test_batch_norm_on_several_devices_equals_one(groups, rows, devices):
    x = _normal((rows, 4, 4, 3)) + np.arange(rows)[:, None, None, None]
    x = x.astype("float32")
    weight = _normal(x.shape, seed=1)
    params = {"scale": jnp.array([0.5, 1, 2]), "bias": jnp.array([1.0, 0, -1])}
    one_step = jax.jit(lambda *args: _step(*args, groups=groups, axis_name=None))
    one = one_step(params, x, weight)
    step = jax.pmap(
        lambda *args: _step(*args, groups=groups, axis_name=parallel.AXIS),
        axis_name=parallel.AXIS,
        in_axes=(None, 0, 0),
        devices=jax.devices()[:devices],
    )
    many = step(params, parallel.shard(x, devices), parallel.shard(weight, devices))
    y, state, params_gradient, x_gradient = jax.device_get(many)
    np.testing.assert_allclose(np.concatenate(y), one[0], atol=1e-6)
    np.testing.assert_allclose(np.concatenate(x_gradient), one[3], atol=1e-5)
    for name, value in state.items():
        np.testing.assert_array_equal(value, np.repeat(value[:1], devices, axis=0))
        np.testing.assert_allclose(value[0], one[1][name], rtol=1e-6)
    for name, value in params_gradient.items():
        np.testing.assert_allclose(value[0] * devices, one[2][name], 1e-5, 1e-5)
