"""The local loss: its regions by hand, a naive float64 loop, an encoder that stays."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_methods import ROWS, SETTINGS, batch
from tiny import OVERRIDES, ROOT
from tiny_nifti import call_main

from pclseg import augment, methods, models, regions
from pclseg.building import outline
from pclseg.config import load_config
from pclseg.errors import UserError
from pclseg.losses.contrastive import unit_length
from pclseg.models.heads import RegionHead
from pclseg.state import TrainState
from pclseg.train import optimizer
from pclseg.train.checkpoint import load_weights
from pclseg.train.metrics import read_rows
from pclseg.train.step import init_state, make_train_step


def test_centres_of_a_map_of_eleven_by_nineteen():
    centres = regions.starts(11, 19) + 1
    nine = [(r, c) for r in (1, 5, 9) for c in (1, 9, 17)]
    four = [(r, c) for r in (3, 7) for c in (5, 13)]
    assert sorted(map(tuple, centres.tolist())) == sorted(nine + four)


@pytest.mark.parametrize("size", [8, 9, 24, 176])
def test_regions_lie_inside_and_reach_all_borders(size):
    starts = regions.starts(size, size)
    assert starts.shape == (13, 2) and len(np.unique(starts, axis=0)) == 13
    assert starts.min() == 0 and starts.max() == size - 3


def test_nearest_regions_are_those_one_sees():
    near = regions.nearest(5)
    assert (near.sum(axis=1) == 5).all() and not near.diagonal().any()
    # rows of 3, 2, 3, 2, 3 regions: 0 1 2 / 3 4 / 5 6 7 / 8 9 / 10 11 12
    assert np.flatnonzero(near[0]).tolist() == [1, 3, 4, 5, 6]
    assert np.flatnonzero(near[6]).tolist() == [1, 3, 4, 8, 9]
    assert np.flatnonzero(near[12])[-3:].tolist() == [7, 9, 11]


def test_head_projects_every_region_by_the_same_matrix():
    features = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    head = RegionHead(4)
    params = head.init(jax.random.key(0), features)["params"]
    found = head.apply({"params": params}, features)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.maximum(features @ p["conv1"]["kernel"] + p["conv1"]["bias"], 0)
    x = x @ p["conv2"]["kernel"] + p["conv2"]["bias"]
    assert p["kernel"].shape == (27, 4) and set(p) == {"conv1", "conv2", "kernel"}
    for region, (row, column) in enumerate(regions.starts(8, 12)):
        flat = x[:, row : row + 3, column : column + 3].reshape(2, 27)
        np.testing.assert_allclose(found[:, region], flat @ p["kernel"], atol=1e-5)


def naive(z, temperature):
    """Mean loss of unit vectors z [2, B, 13, D] by float64 loops."""
    near, losses = regions.nearest(5), []
    for version in (0, 1):
        for own, other in zip(z[version], z[1 - version], strict=True):
            for r in range(13):
                top = math.exp(own[r] @ other[r] / temperature)
                rest = sum(
                    math.exp(own[r] @ version_z[k] / temperature)
                    for k in np.flatnonzero(near[r])
                    for version_z in (own, other)
                )
                losses.append(-math.log(top / (top + rest)))
    return np.mean(losses)


class Given:
    """A model whose embeddings are the pixels of the images."""

    def apply(self, variables, images, *, train, mutable, **unused):
        del variables, train, mutable
        return images.reshape(len(images), 13, 4), {}


def test_loss_equals_naive_loops():
    method = methods.make(
        "gcl_local",
        model=Given(),
        augment=lambda keys, images, labels: (
            images
            + jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys),
            labels,
        ),
        axis_name=None,
        **SETTINGS["gcl_local"],
    )
    images = np.random.default_rng(0).normal(size=(3, 13, 4, 1)).astype(np.float32)
    state = TrainState(step=0, params={}, opt_state={}, model_state={}, method_state={})
    value, aux = method.loss({}, state, {"image": images}, jax.random.key(5))
    versions = [
        images[..., 0]
        + np.stack(
            [
                jax.random.normal(jax.random.fold_in(key, row), (13, 4, 1))[..., 0]
                for row in range(3)
            ]
        )
        for key in jax.random.split(jax.random.key(5))
    ]
    z = np.asarray(unit_length(jnp.asarray(versions)), np.float64)
    np.testing.assert_allclose(value, naive(z, 0.1), rtol=2e-5)
    np.testing.assert_allclose(
        aux.metrics["collapse_gap"], abs(value - math.log(11)), rtol=1e-5
    )


def plain_method():
    """The method on a small network, with an augmentation that compiles fast."""
    return methods.make(
        "gcl_local",
        model=models.make(
            "unet2d_local", width=2, out_dim=8, dtype="float32", bn_groups=1
        ),
        augment=augment.make(
            "intensity", brightness=(-0.3, 0.3), contrast=(0.7, 1.3), clip=()
        ),
        axis_name=None,
        **SETTINGS["gcl_local"],
    )


def test_no_gradient_reaches_the_encoder_and_its_averages_stay():
    method, data = plain_method(), {"image": batch()["image"][:4]}
    tx, _ = optimizer.make(
        name="adam",
        peak_lr=0.01,
        min_lr=0.0,
        schedule="cosine",
        lr_batch_size=0,
        lr_scaling="linear",
        momentum=0.9,
        weight_decay=0.0,
        warmup_steps=0,
        frozen=(),
        batch_size=4,
        total_steps=10,
    )
    start = init_state(method, tx, jax.random.key(1), data)
    step = jax.jit(make_train_step(method, tx, None))
    state = start
    for _ in range(2):
        state, metrics = step(state, data, jax.random.key(2))
    assert np.isfinite(metrics["loss"])
    for before, after in (
        (start.params, state.params),
        (start.model_state["batch_stats"], state.model_state["batch_stats"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, before["encoder"], after["encoder"])
        changed = jax.tree.map(
            lambda a, b: bool((a != b).any()), before["decoder"], after["decoder"]
        )
        assert any(jax.tree.leaves(changed))


def shapes(name, **fields):
    model = models.make(name, width=2, dtype="float32", bn_groups=1, **fields)
    images = jnp.zeros((1, 16, 16, 1))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def test_names_are_those_of_the_segmentation_network():
    local, whole = shapes("unet2d_local", out_dim=8), shapes("unet2d", num_classes=3)
    for tree in ("params", "batch_stats"):
        assert local[tree]["encoder"] == whole[tree]["encoder"]
        for layer, leaves in local[tree]["decoder"].items():
            assert leaves == whole[tree]["decoder"][layer]
    layers = {f"{kind}{level}" for kind in ("up", "level") for level in (4, 3, 2)}
    assert set(local["params"]["decoder"]) == layers


def test_embedding_of_a_slice_has_unit_length():
    method = plain_method()
    state = init_state(method, optax.sgd(0.1), jax.random.key(1), batch())
    z = method.embed(state, batch()["image"])
    assert z.shape == (ROWS, 13 * 8)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"near_regions": 0}, "near_regions is 0; expected 1 to 12"),
        ({"near_regions": 13}, "expected 1 to 12"),
        ({"temperature": 0.0}, "expected > 0"),
        ({"views": "both"}, "views"),
    ],
)
def test_bad_settings_are_one_clear_line(change, said):
    settings = {**SETTINGS["gcl_local"], "model": None, "augment": None} | change
    with pytest.raises(UserError, match=said):
        methods.make("gcl_local", axis_name=None, **settings)


@pytest.mark.parametrize(
    ("method", "model", "said"),
    [
        ("gcl_local", "unet2d_contrast", "unet2d_local"),
        ("simclr", "unet2d_local", "unet2d_contrast"),
    ],
)
def test_a_model_for_other_embeddings_is_refused(method, model, said):
    network = models.make(model, width=2, out_dim=8, dtype="float32", bn_groups=1)
    none = augment.make("none")
    made = methods.make(
        method, model=network, augment=none, axis_name=None, **SETTINGS[method]
    )
    with pytest.raises(UserError, match=f"use model.name='{said}'"):
        jax.eval_shape(lambda: made.init(jax.random.key(0), batch()))


def test_an_augmentation_that_moves_pixels_is_refused_before_data_is_read(tmp_path):
    config = load_config("configs/gcl_local_phantom.py")
    config.data.raw_dir = str(tmp_path / "raw")
    with config.unlocked():
        config.local.augment = config.pretrain.augment
    said = r"^config.local: augment.name .* moves pixels; .*expects.*: use 'intensity'"
    with pytest.raises(UserError, match=said) as caught:
        outline(config)
    assert "\n" not in str(caught.value)


def test_a_tiny_run_carries_encoder_and_decoder_to_fine_tuning(tmp_path, capsys):
    values = OVERRIDES | {
        "data.raw_dir": tmp_path / "raw",
        "data.store_dir": tmp_path / "store",
        "pretrain.augment": "{'name': 'none'}",  # the others compile for long
        "finetune.augment": "{'name': 'none'}",
        "pretrain.train.steps": 2,
        "local.data.crop_size": (32, 32),
        "local.data.batch_size": 8,
        "local.model.width": 2,
        "local.model.out_dim": 8,
        "local.train.steps": 6,
        "local.train.log_every": 3,
        "finetune.train.steps": 2,
        "finetune.optimizer.frozen": ("encoder",),
    }
    run = tmp_path / "run"
    code, said = call_main(
        capsys,
        f"--config={ROOT / 'configs' / 'gcl_local_phantom.py'}",
        f"--workdir={run}",
        "--devices=1",
        *(f"--config.{key}={value}" for key, value in values.items()),
    )
    assert code == 0, said
    rows = read_rows(run / "local" / "metrics.csv")
    assert np.isfinite([float(row["loss"]) for row in rows]).all()
    # Beside the encoder, of three levels: two convolutions, two norms, one up.
    assert f"loaded     {52 + 3 * (2 * 2 + 2 * 4 + 2)} leaves" in said
    _, pretrained, pretrained_stats = load_weights(run / "pretrain" / "checkpoints")
    _, local, local_stats = load_weights(run / "local" / "checkpoints")
    _, tuned, tuned_stats = load_weights(run / "finetune" / "checkpoints")
    for a, b in (
        (pretrained, local),
        (pretrained_stats, local_stats),
        (local, tuned),
    ):
        jax.tree.map(np.testing.assert_array_equal, a["encoder"], b["encoder"])
    # a frozen encoder is still normalised by the batch: its averages move
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()),
        local_stats["encoder"],
        tuned_stats["encoder"],
    )
    assert all(jax.tree.leaves(moved))
