"""On a GPU: the same numbers as on a CPU. JAX_PLATFORMS=cuda,cpu pytest -m gpu."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_blockwise import RELATIONS, attributes, embeddings
from test_contrastive import naive_info_nce
from test_methods import batch, make

from pclseg import augment
from pclseg.parts.sampler import SAMPLERS, draw_of
from pclseg.parts.similarities import contrast_all
from pclseg.train.step import init_state, make_train_step

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu():
    devices = [d for d in jax.devices() if d.platform == "gpu"]
    assert devices, "no GPU; set JAX_PLATFORMS=cuda,cpu"
    with jax.default_device(devices[0]):
        yield devices[0]


@pytest.fixture
def cpu():
    return jax.devices("cpu")[0]


@pytest.mark.parametrize("way", ["dense", "blocks"])
def test_loss_equals_a_naive_float64_loop(gpu, way):
    z, about = embeddings(96, dim=128), attributes(96)
    loss, _ = jax.jit(
        lambda z: contrast_all(
            z,
            {name: value for name, value in about.items() if name != "id"},
            positives=RELATIONS["position"],
            similarities=way,
            temperature=0.1,
            base_temperature=0.07,
            axis_name=None,
        )
    )(z)
    assert loss.devices() == {gpu}
    positives = np.asarray(RELATIONS["position"](about, about))
    z = np.asarray(z, np.float64)
    want = naive_info_nce(z, z, positives, np.eye(96, dtype=bool), 0.1, 0.07)
    np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-5)


def test_augmentation_is_that_of_the_cpu(gpu, cpu):
    chain = augment.make(
        name="spatial",
        resample_probability=1.0,
        elastic_alpha=(10.0, 35.0),
        elastic_sigma=(4.0, 5.0),
        scale=(0.7, 1.3),
        image_order=3,
    )
    images = np.random.default_rng(0).normal(size=(8, 64, 64, 1)).astype(np.float32)
    keys = augment.sample_keys(jax.random.key(0), jnp.arange(8))
    views = [
        jax.device_get(jax.jit(chain)(*jax.device_put((keys, images), device), None)[0])
        for device in (gpu, cpu)
    ]
    # A coordinate at the edge may round to the other side of it.
    differ = np.abs(views[0] - views[1]) > 1e-3
    assert differ.mean() < 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_drawn_pixels_are_those_of_the_cpu(gpu, cpu, name):
    """The specification of ARCO, acceptance test 8."""
    classes = np.random.default_rng(0).integers(0, 4, (2, 24, 24))
    sampler = draw_of(name, (4, 4), [classes.shape])
    drawn = []
    for device in (gpu, cpu):
        with jax.default_device(device):
            of_key = jax.jit(lambda key: sampler(classes.reshape(-1), key, 3, 64))
            drawn.append(jax.device_get(of_key(jax.random.key(1)).pixels))
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("name", ["pcl", "supervised"])
def test_training_steps_are_those_of_the_cpu(gpu, cpu, name):
    method, tx = make(name, None), optax.sgd(0.1)
    data = {key: value for key, value in batch().items() if key in method.batch_keys}
    losses = {}
    with jax.default_matmul_precision("highest"):
        for device in (gpu, cpu):
            with jax.default_device(device):
                state = init_state(method, tx, jax.random.key(1), data)
                step = jax.jit(make_train_step(method, tx, None))
                losses[device] = []
                for _ in range(3):
                    state, metrics = step(state, data, jax.random.key(2))
                    losses[device].append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[gpu], losses[cpu], rtol=1e-3)


def test_a_step_in_bfloat16_is_near_that_in_float32(gpu):
    del gpu
    losses = {}
    for dtype in ("float32", "bfloat16"):
        method, tx = make("pcl", None, dtype=dtype), optax.sgd(0.1)
        data = {k: value for k, value in batch().items() if k in method.batch_keys}
        state = init_state(method, tx, jax.random.key(1), data)
        step = jax.jit(make_train_step(method, tx, None))
        _, metrics = step(state, data, jax.random.key(2))
        losses[dtype] = float(metrics["loss"])
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
