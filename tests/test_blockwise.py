"""The blockwise loss against the dense one, which has oracles of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pclseg import parallel
from pclseg.losses.blockwise import blockwise_info_nce
from pclseg.losses.contrastive import info_nce, unit_length
from pclseg.losses.positives import near_exact, same

SETTINGS = dict(temperature=0.1, base_temperature=0.07)


def of_one_slice(anchors, keys):
    return same(anchors["row"], keys["row"])


def of_like_position(anchors, keys):
    names = ("index", "count")
    return near_exact(
        *(anchors[name] for name in names),
        *(keys[name] for name in names),
        threshold=0.1,
    )


def of_none(anchors, keys):
    return jnp.zeros((len(anchors["row"]), len(keys["row"])), bool)


RELATIONS = {"slice": of_one_slice, "position": of_like_position, "none": of_none}


def attributes(number):
    """Of `number` embeddings, two a slice."""
    rows = np.tile(np.arange(number // 2, dtype=np.int32), 2)
    count = 5 + rows % 7
    return {
        "id": jnp.arange(number, dtype=jnp.int32),
        "row": jnp.asarray(rows),
        "index": jnp.asarray(rows % count),
        "count": jnp.asarray(count),
    }


def embeddings(number, dtype=np.float32, dim=6):
    noise = np.random.default_rng(0).normal(size=(number, dim))
    return unit_length(jnp.asarray(noise, dtype))


def dense(anchors, keys, about, about_keys, positives, **settings):
    ignored = same(about["id"], about_keys["id"])
    positive = positives(about, about_keys)
    loss = info_nce(anchors, keys, positive, ignored, **SETTINGS | settings)
    return loss, (positive & ~ignored).sum(axis=1)


def blockwise(anchors, keys, about, about_keys, positives, *, block=4, **settings):
    return blockwise_info_nce(
        anchors,
        keys,
        about,
        about_keys,
        positives=positives,
        block=block,
        **SETTINGS | settings,
    )


def value_and_grads(loss, anchors, keys, *others, **settings):
    """Losses, counts, and the gradients of a sum with unequal weights."""
    weight = jnp.linspace(0.5, 2.0, len(anchors))

    def total(anchors, keys):
        losses, count = loss(anchors, keys, *others, **settings)
        return (losses * weight).sum(), (losses, count)

    grad = jax.grad(total, argnums=(0, 1), has_aux=True)
    grads, (losses, count) = jax.jit(grad)(anchors, keys)
    return losses, count, *grads


@pytest.mark.parametrize("name", RELATIONS)
@pytest.mark.parametrize("block", [1, 4, 5, 12, 100])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)]
)
def test_equals_the_dense_loss_in_value_and_gradient(name, block, dtype, tolerance):
    with jax.enable_x64(dtype == np.float64):
        z, about = embeddings(12, dtype), attributes(12)
        given = z, z, about, about, RELATIONS[name]
        want = value_and_grads(dense, *given)
        have = value_and_grads(functools.partial(blockwise, block=block), *given)
        assert have[0].dtype == have[2].dtype == dtype
        for a, b in zip(have, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
def test_no_temperature_overflows(temperature):
    z, about = embeddings(12), attributes(12)
    given = z, z, about, about, of_like_position
    want = value_and_grads(dense, *given, temperature=temperature)
    have = value_and_grads(blockwise, *given, temperature=temperature)
    for a, b in zip(have, want, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5 * np.abs(b).max())


def test_keys_may_be_others_than_the_anchors():
    z, about = embeddings(12), attributes(12)
    some = slice(2, 5)
    given = z[some], z, {k: v[some] for k, v in about.items()}, about, of_one_slice
    want = value_and_grads(dense, *given)
    for a, b in zip(value_and_grads(blockwise, *given), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_an_anchor_that_is_its_only_key_has_loss_and_gradient_zero():
    z, about = embeddings(2)[:1], {k: v[:1] for k, v in attributes(2).items()}
    loss, count, *grads = value_and_grads(blockwise, z, z, about, about, of_one_slice)
    for values in (loss, count, *grads):
        np.testing.assert_array_equal(values, np.zeros_like(values))


@pytest.mark.parametrize("name", RELATIONS)
@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_a_ring_of_devices_equals_one_device(name, num_devices):
    z, about = embeddings(24), attributes(24)
    weight = np.linspace(0.5, 2.0, 24, dtype=np.float32)

    def total(z, about, weight, loss, ring):
        value, count = loss(
            z, z, about, about, RELATIONS[name], **({"ring": ring} if ring else {})
        )
        return (value * weight).sum(), (value, count)

    one = jax.grad(functools.partial(total, loss=dense, ring=None), has_aux=True)
    many = jax.pmap(
        jax.grad(
            functools.partial(total, loss=blockwise, ring=parallel.AXIS), has_aux=True
        ),
        axis_name=parallel.AXIS,
        devices=jax.devices()[:num_devices],
    )
    want, (losses, count) = one(z, about, weight)
    have = many(*parallel.shard((z, about, weight), num_devices))
    for a, b in zip(jax.tree.leaves(have), (want, losses, count), strict=True):
        np.testing.assert_allclose(
            a.reshape(b.shape), b, rtol=1e-5, atol=1e-5, err_msg=str(a.shape)
        )


def temporary_bytes(loss, number, **settings):
    """Memory for what is computed on the way to loss and gradient."""
    z = jax.ShapeDtypeStruct((number, 16), jnp.float32)
    about = jax.eval_shape(lambda: attributes(number))

    def total(z, about):
        return loss(z, z, about, about, of_one_slice, **settings)[0].mean()

    compiled = jax.jit(jax.value_and_grad(total)).lower(z, about).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_batch_and_not_with_its_square():
    small, large = (temporary_bytes(blockwise, n, block=64) for n in (1024, 4096))
    assert large < 4.5 * small
    assert large < temporary_bytes(dense, 4096) / 20
