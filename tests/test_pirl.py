"""PIRL: its loss and bank against NumPy loops, the patches, what is refused, resuming.

That one device equals many, bank included, stands in test_methods.py.
"""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tiny import ROOT, main_env, run_main, tiny_args

from pclseg import augment, methods, models, parallel
from pclseg.augment import sample_keys
from pclseg.building import outline
from pclseg.config import load_config
from pclseg.errors import UserError
from pclseg.losses.memory_bank import bank_nce, other_rows, updated_bank
from pclseg.parts import jigsaw
from pclseg.state import TrainState
from pclseg.train.metrics import read_rows
from pclseg.train.step import init_state, make_train_step

SETTINGS = dict(
    temperature=0.1,
    num_negatives=6,
    jigsaw_weight=0.5,
    bank_momentum=0.5,
    patch_size=16,
)
ROWS, SIZE, SLICES, DIM = 4, 48, 11, 8


def unit(*shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def naive_nce(embedding, own, negatives, temperature):
    """The equation of `bank_nce` in float64, one embedding and negative at a time."""
    losses = []
    for u, m, others in zip(embedding, own, negatives, strict=True):
        positive = np.exp(np.dot(m, u) / temperature)
        rest = sum(np.exp(np.dot(other, u) / temperature) for other in others)
        losses.append(-np.log(positive / (positive + rest)))
    return np.array(losses)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_bank_nce_equals_naive_loop(count, temperature):
    data = unit(5, DIM), unit(5, DIM, seed=1), unit(5, count, DIM, seed=2)
    given = [x.astype(np.float32) for x in data]
    value = bank_nce(*given, temperature=temperature)
    np.testing.assert_allclose(value, naive_nce(*data, temperature), atol=1e-5)


def test_bank_nce_does_not_depend_on_the_order_of_negatives():
    data = unit(5, DIM), unit(5, DIM, seed=1), unit(5, 7, DIM, seed=2)
    backwards = *data[:2], data[2][:, ::-1]
    values = [
        bank_nce(*map(jnp.asarray, d), temperature=0.1) for d in (data, backwards)
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_equal_similarities_give_the_log_of_all_entries():
    same = np.tile(unit(1, DIM), (5, 1)).astype(np.float32)
    negatives = np.repeat(same[:, None], 7, axis=1)
    np.testing.assert_allclose(
        bank_nce(same, same, negatives, temperature=0.1), np.log(8), rtol=1e-6
    )


@pytest.mark.parametrize("count", [1, 3])
def test_zero_vectors_have_a_finite_gradient(count):
    zero, zeros = jnp.zeros((2, DIM)), jnp.zeros((2, count, DIM))
    value, grads = jax.value_and_grad(
        lambda *args: bank_nce(*args, temperature=0.07).sum(), argnums=(0, 1, 2)
    )(zero, zero, zeros)
    np.testing.assert_allclose(value, 2 * np.log(1 + count), rtol=1e-6)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_bfloat16_embedding_is_computed_in_float32():
    data = unit(5, DIM), unit(5, DIM, seed=1), unit(5, 7, DIM, seed=2)
    half = [jnp.asarray(x, jnp.bfloat16) for x in data]
    value = bank_nce(*half, temperature=0.1)
    assert value.dtype == jnp.float32
    exact = bank_nce(*(x.astype(jnp.float32) for x in half), temperature=0.1)
    np.testing.assert_array_equal(value, exact)
    grad = jax.grad(lambda u: bank_nce(u, *half[1:], temperature=0.1).sum())(half[0])
    assert grad.dtype == jnp.bfloat16 and np.isfinite(grad).all()


@pytest.mark.parametrize("num_rows", [2, 3, 10])
def test_own_entry_is_never_a_negative_and_all_others_are(num_rows):
    row = jnp.arange(num_rows, dtype=jnp.int32)
    keys = sample_keys(jax.random.key(0), row)
    drawn = np.asarray(other_rows(keys, row, num_rows=num_rows, count=200))
    for own, others in enumerate(drawn):
        assert set(others.tolist()) == set(range(num_rows)) - {own}


def test_negatives_are_uniform():
    row = jnp.zeros(50, jnp.int32) + 3
    keys = sample_keys(jax.random.key(0), jnp.arange(50))
    drawn = np.asarray(other_rows(keys, row, num_rows=6, count=1000))
    counts = np.bincount(drawn.ravel(), minlength=6)
    assert counts[3] == 0
    # 50,000 draws among five: a standard deviation is 90
    np.testing.assert_allclose(np.delete(counts, 3), 10_000, atol=450)


def naive_bank(bank, rows, embedding, momentum):
    """Entry after entry in float64; the first embedding of a slice counts."""
    bank, seen = bank.copy(), set()
    for row, v in zip(rows, embedding, strict=True):
        if row not in seen:
            mixed = momentum * bank[row] + (1 - momentum) * v
            bank[row] = mixed / np.sqrt(np.sum(mixed**2))
            seen.add(row)
    return bank


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_bank_update_equals_naive_loop_and_the_first_of_a_slice_counts(momentum):
    bank, embedding = unit(9, DIM), unit(6, DIM, seed=1)
    rows = np.array([4, 0, 4, 8, 0, 4], np.int32)
    found = updated_bank(
        jnp.asarray(bank, jnp.float32), rows, jnp.asarray(embedding), momentum=momentum
    )
    expected = naive_bank(bank, rows, embedding, momentum)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    untouched = np.array([1, 2, 3, 5, 6, 7])
    np.testing.assert_array_equal(found[untouched], bank.astype("f4")[untouched])


def test_no_gradient_goes_into_the_bank():
    grad = jax.grad(
        lambda v: updated_bank(
            jnp.ones((2, DIM)), jnp.zeros(1, jnp.int32), v, momentum=0.5
        ).sum()
    )(jnp.ones((1, DIM)))
    assert not grad.any()


def numbered(height, width, rows=2):
    """Images whose pixels tell their place: y * 1000 + x."""
    y, x = np.mgrid[:height, :width]
    image = (1000 * y + x).astype(np.float32)[..., None]
    return jnp.asarray(np.stack([image] * rows))


@pytest.mark.parametrize(
    ("height", "width", "patch", "cell"),
    [(48, 48, 16, (16, 16)), (64, 96, 16, (21, 32)), (112, 112, 32, (37, 37))],
)
def test_patches_are_one_of_every_cell(height, width, patch, cell):
    keys = jax.random.split(jax.random.key(0), 20)
    cut = jax.jit(functools.partial(jigsaw.cut, patch_size=patch))
    patches = np.asarray(cut(keys, numbered(height, width, rows=20)))
    assert patches.shape == (20, 9, patch, patch, 1)
    inside = patches - patches[:, :, :1, :1]  # each a piece of the image as it was
    np.testing.assert_array_equal(inside, np.broadcast_to(inside[0, 0], inside.shape))
    y, x = np.divmod(patches[:, :, 0, 0, 0].astype(int), 1000)
    place = np.minimum(y // cell[0], 2) * 3 + np.minimum(x // cell[1], 2)
    np.testing.assert_array_equal(np.sort(place, axis=1), np.tile(range(9), (20, 1)))
    assert len({tuple(order) for order in place}) > 15  # every row its own order
    jitter = set((y % cell[0]).ravel()), set((x % cell[1]).ravel())
    for seen, size in zip(jitter, cell, strict=True):
        assert min(seen) == 0 and max(seen) == size - patch


def test_patches_of_a_row_depend_on_its_own_key_only():
    keys = jax.random.split(jax.random.key(0), 3)
    images = numbered(64, 64, rows=3)
    whole = jigsaw.cut(keys, images, patch_size=16)
    alone = jigsaw.cut(keys[1:2], images[1:2], patch_size=16)
    np.testing.assert_array_equal(whole[1:2], alone)


def make(axis_name=None, network="unet2d_jigsaw", **changes):
    model = models.make(
        network, width=2, out_dim=DIM, dtype="float32", bn_groups=1, axis_name=axis_name
    )
    return methods.make(
        "pirl",
        model=model,
        augment=augment.make("none"),
        axis_name=axis_name,
        **SETTINGS | changes,
    ), model


def batch(size=SIZE, num_slices=SLICES):
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(ROWS, size, size, 1)).astype(np.float32),
        "slice": np.array([3, 0, 10, 3], np.int32),
        "num_slices": np.full(ROWS, num_slices, np.int32),
    }


@functools.cache
def jitted():
    """(method, model, state, jitted (params, state, batch) -> loss with Aux)."""
    method, model = make()
    data = batch()
    init = jax.jit(lambda key: init_state(method, optax.sgd(0.1), key, data))
    loss = jax.jit(lambda *args: method.loss(*args, jax.random.key(1)))
    return method, model, init(jax.random.key(0)), loss


def test_jigsaw_net_has_one_more_head_and_the_parameters_of_its_formula():
    _, _, state, _ = jitted()
    width, count = 16 * 2, lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    head = width * width + width + width * DIM + DIM
    assert set(state.params) == {"encoder", "head", "jigsaw_head"}
    assert count(state.params["head"]) == head
    assert count(state.params["jigsaw_head"]) == head + 9 * DIM * DIM + DIM


def test_same_key_gives_the_encoder_of_pcl():
    _, _, state, _ = jitted()
    model = models.make(
        "unet2d_contrast", width=2, out_dim=DIM, dtype="float32", bn_groups=1
    )
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), batch()["image"])["params"]
    for part in ("encoder", "head"):
        jax.tree.map(np.testing.assert_array_equal, params[part], state.params[part])


def test_slices_of_two_channels_are_learnt_from():
    method, _ = make()
    data = batch()
    data["image"] = np.concatenate([data["image"], -data["image"]], axis=-1)
    state = init_state(method, optax.sgd(0.1), jax.random.key(0), data)
    kernels = jax.tree.leaves(state.params["encoder"])
    assert 2 in {kernel.shape[-2] for kernel in kernels if kernel.ndim == 4}
    loss = jax.jit(lambda *args: method.loss(*args, jax.random.key(1)))
    assert np.isfinite(loss(state.params, state, data)[0])


def test_bank_starts_with_a_random_unit_vector_for_every_slice():
    bank = np.asarray(jitted()[2].method_state["bank"], np.float64)
    assert bank.shape == (SLICES, DIM)
    np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, rtol=1e-6)
    assert np.abs(bank @ bank.T - np.eye(SLICES)).max() < 0.99


def test_images_and_patches_are_two_passes_that_both_move_the_running_averages():
    _, model, state, _ = jitted()
    images = batch()["image"]
    rng = np.random.default_rng(1)
    patches = rng.normal(3, 2, size=(ROWS, 9, 16, 16, 1)).astype(np.float32)

    def apply(variables, *args, method):
        return model.apply(
            variables, *args, train=True, mutable=["batch_stats"], method=method
        )

    variables = {"params": state.params, **state.model_state}
    both = jax.jit(functools.partial(apply, method="pair"))
    alone = jax.jit(functools.partial(apply, method="features"))
    (embedding, _), found = both(variables, images, patches)
    _, after_images = alone(variables, images)
    _, expected = alone({**variables, **after_images}, patches.reshape(-1, 16, 16, 1))
    assert embedding.shape == (ROWS, DIM)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected
    )


class Linear:
    """A network whose two embeddings are pixels times given matrices."""

    out_dim = DIM
    pair = None  # the method asks whether there is one

    def __init__(self):
        rng = np.random.default_rng(2)
        self.whole = rng.normal(size=(SIZE * SIZE, DIM)).astype(np.float32)
        self.puzzle = rng.normal(size=(9 * 16 * 16, DIM)).astype(np.float32)

    def embed(self, images, patches):
        pixels = (x.reshape(len(x), -1) for x in (images, patches))
        return [x @ m for x, m in zip(pixels, (self.whole, self.puzzle), strict=True)]

    def apply(self, variables, images, patches, *, method, **unused):
        assert method == "pair"
        return self.embed(images, patches), {}


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_loss_and_bank_of_the_method_equal_naive_loops(weight):
    model, data, key = Linear(), batch(), jax.random.key(3)
    settings = SETTINGS | {"jigsaw_weight": weight}
    noisy = augment.make("intensity", brightness=(-1, 1), contrast=(0.5, 2), clip=())
    method = methods.make(
        "pirl", model=model, augment=noisy, axis_name=None, **settings
    )
    bank = unit(SLICES, DIM, seed=4)
    state = TrainState(
        step=0,
        params={},
        opt_state={},
        model_state={},
        method_state={"bank": jnp.asarray(bank, jnp.float32)},
    )
    value, aux = method.loss({}, state, data, key)

    # what is drawn, by the functions tested above
    pair_key, negatives_key = jax.random.split(key)
    *view_keys, cut_key = (
        sample_keys(k, jnp.arange(ROWS)) for k in jax.random.split(pair_key, 3)
    )
    whole, puzzle = (noisy(keys, data["image"], None)[0] for keys in view_keys)
    patches = jigsaw.cut(cut_key, puzzle, patch_size=16)
    others = other_rows(
        sample_keys(negatives_key, jnp.arange(ROWS)),
        data["slice"],
        num_rows=SLICES,
        count=6,
    )
    assert (np.asarray(others) != data["slice"][:, None]).all()

    images, patches = (np.asarray(x, np.float64) for x in (whole, patches))
    v, v_t = (
        z / np.linalg.norm(z, axis=1, keepdims=True)
        for z in model.embed(images, patches)
    )
    own, negatives = bank[data["slice"]], bank[np.asarray(others)]
    of_image, of_puzzle = (naive_nce(u, own, negatives, 0.1).mean() for u in (v, v_t))
    expected = (1 - weight) * of_image + weight * of_puzzle
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    gap = abs(expected - np.log(1 + 6))
    np.testing.assert_allclose(aux.metrics["image_loss"], of_image, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["jigsaw_loss"], of_puzzle, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["collapse_gap"], gap, rtol=1e-4)
    moved = naive_bank(bank, data["slice"], v, 0.5)
    np.testing.assert_allclose(aux.method_state["bank"], moved, atol=1e-5)


def test_the_bank_follows_the_embeddings_of_the_whole_slices():
    _, model, state, loss = jitted()
    data = batch()
    _, aux = loss(state.params, state, data)
    forward = jax.jit(
        lambda *args: model.apply(*args, train=True, mutable=["batch_stats"])[0]
    )
    variables = {"params": state.params, **state.model_state}
    v = np.asarray(forward(variables, data["image"]), np.float64)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    bank = np.asarray(state.method_state["bank"], np.float64)
    expected = naive_bank(bank, data["slice"], v, 0.5)
    np.testing.assert_allclose(aux.method_state["bank"], expected, atol=1e-5)


def test_without_content_loss_and_gradient_are_finite():
    method, _, state, _ = jitted()
    step = jax.jit(make_train_step(method, optax.sgd(0.1), None))
    data = {**batch(), "image": np.zeros((ROWS, SIZE, SIZE, 1), np.float32)}
    _, metrics = step(state, data, jax.random.key(1))
    assert all(np.isfinite(float(value)) for value in metrics.values())


def test_bank_is_that_of_one_device_where_a_slice_is_on_two():
    _, _, state, loss = jitted()
    method, _ = make(parallel.AXIS)
    devices = jax.devices()[:2]

    def bank(state, batch, key):
        return method.loss(state.params, state, batch, key)[1].method_state["bank"]

    banks = parallel.pmap_shares(bank, devices, others=1)(
        jax.device_get(state), parallel.shard(batch(), 2), jax.random.key(1)
    )
    np.testing.assert_array_equal(banks[0], banks[1])
    alone = loss(state.params, state, batch())[1].method_state["bank"]
    np.testing.assert_allclose(banks[0], alone, atol=1e-6)


def test_a_collapsed_embedding_is_warned_about():
    """Its loss does not tell: over a young bank it lies far above log(1 + K)."""
    method, _, state, loss = jitted()
    dead = jax.tree.map(  # without kernels nothing of a slice is left
        lambda x: jnp.full_like(x, float(x.ndim == 1)), state.params
    )
    for params, alike in ((dead, True), (state.params, False)):
        _, aux = loss(params, state, batch())
        metrics = {key: float(value) for key, value in aux.metrics.items()}
        assert metrics["collapse_gap"] > 0.01
        said = str(method.diagnose(metrics))
        assert said.startswith("all slices are embedded alike") == alike, metrics


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; expected > 0"),
        ({"num_negatives": 0}, "num_negatives is 0; expected >= 1"),
        ({"jigsaw_weight": 1.5}, "jigsaw_weight is 1.5; expected 0 to 1"),
        ({"bank_momentum": 1.0}, "bank_momentum is 1.0; expected 0 to below 1"),
        ({"patch_size": 24}, "patch_size is 24; .*multiple of 16"),
        ({"network": "unet2d_contrast"}, "use model.name='unet2d_jigsaw'"),
    ],
)
def test_bad_settings_are_one_clear_line(change, said):
    with pytest.raises(UserError, match=said) as caught:
        make(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "patch", "said"),
    [
        (dict(size=96), 48, "a third of data.crop_size 96 x 96 has 32.*use 32 or less"),
        (dict(size=32), 16, "has 10 pixels; use crops of 48 or more"),
        (dict(num_slices=1), 16, "a single slice"),
    ],
)
def test_slices_that_do_not_fit_are_refused_at_init(data, patch, said):
    method, _ = make(patch_size=patch)
    with pytest.raises(UserError, match=said):
        method.init(jax.random.key(0), batch(**data))


def test_patches_that_do_not_fit_are_refused_before_data_is_read(tmp_path):
    config = load_config("configs/pirl_phantom.py")
    config.data.raw_dir = str(tmp_path / "raw")
    config.data.options.volumes = 10
    config.pretrain.data.crop_size = (32, 32)
    with pytest.raises(UserError, match=r"^config.pretrain: method.patch_size is 16"):
        outline(config)


def saved(folder):
    """Every leaf of the newest checkpoint."""
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        step = manager.latest_step()
        return step, manager.restore(step, args=ocp.args.StandardRestore())


@pytest.mark.slow
def test_a_killed_run_resumes_bitwise_with_its_bank_and_is_finetuned(tmp_path):
    env = main_env(cache=tmp_path / "compiled")

    def arguments(name, *only):
        return [
            *tiny_args(
                tmp_path / "raw",
                tmp_path / "store",
                tmp_path / name,
                arm="pirl",
                pretrain__data__crop_size=(48, 48),
                pretrain__train__steps=12,
                pretrain__train__checkpoint_every=2,
                pretrain__augment={"name": "none"},  # compiles in half the time
                finetune__train__steps=4,
                finetune__augment={"name": "none"},
            ),
            *only,
        ]

    done = run_main(arguments("whole"), env=env)
    assert done.returncode == 0, done.stderr
    killer = [sys.executable, ROOT / "tests" / "interrupted.py", "KILL", "pretrain"]
    args = arguments("killed", "--stages=pretrain")
    killed = subprocess.run([*killer, "8", "0", *args], cwd=ROOT, env=env, check=False)
    assert killed.returncode == -9
    done = run_main(args, env=env)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    ends = [saved(tmp_path / name / "pretrain") for name in ("killed", "whole")]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    bank = ends[0][1]["method_state"]["bank"]
    np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, rtol=1e-5)
    for stage in ("pretrain", "finetune"):
        rows = read_rows(tmp_path / "whole" / stage / "metrics.csv")
        assert all(0 < float(row["loss"]) < 25 for row in rows)  # 2 / 0.1 + log 129
