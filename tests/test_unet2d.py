"""The U-Net: sizes of the specification, and a net written in PyTorch."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pclseg import models, parallel
from pclseg.errors import UserError
from pclseg.models import backbone_pcl, heads

REFERENCE = Path(__file__).parent / "reference" / "unet2d_torch.npz"
FIELDS = {
    "unet2d": dict(width=4, num_classes=3, dtype="float32", bn_groups=1),
    "unet2d_contrast": dict(width=4, out_dim=8, dtype="float32", bn_groups=1),
}


def _make(name, **changes):
    return models.make(name, **{**FIELDS[name], **changes})


def _shapes(model, height=64, width=96):
    images = jax.ShapeDtypeStruct((1, height, width, 1), jnp.float32)
    return jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


ENCODER = {32: 4713568, 48: 10602384}
HEAD = {32: 525312, 48: 984320}
DECODER = {
    (32, 8): 3050016,
    (32, 4): 3049888,
    (32, 3): 3049856,
    (48, 8): 6859824,
    (48, 4): 6859632,
    (48, 3): 6859584,
}
BLOCKS = {  # per block: encoder levels 1 to 4, centre; decoder levels 4 to 1
    32: (9696, 55680, 221952, 886272, 3539968, 2295552, 574336, 143808, 36064),
    48: (21456, 124992, 498816, 1992960, 7964160, 5163648, 1291584, 323232, 80976),
}


@pytest.mark.parametrize(("width", "classes"), list(DECODER))
def test_unet_has_the_numbers_of_parameters_of_the_specification(width, classes):
    params = _shapes(_make("unet2d", width=width, num_classes=classes))["params"]
    assert _count(params["encoder"]) == ENCODER[width]
    assert _count(params["decoder"]) == DECODER[width, classes]
    assert set(params) == {"encoder", "decoder"}


@pytest.mark.parametrize("width", [32, 48])
def test_contrastive_net_has_the_numbers_of_parameters_of_the_specification(width):
    variables = _shapes(_make("unet2d_contrast", width=width, out_dim=512))
    params = variables["params"]
    assert _count(params["encoder"]) == ENCODER[width]
    assert _count(params["head"]) == HEAD[width]
    assert set(params) == {"encoder", "head"}
    assert _count(variables["batch_stats"]["encoder"]) == {32: 1920, 48: 2880}[width]


@pytest.mark.parametrize(("width", "count"), [(32, 4978276), (48, 11196052)])
def test_rotation_net_is_the_contrastive_net_with_four_outputs(width, count):
    model = _make("unet2d_contrast", width=width, out_dim=4)
    assert _count(_shapes(model)["params"]) == count


@pytest.mark.parametrize("width", [32, 48])
def test_every_block_has_the_number_of_parameters_of_the_specification(width):
    params = _shapes(_make("unet2d", width=width))["params"]
    encoder, decoder = params["encoder"], params["decoder"]
    down = [_count(encoder[f"level{i}"]) for i in (1, 2, 3, 4)]
    up = [
        _count(decoder[f"up{i}"]) + _count(decoder[f"level{i}"]) for i in (4, 3, 2, 1)
    ]
    assert (*down, _count(encoder["centre"]), *up) == BLOCKS[width]
    assert _count(decoder["logits"]) == 3 * width


def test_encoder_and_decoder_have_the_shapes_of_the_specification():
    images = jnp.zeros((2, 64, 96, 1))
    encoder = backbone_pcl.Encoder(32, "bfloat16", 1, None)
    (centre, skips), _ = jax.eval_shape(
        lambda: encoder.init_with_output(jax.random.key(0), images, train=False)
    )
    assert centre.shape == (2, 4, 6, 512)
    assert [skip.shape for skip in skips] == [
        (2, 64, 96, 32),
        (2, 32, 48, 64),
        (2, 16, 24, 128),
        (2, 8, 12, 256),
    ]
    assert {leaf.dtype.name for leaf in (centre, *skips)} == {"bfloat16"}


def test_skip_follows_the_upsampled_features():
    decoder = backbone_pcl.Decoder(2, 3, "float32", 1, None)
    skips = tuple(jnp.ones((1, 16 // 2**i, 16 // 2**i, 2 * 2**i)) for i in range(4))
    centre = jnp.ones((1, 1, 1, 32))
    shapes = jax.eval_shape(
        lambda: decoder.init(jax.random.key(0), centre, skips, train=False)
    )
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    # Without the first half of level 1 nothing of the centre is left.
    layer = variables["params"]["level1"]["conv1"]
    layer["kernel"] = layer["kernel"].at[:, :, :2].set(0)
    forward = jax.jit(lambda x: decoder.apply(variables, x, skips, train=False)[0])
    np.testing.assert_array_equal(forward(centre), forward(9 * centre))


@pytest.mark.parametrize("size", [(40, 32), (32, 24), (8, 8)])
def test_sizes_that_are_no_multiple_of_16_are_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels.*of 16"):
        _shapes(_make("unet2d"), *size)


def test_logits_kernel_has_standard_deviation_one_quarter_for_width_32():
    model = heads.Logits(2000, "float32")
    params = model.init(jax.random.key(0), jnp.zeros((1, 1, 1, 32)))["params"]
    assert np.std(params["kernel"]) == pytest.approx(0.25, rel=0.02)


def test_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="'unet'; known models are: unet2d, unet2d_con"):
        models.make("unet")


def test_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="model.dtype is 'float16'"):
        _make("unet2d", dtype="float16")


# The nets in PyTorch: reference/unet2d_torch.md has the recipe and these two functions.


def _uniform(name, shape):
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    raw = np.random.Philox(key=seed).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)) / 2.0**52 - 1.0).reshape(shape)


def _weight(path, leaf):
    name, shape = "/".join(path), leaf.shape
    if path[-1] == "kernel":
        return (_uniform(name, shape) * (6.0 / np.prod(shape[:-1])) ** 0.5).astype("f4")
    offset = 1.0 if path[-1] == "scale" else 0.0
    return (offset + 0.1 * _uniform(name, shape)).astype("f4")


def _reference_variables(name):
    shapes = _shapes(_make(name))
    params = traverse_util.path_aware_map(_weight, shapes["params"])
    start = {"mean": np.zeros, "var": np.ones}
    stats = traverse_util.path_aware_map(
        lambda path, leaf: start[path[-1]](leaf.shape, "float32"), shapes["batch_stats"]
    )
    return {"params": params, "batch_stats": stats}


def _gradient(model, variables, images):
    """Gradient of mean(output^2), output, batch statistics after the step."""

    def loss(params):
        held = {**variables, "params": params}
        y, state = model.apply(held, images, train=True, mutable=["batch_stats"])
        return jnp.mean(y**2), (y, state["batch_stats"])

    gradient, (y, stats) = jax.grad(loss, has_aux=True)(variables["params"])
    return gradient, y, stats


def _assert_gradients_near(gradients, expected):
    for leaf, row in zip(sorted(gradients), expected, strict=True):
        value = np.asarray(gradients[leaf], np.float64)
        actual = [np.linalg.norm(value), np.vdot(value, _uniform(leaf, value.shape))]
        tolerance = 1e-4 * max(row[0], 1e-2)  # a bias before a norm has gradient 0
        np.testing.assert_allclose(actual, row, atol=tolerance, err_msg=leaf)


@pytest.mark.parametrize("name", list(FIELDS))
def test_reference_weights_are_those_of_the_pytorch_nets(name):
    flat = traverse_util.flatten_dict(_reference_variables(name)["params"], sep="/")
    joined = np.concatenate([flat[leaf].ravel() for leaf in sorted(flat)])
    digest = hashlib.sha256(joined.astype("<f4").tobytes()).hexdigest()
    assert digest == np.load(REFERENCE)[f"{name}/sha256"]


@pytest.mark.parametrize("name", list(FIELDS))
def test_output_statistics_and_gradients_equal_pytorch(name):
    reference = np.load(REFERENCE)
    step = jax.jit(lambda *args: _gradient(_make(name), *args))
    gradients, output, stats = step(_reference_variables(name), reference["images"])
    np.testing.assert_allclose(output, reference[f"{name}/output"], atol=2e-5)
    stats = traverse_util.flatten_dict(stats, sep="/")
    stats = np.concatenate([stats[leaf] for leaf in sorted(stats)])
    np.testing.assert_allclose(stats, reference[f"{name}/stats"], rtol=1e-5, atol=1e-6)
    gradients = traverse_util.flatten_dict(gradients, sep="/")
    _assert_gradients_near(gradients, reference[f"{name}/gradients"])


@pytest.mark.parametrize("name", list(FIELDS))
def test_bfloat16_output_is_near_that_of_pytorch(name):
    reference = np.load(REFERENCE)
    model = _make(name, dtype="bfloat16")
    forward = jax.jit(
        lambda *args: model.apply(*args, train=True, mutable=["batch_stats"])[0]
    )
    output = forward(_reference_variables(name), reference["images"])
    error = np.abs(output - reference[f"{name}/output"])
    assert 1e-4 < error.mean() < 0.02


@pytest.mark.parametrize("name", list(FIELDS))
def test_bfloat16_keeps_parameters_statistics_gradients_and_outputs_in_float32(name):
    model, images = _make(name, dtype="bfloat16"), jnp.zeros((1, 16, 16, 1))
    variables = _shapes(model)
    results = jax.eval_shape(lambda v: _gradient(model, v, images), variables)
    leaves = jax.tree.leaves((variables, results))
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}


def test_four_devices_equal_one():
    images = np.asarray(_uniform("images", (8, 16, 16, 1)), np.float32)
    images += np.arange(8, dtype="float32")[:, None, None, None]
    variables = _reference_variables("unet2d_contrast")

    def forward(images, axis_name):
        model = _make("unet2d_contrast", bn_groups=2, axis_name=axis_name)
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    output, state = jax.jit(forward, static_argnums=1)(images, None)
    outputs, states = jax.pmap(
        lambda images: forward(images, parallel.AXIS),
        axis_name=parallel.AXIS,
        devices=jax.devices()[:4],
    )(parallel.shard(images, 4))
    np.testing.assert_allclose(np.concatenate(outputs), output, atol=1e-5)
    for many, one in zip(jax.tree.leaves(states), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(many, np.repeat(many[:1], 4, axis=0))
        np.testing.assert_allclose(many[0], one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(FIELDS))
def test_rematerialisation_changes_memory_and_no_number(name):
    images = np.random.default_rng(0).normal(size=(4, 64, 64, 1)).astype(np.float32)
    plain, again = (_make(name, remat=remat) for remat in (False, True))
    variables = plain.init(jax.random.key(0), images, train=False)

    def loss(params, model):
        out, state = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.square(out).mean(), state

    def kept_bytes(model):
        def backward(params):
            return jax.vjp(lambda p: loss(p, model)[0], params)[1]

        kept = jax.eval_shape(backward, variables["params"])
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    want, have = (step(variables["params"], model) for model in (plain, again))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), want, have
    )
    assert kept_bytes(again) < 0.6 * kept_bytes(plain)
