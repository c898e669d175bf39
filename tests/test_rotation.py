"""Rotation: the turns, the loss against a NumPy loop, what is refused, a tiny run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_args
from tiny_nifti import call_main

from pclseg import augment, methods, models
from pclseg.building import outline
from pclseg.config import load_config
from pclseg.errors import UserError
from pclseg.methods.rotation import quarter_turns
from pclseg.state import TrainState
from pclseg.train.metrics import read_rows
from pclseg.train.step import init_state, make_train_step

WIDTH = 2


def make(**changes):
    model = models.make(
        "unet2d_contrast",
        **{"width": WIDTH, "out_dim": 4, "dtype": "float32", "bn_groups": 1} | changes,
    )
    none = augment.make("none")
    return methods.make("rotation", model=model, augment=none, axis_name=None), model


def images(number=3, size=16):
    shape = (number, size, size, 1)
    return {"image": np.random.default_rng(0).normal(size=shape).astype(np.float32)}


@functools.cache
def jitted():
    """(method, model, its state, jitted (params, state, images) -> loss with Aux)."""
    method, model = make()
    data = images()
    init = jax.jit(lambda key: init_state(method, optax.sgd(0.1), key, data))
    state = init(jax.random.key(0))
    loss = jax.jit(lambda *args: method.loss(*args, jax.random.key(1)))
    return method, model, state, loss


def test_turns_are_those_of_numpy_slice_after_slice():
    data = images()["image"]
    turned = np.asarray(quarter_turns(jnp.asarray(data)))
    expected = [np.rot90(image, turn) for image in data for turn in range(4)]
    np.testing.assert_array_equal(turned, np.stack(expected))


def naive(logits):
    """(mean cross entropy, accuracy) of [4B, 4] logits whose class is row mod 4."""
    losses, right = [], []
    for row, values in enumerate(np.asarray(logits, np.float64)):
        losses.append(np.log(np.exp(values).sum()) - values[row % 4])
        right.append(np.argmax(values) == row % 4)
    return np.mean(losses), np.mean(right)


def test_loss_and_accuracy_equal_naive_loop_over_one_pass_of_all_turns():
    _, model, state, loss = jitted()
    value, aux = loss(state.params, state, images())
    turned = [np.rot90(x, turn) for x in images()["image"] for turn in range(4)]
    forward = jax.jit(
        lambda *args: model.apply(*args, train=True, mutable=["batch_stats"])
    )
    variables = {"params": state.params, **state.model_state}
    logits, model_state = forward(variables, np.stack(turned))
    expected, accuracy = naive(logits)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["accuracy"], accuracy, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        aux.model_state,
        model_state,
    )


class Given:
    """A network that gives logits, whatever it sees."""

    def apply(self, variables, images, **unused):
        return variables["params"], {}


def test_bfloat16_logits_are_computed_in_float32():
    method = methods.make(
        "rotation", model=Given(), augment=augment.make("none"), axis_name=None
    )
    logits = np.random.default_rng(1).normal(scale=3, size=(12, 4))
    half = jnp.asarray(logits, jnp.bfloat16)
    state = TrainState(step=0, params={}, opt_state={}, model_state={}, method_state={})

    def loss(logits):
        return method.loss(logits, state, images(), jax.random.key(0))[0]

    assert loss(half).dtype == jnp.float32
    np.testing.assert_array_equal(loss(half), loss(half.astype(jnp.float32)))
    np.testing.assert_allclose(loss(half), naive(half)[0], rtol=1e-6)
    grad = jax.grad(loss)(half)
    assert grad.dtype == jnp.bfloat16 and np.isfinite(grad).all()


def test_order_of_the_slices_does_not_change_the_loss():
    _, _, state, loss = jitted()
    backwards = {"image": images()["image"][::-1].copy()}
    values = [loss(state.params, state, d)[0] for d in (images(), backwards)]
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_a_head_that_knows_nothing_gives_log_4():
    _, _, state, loss = jitted()
    head = jax.tree.map(jnp.zeros_like, state.params["head"])
    value, aux = loss({**state.params, "head": head}, state, images())
    np.testing.assert_allclose(value, np.log(4), rtol=1e-6)
    assert float(aux.metrics["accuracy"]) == 0.25  # all are called class 0


@functools.cache
def trainer():
    """(state, jitted step) under Adam."""
    method, _, _, _ = jitted()
    tx = optax.adam(1e-2)
    init = jax.jit(lambda key: init_state(method, tx, key, images()))
    return init(jax.random.key(0)), jax.jit(make_train_step(method, tx, None))


def test_turned_ramps_are_told_apart_within_thirty_steps():
    state, step = trainer()
    ramp = np.broadcast_to(np.linspace(-2, 2, 16), (3, 16, 16))[..., None]
    data = {"image": (ramp + 0.1 * images()["image"]).astype(np.float32)}
    for _ in range(30):
        state, metrics = step(state, data, jax.random.key(1))
    assert float(metrics["accuracy"]) > 0.9


def test_gradient_is_finite_for_slices_without_content():
    state, step = trainer()
    data = {"image": np.zeros((3, 16, 16, 1), np.float32)}
    _, metrics = step(state, data, jax.random.key(1))
    assert np.isfinite([float(metrics["loss"]), float(metrics["grad_norm"])]).all()


def test_embedding_is_the_pooled_centre_of_unit_length():
    method, model, state, _ = jitted()
    embedding = np.asarray(jax.jit(method.embed)(state, images()["image"]))
    assert embedding.shape == (3, 16 * WIDTH)

    def centre(state):
        _, inner = model.apply(
            {"params": state.params, **state.model_state},
            images()["image"],
            train=False,
            capture_intermediates=True,
        )
        return inner["intermediates"]["encoder"]["__call__"][0][0]

    pooled = np.asarray(jax.jit(centre)(state)).mean(axis=(1, 2))
    expected = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(embedding, expected, rtol=1e-5, atol=1e-6)


def test_a_head_without_four_outputs_is_refused():
    with pytest.raises(UserError, match=r"^model.out_dim is 512; .*expects 4"):
        make(out_dim=512)


def test_slices_that_are_not_square_are_refused_before_data_is_read(tmp_path):
    config = load_config("configs/rotation_phantom.py")
    config.data.raw_dir = str(tmp_path / "raw")
    config.data.options.volumes = 10
    config.pretrain.data.crop_size = (32, 64)
    said = r"^config.pretrain: data.crop_size is 32 x 64; .*expects a square"
    with pytest.raises(UserError, match=said) as caught:
        outline(config)
    assert "\n" not in str(caught.value)


def test_an_augmentation_that_moves_pixels_is_refused_before_data_is_read(tmp_path):
    config = load_config("configs/rotation_phantom.py")
    config.data.raw_dir = str(tmp_path / "raw")
    config.pretrain.augment = config.finetune.augment
    said = r"^config.pretrain: augment.name .* moves pixels; .*expects.*: use 'none'"
    with pytest.raises(UserError, match=said) as caught:
        outline(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["acdc:size=paper", "acdc:size=cpu", "hippocampus"])
def test_config_has_the_images_a_step_of_pcl_and_no_augmentation(name):
    name, _, arg = name.partition(":")
    ours, pcl = (
        load_config(f"configs/{arm}_{name}.py:{arg}").pretrain
        for arm in ("rotation", "pcl")
    )
    assert 4 * ours.data.batch_size == 2 * pcl.data.batch_size
    assert ours.train.steps == pcl.train.steps
    assert 2 * ours.train.epochs == pcl.train.epochs
    assert ours.augment.name == "none"


@pytest.mark.slow
def test_a_run_pretrains_and_finetunes_from_it(tmp_path, capsys):
    args = tiny_args(
        tmp_path / "raw",
        tmp_path / "store",
        tmp_path / "run",
        arm="rotation",
        pretrain__model__out_dim=4,
        finetune__augment={"name": "none"},  # compiles in half the time
    )
    code, text = call_main(capsys, *args)
    assert code == 0, text
    rows = read_rows(tmp_path / "run" / "pretrain" / "metrics.csv")
    assert all(0 < float(row["loss"]) < 10 for row in rows)
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    assert "loaded" in (tmp_path / "run" / "log.txt").read_text()
