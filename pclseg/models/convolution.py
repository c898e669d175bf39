"""The 3 x 3 convolution, with gradients of its own on CPUs.

XLA would be as right and slower: see `_gradients_on_cpu` and `_of_kernel_in_strips`.
"""

import os

import jax
import jax.numpy as jnp

Array = jax.Array

# The gradient of a kernel is taken strip by strip where it has so many features, and
# inputs and gradient together so many bytes: below that XLA is as fast.
_STRIP_FEATURES = 32
_STRIP_FROM_BYTES = 2**26
# A strip's gathered inputs, for each core: they stay in its second-level cache.
_STRIP_BYTES = 3 * 2**18

_TAPS = [(u, v) for u in range(3) for v in range(3)]  # rows and columns of a kernel


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
    """3 x 3 convolution of stride 1 with zero padding 1.

    Differentiable backwards only (`jax.grad`, not `jax.jvp`).

    Args:
        x: [B, H, W, C] float.
        kernel: [3, 3, C, D] of the same dtype.

    Returns:
        [B, H, W, D] of that dtype.
    """
    return _convolve(x, kernel)


def _convolve(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    return jax.lax.platform_dependent(
        *saved, gradient, cpu=_gradients_on_cpu, default=_gradients_of_jax
    )


convolve.defvjp(_forward, _backward)


def _gradients_of_jax(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    _, pull = jax.vjp(_convolve, x, kernel)
    return pull(gradient)


def _gradients_on_cpu(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    """Those of JAX, with axes in the order of the forward convolution.

    XLA turns other orders into that one itself, but not inside loops, where they take
    twenty times as long.
    """
    turned = jnp.flip(kernel, axis=(0, 1)).transpose(0, 1, 3, 2)
    many_bytes = (x.size + gradient.size) * x.dtype.itemsize >= _STRIP_FROM_BYTES
    if many_bytes and gradient.shape[-1] >= _STRIP_FEATURES:
        of_kernel = _of_kernel_in_strips(x, gradient)
    else:
        of_kernel = _of_kernel(x, gradient)
    return _convolve(gradient, turned), of_kernel


def _of_kernel(x: Array, gradient: Array) -> Array:
    # Channels are the batch here, the images the channels that are summed over.
    summed = _convolve(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3))
    return summed.transpose(1, 2, 0, 3)


def _of_kernel_in_strips(x: Array, gradient: Array) -> Array:
    """The same as a matrix product for every few rows, whose inputs stay in the cache.

    On two cores 2 to 9 times as fast for 32 images of 64 x 64 pixels and more.
    """
    _, height, width, channels = x.shape
    features = gradient.shape[-1]
    rows = _rows_of_strip(height, 9 * channels * width * x.dtype.itemsize)

    def add_image(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        image, of_image = pair
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))

        def add_strip(total: Array, start: Array) -> tuple[Array, None]:
            strip = jax.lax.dynamic_slice_in_dim(padded, start, rows + 2)
            of_strip = jax.lax.dynamic_slice_in_dim(of_image, start, rows)
            inputs = jnp.concatenate(
                [strip[u : u + rows, v : v + width] for u, v in _TAPS], axis=-1
            )
            part = jax.lax.dot_general(
                inputs.reshape(rows * width, 9 * channels),
                of_strip.reshape(rows * width, features),
                (((0,), (0,)), ((), ())),
                preferred_element_type=total.dtype,
            )
            return total + part, None

        return jax.lax.scan(add_strip, total, jnp.arange(0, height, rows))

    precise = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.zeros((9 * channels, features), precise)
    total, _ = jax.lax.scan(add_image, total, (x, gradient))
    return total.reshape(3, 3, channels, features).astype(x.dtype)


def _rows_of_strip(height: int, bytes_of_row: int) -> int:
    """The largest divisor of `height` whose rows fit."""
    most = _STRIP_BYTES * (os.cpu_count() or 1) // bytes_of_row
    return max(n for n in range(1, height + 1) if height % n == 0 and n <= max(1, most))
