"""TCSM and mean teacher: oracles in float64, the teacher, whole runs on a phantom."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import optax
import pytest
from pixelwise import CLASSES, WEIGHTS, Pixelwise
from test_resume import interrupted, saved
from tiny import ROOT, main_env, run_main, tiny_args
from tiny_nifti import call_main

from pclseg import augment, methods
from pclseg.augment import sample_keys
from pclseg.errors import UserError
from pclseg.evaluation.cases import read_cases, summarise
from pclseg.files import read_json
from pclseg.losses.distillation import squared_difference
from pclseg.methods import tcsm
from pclseg.models.layers import BatchNorm
from pclseg.parts import ema
from pclseg.parts.consistency import consistency, ramp_up
from pclseg.state import TrainState
from pclseg.train.metrics import read_rows
from pclseg.train.step import init_state, make_train_step

ROWS, SIZE = 4, 16
SETTINGS = dict(max_weight=1.0, ramp_steps=8, max_decay=0.999, noise_std=0.1)
PLAIN = augment.make("none")
COMMON = dict(model=Pixelwise(), augment=PLAIN, axis_name=None)
UNMOVED = dict(zoom=(1.0, 1.0))


class Normalised(nn.Module):
    """1 x 1 layers around a batch normalisation: moves as its images move."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(4)(images)
        x = BatchNorm("float32", 1, None)(x, train=train)
        return nn.Dense(CLASSES)(jax.nn.relu(x))


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(ROWS, SIZE, SIZE, 1)).astype(np.float32),
        "label": rng.integers(0, CLASSES, (ROWS, SIZE, SIZE)).astype(np.int32),
        "unlabelled_image": rng.normal(size=(3, SIZE, SIZE, 1)).astype(np.float32),
    }


def started(method, *, step=3, seed=1):
    state = init_state(method, optax.sgd(0.1), jax.random.key(seed), batch())
    return state.replace(step=jnp.int32(step))


def with_teacher(state, other):
    """`state` with the weights of `other` as teacher."""
    return state.replace(method_state={"teacher": ema.copy_of(*weights(other))})


def weights(state):
    return state.params, state.model_state


def value_of(method, state, key=0, **changed):
    data = batch() | changed
    return method.loss(state.params, state, data, jax.random.key(key))


def softmax(x):
    exp = np.exp(x - x.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def drawn(key):
    """(quarters, flipped, noise) of every unlabelled row, as the method draws them."""
    _, transform_key, noise_key = jax.random.split(key, 3)
    for row in range(len(batch()["unlabelled_image"])):
        turn_key, number_key = jax.random.split(jax.random.fold_in(transform_key, row))
        quarters = int(jax.random.randint(turn_key, (), 0, 4))
        flipped = bool(jax.random.uniform(number_key, (2,))[0] < 0.5)
        noise = jax.random.normal(jax.random.fold_in(noise_key, row), (SIZE, SIZE, 1))
        yield quarters, flipped, np.asarray(noise, np.float64)


def oracle(student, teacher, draws, step):
    """The loss of TCSM with the network Pixelwise, in float64."""
    data = {name: np.float64(value) for name, value in batch().items()}
    probs = softmax(data["image"] * student[0] + student[1])
    picked = np.take_along_axis(probs, batch()["label"][..., None], axis=-1)
    differences = []
    for image, (quarters, flipped, noise) in zip(
        data["unlabelled_image"], draws, strict=True
    ):
        moved = softmax(image * student[0] + student[1]), image
        moved = [np.rot90(values, quarters) for values in moved]
        moved = [values[::-1] if flipped else values for values in moved]
        targets = softmax((moved[1] + 0.1 * noise) * teacher[0] + teacher[1])
        differences.append(np.mean((moved[0] - targets) ** 2))
    weight = np.exp(-5 * (1 - step / 8) ** 2)
    return -np.log(picked).mean() + weight * np.mean(differences)


def test_loss_and_gradient_equal_a_float64_oracle():
    method = methods.make("tcsm", **COMMON, **SETTINGS, **UNMOVED)
    state, other = started(method), started(method, seed=2)
    state = with_teacher(state, other)
    student, teacher = (
        np.array([s.params[x] for x in WEIGHTS], np.float64) for s in (state, other)
    )
    key = jax.random.key(0)
    (value, _), grad = jax.value_and_grad(method.loss, has_aux=True)(
        state.params, state, batch(), key
    )
    draws = list(drawn(key))
    np.testing.assert_allclose(value, oracle(student, teacher, draws, 3), rtol=1e-5)
    for place in np.ndindex(student.shape):
        nudge = np.zeros(student.shape)
        nudge[place] = 1e-5
        up, down = (oracle(student + d, teacher, draws, 3) for d in (nudge, -nudge))
        found = grad[WEIGHTS[place[0]]][place[1]]
        np.testing.assert_allclose(found, (up - down) / 2e-5, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_turn_is_rot90_and_reversed_rows(quarters, flip):
    value = np.random.default_rng(0).normal(size=(5, 5, 2)).astype(np.float32)
    expected = np.rot90(value, quarters)
    found = tcsm.turn(jnp.asarray(value), jnp.int32(quarters), jnp.bool_(flip))
    np.testing.assert_array_equal(found, expected[::-1] if flip else expected)


def test_all_turns_are_drawn_equally_and_alike_for_equal_keys():
    keys = sample_keys(jax.random.key(0), jnp.arange(4000))
    corners = jnp.tile(jnp.arange(4.0).reshape(1, 2, 2, 1), (4000, 1, 1, 1))
    moved = tcsm.transform(keys, corners, zoom=(1, 1))
    kinds, counts = np.unique(moved.reshape(4000, 4), axis=0, return_counts=True)
    assert len(kinds) == 8  # 500 expected of each, of standard deviation 21
    assert np.abs(counts - 500).max() < 5 * 21
    both = tcsm.transform(keys, jnp.concatenate([corners, -corners], -1), zoom=(1, 1))
    np.testing.assert_array_equal(both[..., 0], moved[..., 0])
    np.testing.assert_array_equal(both[..., 1], -moved[..., 0])


def fixed(quarters, flip):
    return lambda keys, values: jax.vmap(
        lambda value: tcsm.turn(value, jnp.int32(quarters), jnp.bool_(flip))
    )(values)


def equivariant(transform, **changed):
    settings = SETTINGS | {"noise_std": 0.0} | changed
    return consistency(
        model=Normalised(),
        augment=PLAIN,
        transform=transform,
        axis_name=None,
        **settings,
    )


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_a_network_that_moves_with_its_images_is_consistent(quarters, flip):
    method = equivariant(fixed(quarters, flip))
    _, aux = value_of(method, started(method))
    assert float(aux.metrics["consistency"]) < 1e-12


def test_what_does_not_move_with_the_image_is_inconsistent():
    class Anchored(Pixelwise):
        def apply(self, variables, images, train, mutable=(), **unused):
            ramp = jnp.arange(SIZE, dtype=jnp.float32)[None, :, None, None]
            return super().apply(variables, images + ramp, train, mutable)

    method = methods.make(
        "tcsm",
        **COMMON | {"model": Anchored()},
        **SETTINGS | {"noise_std": 0.0},
        **UNMOVED,
    )
    _, aux = value_of(method, started(method))
    assert float(aux.metrics["consistency"]) > 1e-3


def test_noise_reaches_the_teacher_only():
    noisy = equivariant(fixed(0, False), noise_std=0.5)
    state = started(noisy)
    _, aux = value_of(noisy, state)
    _, quiet = value_of(equivariant(fixed(0, False)), state)
    assert float(aux.metrics["consistency"]) > 1e-4
    assert aux.metrics["cross_entropy"] == quiet.metrics["cross_entropy"]
    jax.tree.map(np.testing.assert_array_equal, aux.model_state, quiet.model_state)


def test_enlarging_a_ramp_divides_its_slope():
    ramp = jnp.arange(9.0)[:, None, None] * jnp.ones((1, 9, 2))
    for factor in (0.9, 1.0, 1.1):
        found = np.asarray(tcsm.enlarge(ramp, jnp.float32(factor)))
        expected = 4 + (np.arange(9) - 4) / factor
        inside = (expected >= 0) & (expected <= 8)
        np.testing.assert_allclose(found[:, 4, 1], expected * inside, atol=1e-5)


def test_pixels_that_a_zoom_brings_in_from_outside_do_not_count():
    method = methods.make(
        "tcsm", **COMMON, **SETTINGS | {"noise_std": 0.0}, zoom=(0.5, 1.0)
    )
    constant = np.full((3, SIZE, SIZE, 1), 2.0, np.float32)
    _, aux = value_of(method, started(method), unlabelled_image=constant)
    assert float(aux.metrics["consistency"]) < 1e-12


def test_squared_difference_is_a_mean_over_pixels_inside_and_classes():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(3), (2, 2, 4, 4))
    inside = (rng.random((2, 4, 4, 1)) < 0.5).astype(np.float64)
    inside[1] = 0
    places = inside[0, ..., 0] > 0
    expected = [np.mean((a[0] - b[0])[places] ** 2), 0.0]
    found = squared_difference(*(jnp.asarray(x, jnp.float32) for x in (a, b, inside)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weight_of_the_consistency_rises_as_published():
    steps = jnp.array([0, 300, 600, 800])
    found = ramp_up(steps, max_weight=2.0, ramp_steps=600)
    expected = 2 * np.exp([-5, -1.25, 0, 0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_decay_of_the_teacher_is_that_of_a_mean_and_then_constant():
    steps = jnp.array([0, 1, 3, 998, 999, 5000])
    found = ema.decay(steps, max_decay=0.999)
    expected = [0, 1 / 2, 3 / 4, 1 - 1 / 999, 0.999, 0.999]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_teacher_is_at_first_the_mean_of_all_students():
    teacher = {"params": jnp.float32(100.0), "batch_stats": {}}
    seen = []
    for count, student in enumerate([1.0, 2.0, 6.0], start=1):
        params = jnp.float32(student)
        state = TrainState(
            jnp.int32(count), params, (), {"batch_stats": {}}, {"teacher": teacher}
        )
        decay = ema.decay(state.step - 1, max_decay=0.999)
        state = ema.follow(state, decay=decay, mode="train")
        teacher = state.method_state["teacher"]
        seen.append(float(teacher["params"]))
    np.testing.assert_allclose(seen, [1, 1.5, 3], rtol=1e-6)


def test_after_the_first_step_the_teacher_is_a_copy_of_the_student():
    method, tx = equivariant(fixed(0, False)), optax.sgd(0.1)
    state = init_state(method, tx, jax.random.key(1), batch())
    step = make_train_step(method, tx, None)
    state, _ = step(state, batch(), jax.random.key(2))
    teacher = state.method_state["teacher"]
    jax.tree.map(np.testing.assert_array_equal, teacher["params"], state.params)
    state, _ = step(state, batch(1), jax.random.key(2))
    first = teacher["params"]
    jax.tree.map(
        lambda t, a, b: np.testing.assert_allclose(t, (a + b) / 2, atol=1e-6),
        state.method_state["teacher"]["params"],
        first,
        state.params,
    )


def test_no_gradient_passes_through_the_teacher():
    method = equivariant(fixed(1, False), max_weight=100.0)
    state = with_teacher(started(method), started(method, seed=2))

    def of_teacher(teacher):
        other = state.replace(method_state={"teacher": teacher})
        return value_of(method, other)[0]

    grad = jax.grad(of_teacher)(state.method_state["teacher"])
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), grad)


def test_statistics_of_the_teacher_are_those_of_its_own_passes():
    method = equivariant(fixed(0, False))
    state = with_teacher(started(method), started(method, seed=2))
    _, aux = value_of(method, state)
    teacher = state.method_state["teacher"]
    _, expected = Normalised().apply(
        teacher, batch()["unlabelled_image"], train=True, mutable=["batch_stats"]
    )
    found = aux.method_state["teacher"]
    jax.tree.map(
        np.testing.assert_array_equal, found["batch_stats"], expected["batch_stats"]
    )
    jax.tree.map(np.testing.assert_array_equal, found["params"], teacher["params"])


def test_without_weight_the_student_learns_as_if_supervised():
    method = equivariant(fixed(1, True), max_weight=0.0)
    plain = methods.make(
        "supervised", model=Normalised(), augment=PLAIN, axis_name=None
    )
    state = started(method)
    ours, theirs = (
        jax.grad(m.loss, has_aux=True)(state.params, state, batch(), jax.random.key(0))[
            0
        ]
        for m in (method, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), ours, theirs)
    weighted = equivariant(fixed(1, True), noise_std=1.0)
    grads, _ = jax.grad(weighted.loss, has_aux=True)(
        state.params, state.replace(step=jnp.int32(8)), batch(), jax.random.key(0)
    )
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), grads, theirs)
    assert max(jax.tree.leaves(apart)) > 1e-4


def test_mean_teacher_is_tcsm_that_moves_nothing(monkeypatch):
    monkeypatch.setattr(tcsm, "transform", lambda keys, values, *, zoom: values)
    still = methods.make("tcsm", **COMMON, **SETTINGS, **UNMOVED)
    plain = methods.make("mean_teacher", **COMMON, **SETTINGS)
    states = []
    for method in (still, plain):
        tx = optax.sgd(0.1)
        state = init_state(method, tx, jax.random.key(1), batch())
        for number in range(3):
            state, metrics = make_train_step(method, tx, None)(
                state, batch(number), jax.random.key(2)
            )
        states.append((state, metrics))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert float(states[0][1]["consistency"]) > 0


def test_student_and_teacher_predict_each_with_their_own_weights():
    method = equivariant(fixed(0, False))
    state, other = started(method), started(method, seed=2)
    state, images = with_teacher(state, other), batch()["image"]
    for found, owner in [
        (method.predict(state, images), state),
        (method.also_predict["teacher"](state, images), other),
    ]:
        variables = {"params": owner.params, **owner.model_state}
        expected = Normalised().apply(variables, images, train=False)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_weight": -1.0}, r"max_weight is -1\.0; expected >= 0"),
        ({"ramp_steps": 0}, "ramp_steps is 0; expected 1 or more"),
        ({"max_decay": 1.0}, r"max_decay is 1\.0; expected 0 <= max_decay < 1"),
        ({"noise_std": -0.1}, r"noise_std is -0\.1; expected >= 0"),
        ({"zoom": (1.1, 1.2)}, r"zoom is \(1\.1, 1\.2\); expected 0 < low <= 1"),
        ({"zoom": (1.0,)}, r"zoom is \(1\.0,\)"),
    ],
)
def test_bad_settings_are_one_clear_line(change, said):
    with pytest.raises(UserError, match=said) as caught:
        methods.make("tcsm", **COMMON, **SETTINGS | UNMOVED | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.crop_size=(64, 48)", "turns slices by 90 degrees; set it to a square"),
        ("data.unlabelled_batch_size=0", "takes a stream of unlabelled slices"),
        ("model.bn_groups=5", "divisor of config.finetune.data.unlabelled_batch_size"),
    ],
)
def test_what_does_not_fit_is_said_before_any_volume_is_read(capsys, override, said):
    code, text = call_main(
        capsys,
        f"--config={ROOT}/configs/tcsm_phantom.py",
        "--dry_run",
        "--devices=1",
        "--config.data.options.volumes=8",
        "--config.finetune.data.unlabelled_batch_size=8",
        f"--config.finetune.{override}",
    )
    assert code == 1
    assert said in text.splitlines()[-1]


STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tcsm")


@pytest.fixture(scope="module")
def env(folder):
    return main_env(cache=folder / "compiled")


def arguments(folder, name):
    """Of a run that trains TCSM alone, from random weights."""
    return tiny_args(
        folder / "raw",
        folder / "store",
        folder / name,
        arm="pcl_tcsm",
        stages=("finetune",),
        finetune__init_from="",
        finetune__data__unlabelled_batch_size=4,
        finetune__method__ramp_steps=8,
        finetune__train__steps=STEPS,
    )


@pytest.fixture(scope="module")
def whole(folder, env):
    """The folder of a run without interruption."""
    done = run_main(arguments(folder, "whole"), env=env)
    assert done.returncode == 0, done.stderr
    return folder / "whole"


@pytest.mark.slow
def test_teacher_and_student_are_both_scored(whole):
    validated = read_rows(whole / "finetune" / "validation.csv")[-1]
    names = read_json(whole / "dataset.json")["class_names"][1:]
    for network in ("dice_pooled", "dice_pooled_teacher"):
        classes = [float(validated[f"{network}_{name}"]) for name in names]
        np.testing.assert_allclose(float(validated[network]), np.mean(classes))
    student, teacher = (
        read_cases(whole / f"cases{name}.csv") for name in ("", "_teacher")
    )
    summary = read_json(whole / "summary.json")
    assert summary["teacher"] == summarise(teacher)
    assert summary["overall"] == summarise(student)["overall"]
    assert [row["case"] for row in student] == [row["case"] for row in teacher]
    assert student != teacher


@pytest.mark.slow
def test_kept_predictions_are_those_of_the_student(whole):
    values = read_json(whole / "dataset.json")["label_values"]
    for row in read_cases(whole / "cases.csv"):
        image = nib.load(whole / "predictions" / f"{row['case']}.nii.gz")
        voxels = np.asarray(image.dataobj) == values[row["class"]]
        assert voxels.sum() == row["predicted_voxels"]


@pytest.mark.slow
def test_all_training_patients_count_as_seen(whole):
    fold = read_json(whole / "splits.json")["folds"][0]
    seen = read_json(whole / "finetune" / "patients.json")
    assert seen["images"] == sorted(fold["train"])
    assert seen["labels"] == sorted(fold["draw"][:2])
    assert len(seen["images"]) > 2


@pytest.mark.slow
def test_a_killed_run_goes_on_bitwise_with_its_teacher(folder, env, whole):
    args = arguments(folder, "killed")
    done = interrupted(env, "KILL", "finetune", 8, 0.05, args)
    assert done.returncode == -9, done.stderr
    assert not (folder / "killed" / "finetune" / "done.json").exists()
    done = run_main(args, env=env)
    assert done.returncode == 0, done.stderr
    assert f"going on from step 5 of {STEPS}" in done.stderr
    for name in (
        "finetune/metrics.csv",
        "finetune/validation.csv",
        "cases.csv",
        "cases_teacher.csv",
        "summary.json",
    ):
        found, expected = (folder / run / name for run in ("killed", "whole"))
        assert found.read_bytes() == expected.read_bytes(), name
    found, expected = (saved(folder / run / "finetune") for run in ("killed", "whole"))
    assert found[0] == expected[0] == STEPS
    assert "teacher" in found[1]["method_state"]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
