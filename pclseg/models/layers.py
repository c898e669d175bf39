"""Layers with PyTorch's numbers: convolutions, pooling, batch normalisation.

Parameters and running statistics are float32; `dtype` is that of the computation.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pclseg import parallel
from pclseg.models.convolution import convolve

Array = jax.Array

NEGATIVE_SLOPE = 0.01
_EPSILON = 1e-5
_MOMENTUM = 0.9  # PyTorch calls it 0.1
# Squared gain of a leaky ReLU, He et al. 2015, arXiv 1502.01852, equation 15.
_GAIN = 2.0 / (1.0 + NEGATIVE_SLOPE**2)


def conv_init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """N(0, gain^2 / fan_in), of He et al. 2015, for a kernel [..., C, features]."""
    return _normal(key, shape, dtype, fan_in=math.prod(shape[:-1]))


def _normal(key: Array, shape: tuple[int, ...], dtype: Any, *, fan_in: int) -> Array:
    # Drawn flat: the same numbers, but XLA compiles it four times as fast on a CPU.
    flat = jax.random.normal(key, (math.prod(shape),), dtype)
    return math.sqrt(_GAIN / fan_in) * flat.reshape(shape)


def leaky_relu(x: Array) -> Array:
    """The larger of x and 0.01 x; its slope at 0 is 0.01, as in PyTorch."""
    return jnp.where(x > 0, x, NEGATIVE_SLOPE * x)


@jax.custom_vjp
def max_pool(x: Array) -> Array:
    """Largest value of every 2 x 2 cell.

    Of equal values the first in row order receives the whole gradient, as in PyTorch
    and in XLA's select-and-scatter, which on a CPU takes more time and memory.

    Args:
        x: [B, H, W, C] float, H and W even.

    Returns:
        [B, H/2, W/2, C] of the dtype of `x`.
    """
    top = jnp.maximum(x[:, 0::2, 0::2], x[:, 0::2, 1::2])
    bottom = jnp.maximum(x[:, 1::2, 0::2], x[:, 1::2, 1::2])
    return jnp.maximum(top, bottom)


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    largest = max_pool(x)
    return largest, (x, largest)


def _max_pool_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    x, largest = saved
    free = jnp.ones(largest.shape, bool)
    rows = []
    for u in (0, 1):
        row = []
        for v in (0, 1):
            chosen = free & (x[:, u::2, v::2] == largest)
            free = free & ~chosen
            row.append(jnp.where(chosen, gradient, 0))
        rows.append(jnp.stack(row, axis=3))  # [B, H/2, W/2, 2, C]
    return (jnp.stack(rows, axis=2).reshape(x.shape),)  # [B, H/2, 2, W/2, 2, C]


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def conv3x3(
    features: int,
    *,
    dtype: str,
    name: str,
    fan_in: int | None = None,
    use_bias: bool = True,
) -> nn.Conv:
    """A 3 x 3 convolution, stride 1, zero padding 1: C -> `features` channels.

    Args:
        features: as above.
        dtype: of the computation.
        name: of the layer.
        fan_in: 9 C for PyTorch's own start, kernel and bias uniform in
            +-1/sqrt(fan_in); None for that of `conv_init`, and a bias of 0.
        use_bias: whether there is a bias.
    """
    return nn.Conv(
        features,
        (3, 3),
        padding=1,
        use_bias=use_bias,
        kernel_init=_uniform(fan_in) if fan_in else conv_init,
        bias_init=_uniform(fan_in) if fan_in else nn.initializers.zeros,
        dtype=dtype,
        name=name,
        # Strides, padding and the like, which it passes too, are those of `convolve`.
        conv_general_dilated=lambda x, kernel, *_, **__: convolve(x, kernel),
    )


def dense(
    features: int,
    *,
    fan_in: int,
    name: str,
    dtype: str | None = None,
    use_bias: bool = True,
) -> nn.Dense:
    """A dense layer, kernel and bias uniform in +-1/sqrt(fan_in); of `dtype`, if any.

    On [B, H, W, C] it is a 1 x 1 convolution.
    """
    start = _uniform(fan_in)
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=start,
        bias_init=start,
        name=name,
    )


def _uniform(fan_in: int) -> Callable[..., Array]:
    limit = 1.0 / math.sqrt(fan_in)

    def uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        flat = jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit)
        return flat.reshape(shape)  # drawn flat as in _normal

    return uniform


def double_size(x: Array) -> Array:
    """Bilinear enlargement to twice the size, corners on corners.

    It is PyTorch's `Upsample(scale_factor=2, mode="bilinear", align_corners=True)`.

    Args:
        x: [B, H, W, C] float.

    Returns:
        [B, 2H, 2W, C] of the dtype of `x`.
    """
    return _double_axis(_double_axis(x, 1), 2)


def _double_axis(x: Array, axis: int) -> Array:
    """Twice the size along one axis.

    Row j of 2n lies at j (n - 1) / (2n - 1) of the old ones: an even one, 2i, at
    i - i / (2n - 1), an odd one, 2i + 1, at i + (n - 1 - i) / (2n - 1). Sums of
    shifted arrays, as the gradient of a gather is slow.
    """
    size = x.shape[axis]
    number = jnp.arange(size, dtype=x.dtype) / max(2 * size - 1, 1)
    share = jnp.expand_dims(number, [a for a in range(x.ndim) if a != axis])
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, size - 1, size, axis=axis)
    before = jnp.concatenate(
        [first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis=axis
    )
    after = jnp.concatenate(
        [jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis=axis
    )
    even = x + share * (before - x)
    odd = x + jnp.flip(share, axis) * (after - x)
    both = jnp.stack([even, odd], axis=axis + 1)
    return both.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def enlarge(x: Array, size: tuple[int, ...], *, stride: int) -> Array:
    """Bilinear enlargement, corners on corners, of which some pixels are kept.

    Args:
        x: [B, h, w, C] float.
        size: H and W of the whole.
        stride: the pixels 0, stride, 2 stride, ... of both axes are kept.

    Returns:
        [B, H / stride, W / stride, C] of the dtype of `x`, rounded up.
    """
    if x.shape[1:3] == size:
        return x[:, ::stride, ::stride]
    rows, columns = (
        jnp.asarray(_places(old, new)[::stride], x.dtype)
        for old, new in zip(x.shape[1:3], size, strict=True)
    )
    return jnp.einsum("ij,bjkc,lk->bilc", rows, x, columns, precision="highest")


def _places(old: int, new: int) -> np.ndarray:
    """[new, old] weights of linear interpolation, corners on corners."""
    grid = np.arange(new) * ((old - 1) / max(new - 1, 1))
    return np.maximum(0, 1 - np.abs(grid[:, None] - np.arange(old)))


class Dropout(nn.Module):
    """Sets features to 0 with probability `rate` and scales the others by 1/(1 - rate).

    What is drawn depends on the row of the global batch, not on the device. Training
    applies it with `rngs={"dropout": key}`.

    Attributes:
        rate: in [0, 1).
        axis_name: of the device axis, or None.
    """

    rate: float
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> the same, of its dtype; without `train` as it was."""
        if not train or self.is_initializing() or self.rate == 0:
            return x
        key = self.make_rng("dropout")
        rows = parallel.row_ids(len(x), self.axis_name)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
        keep = jax.vmap(
            lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:])
        )(keys)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


class UpConv(nn.Module):
    """Transposed convolution, kernel 2, stride 2: a dense layer, then depth to space.

    y[2i+u, 2j+v, o] = bias[o] + sum_c x[i, j, c] kernel[c, u, v, o]; PyTorch's weight
    [c, o, u, v] is `kernel` with the axes (0, 3, 1, 2).
    """

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, 2H, 2W, features] of `dtype`."""
        rows, height, width, channels = x.shape
        shape = (channels, 2, 2, self.features)
        # PyTorch takes the fan-in of its weight [c, o, u, v] from the axes (o, u, v).
        init = functools.partial(_normal, fan_in=4 * self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        y = jnp.tensordot(x, kernel, axes=1)  # [B, H, W, 2, 2, features]
        y = y.transpose(0, 1, 3, 2, 4, 5)  # [B, H, 2, W, 2, features]
        y = y.reshape(rows, 2 * height, 2 * width, self.features)
        return y + bias[None, None, None, :]


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's numbers, over the rows of all devices.

    Normalises by the biased variance; the running variance takes the unbiased one,
    n/(n-1) times as large, where `flax.linen.BatchNorm` takes the biased one.
    Statistics are float32 whatever the input is.

    Attributes:
        dtype: of the result.
        groups: statistics are those of this many equal groups of consecutive rows of
            the global batch, as in training split over as many devices without
            synchronised statistics; the running averages follow group 0.
        axis_name: of the device axis, or None.
    """

    dtype: str
    groups: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, C]; with `train` the running averages move.

        Raises:
            ValueError: if the global batch is no multiple of `groups`.
        """
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if train and not self.is_initializing():
            mean, var = self._group_moments(x)  # [groups, C]
            count = self._rows(x) // self.groups * x.shape[1] * x.shape[2]
            unbiased = var[0] * (count / max(count - 1, 1))
            running_mean.value = _average(running_mean.value, mean[0])
            running_var.value = _average(running_var.value, unbiased)
            mean, var = self._of_rows(mean, x), self._of_rows(var, x)
        else:
            mean, var = running_mean.value[None], running_var.value[None]
        factor = scale[None] * jax.lax.rsqrt(var + _EPSILON)
        y = (x.astype(jnp.float32) - _per_image(mean)) * _per_image(factor)
        return (y + _per_image(bias[None])).astype(self.dtype)

    def _rows(self, x: Array) -> int:
        """Number of rows of the global batch."""
        return len(x) * parallel.num_devices(self.axis_name)

    def _group_moments(self, x: Array) -> tuple[Array, Array]:
        """Mean and biased variance of every group, [groups, C] each.

        Every device gathers the moments of all rows and combines them in the same
        order: the result is equal on all devices, and is that of one device.
        """
        if self._rows(x) % self.groups:
            raise ValueError(
                f"bn_groups is {self.groups}, but the batch has {self._rows(x)} slices;"
                " expected a multiple of bn_groups."
            )
        moments = parallel.all_gather(_row_moments(x), self.axis_name)
        row_mean, row_var = (
            a.reshape(self.groups, -1, x.shape[-1]) for a in moments
        )  # [groups, rows, C]
        mean = row_mean.mean(axis=1)
        between = jnp.square(row_mean - mean[:, None]).mean(axis=1)
        return mean, row_var.mean(axis=1) + between

    def _of_rows(self, values: Array, x: Array) -> Array:
        """[groups, C] of the groups -> [B or 1, C] of the rows of this device."""
        if self.groups == 1:
            return values
        rows = jnp.repeat(values, self._rows(x) // self.groups, axis=0)
        start = parallel.device_index(self.axis_name) * len(x)
        return jax.lax.dynamic_slice_in_dim(rows, start, len(x))


def _row_moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance over the pixels of every row, [B, C] float32 each.

    One pass over the data. Taking off a pixel first keeps the difference of squares
    sound where the mean is large; no moment depends on which, so it has no gradient.
    """
    pixel = jax.lax.stop_gradient(x[:, :1, :1]).astype(jnp.float32)
    difference = x.astype(jnp.float32) - pixel
    mean = difference.mean(axis=(1, 2))
    var = jnp.square(difference).mean(axis=(1, 2)) - jnp.square(mean)
    return mean + pixel[:, 0, 0], jnp.maximum(var, 0.0)


def _average(running: Array, value: Array) -> Array:
    return _MOMENTUM * running + (1.0 - _MOMENTUM) * value


def _per_image(values: Array) -> Array:
    """[B, C] -> [B, 1, 1, C]."""
    return values[:, None, None, :]
