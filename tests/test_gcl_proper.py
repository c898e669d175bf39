"""GCL proper: spec's worked number, a naive float64 loop, and who is a positive."""

import itertools
import math
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_methods import batch, compiled, make
from tiny import OVERRIDES, ROOT
from tiny_nifti import call_main, config_for, nifti_tree

from pclseg import building, methods, models
from pclseg.errors import UserError
from pclseg.losses.contrastive import pair_nce, unit_length
from pclseg.methods.gcl_proper import across_volumes, of_one_slice
from pclseg.state import TrainState
from pclseg.train.metrics import read_rows
from pclseg.train.step import init_state

SETTINGS = dict(variant="GD", augmentations=1, temperature=0.1, views="separate")


def about(volumes, partitions, views, order=None):
    """Attributes of the images of a batch, view after view, volume after volume."""
    rows = np.arange(volumes * partitions)
    rows = rows if order is None else rows[order]
    return {
        "row": np.tile(rows, views),
        "partition": np.tile(rows % partitions, views),
        "view": np.repeat(np.arange(views), len(rows)),
    }


def loss(z, positives, of, *, temperature=0.1):
    """The method's loss of embeddings [N, D], all on one device."""
    positive = positives(of, of) & ~np.eye(len(z), dtype=bool)
    negative = of["partition"][:, None] != of["partition"][None]
    pairs = pair_nce(z, z, negative, temperature=temperature)
    return jnp.where(positive, pairs, 0).sum(-1).mean()


def naive(z, pairs, of, temperature=0.1):
    """Mean over images of the sum over (a, b) in `pairs`, by float64 loops."""
    z = np.asarray(z, np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    total = 0.0
    for a, b in pairs:
        rest = sum(
            math.exp(z[a] @ z[k] / temperature)
            for k in range(len(z))
            if of["partition"][k] != of["partition"][a]
        )
        top = math.exp(z[a] @ z[b] / temperature)
        total -= math.log(top / (top + rest))
    return total / len(z)


class Given:
    """A model whose embeddings are the pixels of the images."""

    def apply(self, variables, images, **unused):
        return images.reshape(len(images), -1), {}


def of_method(variant, z, partition):
    """Loss and metrics of the method, told the embeddings [images of a slice, B, D]."""
    slices, *augmented = jnp.asarray(z)[:, :, None, :, None]
    one_by_one = iter(augmented)
    settings = SETTINGS | dict(variant=variant, augmentations=len(augmented))
    method = methods.make(
        "gcl_proper",
        model=Given(),
        augment=lambda keys, images, labels: (next(one_by_one), labels),
        axis_name=None,
        **settings,
    )
    state = TrainState(step=0, params={}, opt_state={}, model_state={}, method_state={})
    data = {"image": slices, "partition": jnp.asarray(partition, jnp.int32)}
    value, aux = method.loss({}, state, data, jax.random.key(0))
    return value, aux.metrics


def test_worked_number_of_the_specification():
    z = [[[1, 0], [0, 1]], [[0.8, 0.6], [0.6, 0.8]], [[0.6, 0.8], [0, 1]]]
    value, _ = of_method("GD-", np.array(z, np.float32), [1, 2])
    np.testing.assert_allclose(value, 2.615700153, rtol=2e-6)
    with jax.enable_x64(True):
        value, _ = of_method("GD-", np.array(z, np.float64), [1, 2])
        np.testing.assert_allclose(6 * value, 15.694200920, rtol=0, atol=1e-9)


def pairs_of_one_slice(num_slices, views):
    """(x, x1), (x, x2), (x1, x2), both ways, of every slice."""
    return [
        (a * num_slices + s, b * num_slices + s)
        for s in range(num_slices)
        for a, b in itertools.permutations(range(views), 2)
    ]


def pairs_across_volumes(volumes, partitions, views):
    """(x_i, x_j) of like images, both ways, of all volumes i != j."""
    return [
        (v * volumes * partitions + i * partitions + s,)
        + (v * volumes * partitions + j * partitions + s,)
        for v in range(views)
        for s in range(partitions)
        for i, j in itertools.permutations(range(volumes), 2)
    ]


@pytest.mark.parametrize("partitions", [2, 3, 4])
@pytest.mark.parametrize(("volumes", "views"), [(1, 3), (2, 2), (3, 2), (2, 3)])
def test_both_variants_equal_naive_loops(volumes, partitions, views):
    rng = np.random.default_rng(volumes)
    z = unit_length(jnp.asarray(rng.normal(size=(volumes * partitions * views, 5))))
    of = about(volumes, partitions, views)
    pairs = pairs_of_one_slice(volumes * partitions, views)
    np.testing.assert_allclose(
        loss(z, of_one_slice, of), naive(z, pairs, of), rtol=2e-5
    )
    pairs += pairs_across_volumes(volumes, partitions, views)
    np.testing.assert_allclose(
        loss(z, across_volumes, of), naive(z, pairs, of), rtol=2e-5
    )


@pytest.mark.parametrize("variant", ["GD-", "GD"])
@pytest.mark.parametrize("augmentations", [1, 2])
def test_loss_of_the_method_equals_naive_loops(variant, augmentations):
    volumes, partitions, views = 2, 3, 1 + augmentations
    slices = volumes * partitions
    z = np.random.default_rng(0).normal(size=(views, slices, 5)).astype(np.float32)
    value, metrics = of_method(variant, z, np.tile([1, 2, 3], volumes))
    pairs = pairs_of_one_slice(slices, views)
    if variant == "GD":
        pairs += pairs_across_volumes(volumes, partitions, views)
    expected = naive(z.reshape(-1, 5), pairs, about(volumes, partitions, views))
    np.testing.assert_allclose(value, expected, rtol=2e-5)
    each = len(pairs) / (views * slices)  # positives of an image
    assert float(metrics["positives"]) == each
    others = views * (slices - volumes)  # negatives of an image
    gap = abs(expected - each * math.log(1 + others))
    np.testing.assert_allclose(metrics["collapse_gap"], gap, rtol=1e-4)


def test_two_volumes_have_the_four_pairs_of_the_paper_in_every_partition():
    of = about(2, 4, 2)
    positive = across_volumes(of, of) & ~np.eye(16, dtype=bool)
    x_i, x_j, augmented_i, augmented_j = 1, 5, 9, 13  # partition 1
    expected = {(x_i, augmented_i), (x_i, x_j), (x_j, augmented_j)}
    expected |= {(augmented_i, augmented_j)}
    found = {(a, b) for a, b in np.argwhere(positive) if a < b and a % 4 == 1}
    assert found == expected
    assert positive.sum() == 8 * 4


def test_order_of_volumes_does_not_matter():
    z = unit_length(jnp.asarray(np.random.default_rng(0).normal(size=(24, 5))))
    order = np.arange(12).reshape(3, 4)[[2, 0, 1]].reshape(-1)
    moved = jnp.concatenate([z[:12][order], z[12:][order]])
    for positives in (of_one_slice, across_volumes):
        np.testing.assert_allclose(
            loss(z, positives, about(3, 4, 2)),
            loss(moved, positives, about(3, 4, 2, order)),
            rtol=1e-5,
        )


@pytest.mark.parametrize("temperature", [0.1, 1e-3])
def test_edges_give_finite_values_and_gradients(temperature):
    z = jnp.array([[1.0, 0], [0, 0], [-1, 0], [1, 0]])
    negatives = jnp.array([[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0]])

    def pairs(z):
        z = unit_length(z)
        return pair_nce(z, z, negatives.astype(bool), temperature=temperature)

    value, gradient = pairs(z), jax.grad(lambda z: pairs(z).sum())(z)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    assert (value[0] == 0).all()
    alone = jax.grad(lambda z: pairs(z)[0].sum())(z)
    assert (alone == 0).all(), "without negatives nothing is learned"


def test_bfloat16_embedding_is_computed_in_float32():
    z = unit_length(jnp.asarray(np.random.default_rng(4).normal(size=(8, 5))))
    half, of = z.astype(jnp.bfloat16), about(1, 4, 2)
    negatives = of["partition"][:, None] != of["partition"][None]

    def pairs(z):
        return pair_nce(z, z, negatives, temperature=0.1)

    assert pairs(half).dtype == jnp.float32
    np.testing.assert_array_equal(pairs(half), pairs(half.astype(jnp.float32)))
    gradient = jax.grad(lambda z: pairs(z).sum())(half)
    assert gradient.dtype == jnp.bfloat16 and np.isfinite(gradient).all()


def test_gradient_equals_differences_in_float64():
    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(3).normal(size=(16, 3)))
        of = about(2, 4, 2)

        def value(z):
            return loss(unit_length(z), across_volumes, of)

        gradient, step = jax.grad(value)(z), 1e-6
        for place in [(0, 0), (5, 2), (15, 1)]:
            moved = [value(z.at[place].add(sign * step)) for sign in (1, -1)]
            difference = (moved[0] - moved[1]) / (2 * step)
            np.testing.assert_allclose(gradient[place], difference, rtol=1e-6)


def test_images_are_the_slice_itself_and_its_augmentations():
    method = methods.make(
        "gcl_proper",
        model=make_model(),
        augment=lambda keys, images, labels: (images, labels),
        axis_name=None,
        **SETTINGS,
    )
    data = batch() | {"partition": np.tile(np.arange(1, 5, dtype=np.int32), 4)}
    state = init_state(method, compiled("simclr", 1)[1], jax.random.key(1), data)
    value, aux = method.loss(state.params, state, data, jax.random.key(0))
    variables = {"params": state.params, **state.model_state}
    z = make_model().apply(
        variables, data["image"], train=True, mutable=["batch_stats"]
    )[0]
    of = about(4, 4, 2)
    expected = loss(unit_length(jnp.tile(z, (2, 1))), across_volumes, of)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert float(aux.metrics["positives"]) == 1 + 3
    np.testing.assert_array_equal(method.positives(data), np.full(32, 4))


def make_model():
    return models.make(
        "unet2d_contrast", dtype="float32", width=2, bn_groups=1, out_dim=8
    )


def test_collapse_is_seen():
    method, tx, _ = compiled("gcl_proper", 1)
    method = make("gcl_proper", None)
    state = init_state(method, tx, jax.random.key(0), batch())
    dead = jax.tree.map(jnp.zeros_like, state.params)
    _, aux = method.loss(dead, state, batch(), jax.random.key(1))
    said = method.diagnose({k: float(v) for k, v in aux.metrics.items()})
    assert "collapse" in str(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"variant": "GR"}, "simclr"),
        ({"variant": "gd"}, "'GD-' or 'GD'"),
        ({"augmentations": 0}, "augmentations is 0; expected > 0"),
        ({"temperature": -0.1}, "temperature is -0.1; expected > 0"),
        ({"views": "both"}, "views"),
    ],
)
def test_bad_settings_are_one_clear_line(change, said):
    settings = {**SETTINGS, "model": None, "augment": None, "axis_name": None}
    with pytest.raises(UserError, match=said) as caught:
        methods.make("gcl_proper", **{**settings, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "sampling", "batch_size", "least"),
    [("GD", "partitions", 4, 8), ("GD", "slices", 8, 8), ("GD-", "slices", 8, 4)],
)
def test_batches_without_enough_volumes_are_refused_early(
    tmp_path, variant, sampling, batch_size, least
):
    nifti_tree(tmp_path / "data")
    config = config_for(tmp_path)
    with config.unlocked():
        config.pretrain.method = dict(SETTINGS, name="gcl_proper", variant=variant)
    config.pretrain.data.update(sampling=sampling, batch_size=batch_size)
    with pytest.raises(UserError, match=f"batch_size to {least} or more"):
        building.outline(config)
    config.pretrain.data.update(sampling="partitions", batch_size=8)
    assert building.outline(config).stages["pretrain"].method.min_volumes == least // 4


def test_a_tiny_run_trains_and_fine_tunes(tmp_path, capsys):
    values = OVERRIDES | {
        "data.raw_dir": tmp_path / "raw",
        "data.store_dir": tmp_path / "store",
        "pretrain.augment": "{'name': 'none'}",  # the others compile for long
        "finetune.augment": "{'name': 'none'}",
        "pretrain.train.steps": 8,
        "finetune.train.steps": 4,
    }
    code, said = call_main(
        capsys,
        f"--config={ROOT / 'configs' / 'gcl_proper_phantom.py'}",
        f"--workdir={tmp_path / 'run'}",
        "--devices=1",
        *(f"--config.{key}={value}" for key, value in values.items()),
    )
    assert code == 0, said
    rows = read_rows(tmp_path / "run" / "pretrain" / "metrics.csv")
    assert np.isfinite([float(row["loss"]) for row in rows]).all()
    assert {float(row["positives"]) for row in rows} == {2.0}
    assert "loaded     52 leaves" in said
    assert (tmp_path / "run" / "summary.json").is_file()


def test_configs_hold_the_images_of_a_step_of_pcl():
    for data in ("acdc", "hippocampus", "phantom"):
        ours, pcl = (
            runpy.run_path(str(ROOT / f"configs/{arm}_{data}.py"))["get_config"]()
            for arm in ("gcl_proper", "pcl")
        )
        images = 1 + ours.pretrain.method.augmentations
        assert (
            images * ours.pretrain.data.batch_size == 2 * pcl.pretrain.data.batch_size
        )
        assert ours.pretrain.train.to_dict() == pcl.pretrain.train.to_dict()
