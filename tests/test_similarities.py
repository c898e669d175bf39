"""Every way to compute the similarities gives the dense loss, on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_blockwise import RELATIONS, attributes, embeddings

from pclseg import parallel
from pclseg.errors import UserError
from pclseg.parts.similarities import WAYS, check_way, contrast_all


def contrast(z, about, relation, way, axis_name=None):
    return contrast_all(
        z,
        {name: value for name, value in about.items() if name != "id"},
        positives=RELATIONS[relation],
        similarities=way,
        temperature=0.1,
        base_temperature=0.07,
        axis_name=axis_name,
    )


def gradient_of_mean(z, about, relation, way, num_devices):
    """(losses, counts, gradient) with the rows of all devices side by side."""

    def total(z, about):
        loss, count = contrast(z, about, relation, way, parallel.AXIS)
        return loss.mean(), (loss, count)

    step = jax.pmap(
        jax.grad(total, has_aux=True),
        axis_name=parallel.AXIS,
        devices=jax.devices()[:num_devices],
    )
    grad, (loss, count) = step(*parallel.shard((z, about), num_devices))
    return loss.reshape(-1), count.reshape(-1), grad.reshape(z.shape) / num_devices


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_on_many_devices_is_the_dense_one_on_one(way, relation):
    z, about = embeddings(24), attributes(24)
    want = gradient_of_mean(z, about, relation, "dense", 1)
    for have, expected in zip(
        gradient_of_mean(z, about, relation, way, 4), want, strict=True
    ):
        np.testing.assert_allclose(have, expected, rtol=1e-5, atol=1e-5)


def test_ring_on_a_single_device_needs_no_axis():
    z, about = embeddings(12), attributes(12)
    for have, want in zip(
        contrast(z, about, "position", "ring"),
        contrast(z, about, "position", "dense"),
        strict=True,
    ):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("number", "same_as"), [(4096, "dense"), (4098, "blocks")])
def test_auto_is_dense_up_to_4096_embeddings(number, same_as):
    z = jax.ShapeDtypeStruct((number, 8), jnp.float32)
    about = jax.eval_shape(lambda: attributes(number))
    auto, other = (
        str(
            jax.make_jaxpr(lambda z, a, way=way: contrast(z, a, "slice", way))(z, about)
        )
        for way in ("auto", same_as)
    )
    assert auto == other


def test_an_unknown_way_is_refused():
    with pytest.raises(
        UserError, match="'blockwise'; expected one of: 'auto', 'dense'"
    ):
        check_way("blockwise")
