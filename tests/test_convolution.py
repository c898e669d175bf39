"""The convolution and its gradients against those of JAX."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pclseg.models import convolution


def plain(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolution_has_the_gradients_of_jax(channels, dtype):
    rng = np.random.default_rng(0)
    x, kernel, slope = (
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in ((2, 6, 8, channels), (3, 3, channels, 5), (2, 6, 8, 5))
    )

    have, pull = jax.vjp(convolution.convolve, x, kernel)
    want, pull_plain = jax.vjp(plain, x, kernel)
    tolerance = 1e-5 if dtype == "float32" else 0.02
    for ours, theirs in zip(
        (have, *pull(slope)), (want, *pull_plain(slope)), strict=True
    ):
        assert ours.dtype == dtype
        ours, theirs = (np.asarray(a, np.float32) for a in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=10 * tolerance)


def test_gradients_of_convolutions_keep_the_order_of_axes_inside_loops():
    def loss(kernel, images):
        return jax.lax.map(lambda x: convolution.convolve(x, kernel), images).sum()

    shapes = [
        jax.ShapeDtypeStruct(shape, "float32")
        for shape in ((3, 3, 4, 8), (2, 5, 16, 16, 4))
    ]
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().as_text()
    orders = set(re.findall(r"dim_labels=(\S+?),? ", text))
    assert orders == {"b01f_01io->b01f"}  # others are slow on a CPU


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("height", [7, 12], ids=["prime", "rows of 4"])
def test_gradients_in_strips_are_those_of_jax(height, dtype, monkeypatch):
    monkeypatch.setattr(convolution, "_STRIP_FROM_BYTES", 0)
    rng = np.random.default_rng(0)
    x, kernel, slope = (
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in ((3, height, 6, 5), (3, 3, 5, 32), (3, height, 6, 32))
    )
    fits = 4 * 9 * x[0, 0].size * x.dtype.itemsize // os.cpu_count() + 1
    monkeypatch.setattr(convolution, "_STRIP_BYTES", fits)
    compiled = jax.jit(
        lambda *given: jax.vjp(convolution.convolve, *given[:2])[1](given[2])
    )
    ours = compiled(x, kernel, slope)
    theirs = jax.vjp(plain, x, kernel)[1](slope)
    assert "while" in compiled.lower(x, kernel, slope).compile().as_text()
    tolerance = 1e-5 if dtype == "float32" else 0.02
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype
        one, other = (np.asarray(a, np.float32) for a in (one, other))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=20 * tolerance)


@pytest.mark.parametrize(
    ("height", "bytes_of_row", "rows"), [(12, 1, 12), (12, 10**12, 1), (7, 2**18, 1)]
)
def test_strips_divide_the_image(height, bytes_of_row, rows, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert convolution._rows_of_strip(height, bytes_of_row) == rows
