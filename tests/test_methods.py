"""Every method, and a toy with teacher and queue, keeps the contract on any devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import forget_compiled_code

from pclseg import augment, methods, models, parallel
from pclseg.batch import check_batch
from pclseg.data import slices
from pclseg.errors import UserError
from pclseg.losses.contrastive import collapse_value, unit_length
from pclseg.methods.base import Aux, Method
from pclseg.parts.collapse import warn_of_collapse
from pclseg.state import TrainState
from pclseg.train.step import init_state, make_train_step

ROWS, SIZE, SLICES = 16, 16, 40
SIZES = dict.fromkeys(("pirl", "pirl_drops"), 48)  # nine patches of 16 pixels
CONTRAST = dict(
    temperature=0.1,
    base_temperature=0.07,
    views="separate",
    groups_in_turn=False,
    similarities="auto",
)
SPATIAL = dict(
    name="spatial",
    resample_probability=0.67,
    elastic_alpha=(4.0, 9.0),
    elastic_sigma=(2.0, 3.0),
    scale=(0.7, 1.3),
    image_order=1,
)
SETTINGS = {
    "simclr": CONTRAST,
    "gcl": CONTRAST,
    "pcl": dict(**CONTRAST, position_threshold=0.35, threshold_mode="float64"),
    "pcl_exact": dict(**CONTRAST, position_threshold=0.35, threshold_mode="exact"),
    "pcl_concat": dict(
        CONTRAST, views="concat", position_threshold=0.35, threshold_mode="float64"
    ),
    "pirl": dict(
        temperature=0.1,
        num_negatives=5,
        jigsaw_weight=0.5,
        bank_momentum=0.5,
        patch_size=16,
    ),
    "rotation": {},
    "gcl_proper": dict(
        variant="GD", augmentations=1, temperature=0.1, views="separate"
    ),
    "gcl_local": dict(near_regions=5, temperature=0.1, views="separate"),
    "supervised": {},
    "mixup": dict(alpha=0.1),
    # and with it mean_teacher, to which test_tcsm.py shows it equal
    "tcsm": dict(
        max_weight=1.0,
        ramp_steps=1,
        max_decay=0.999,
        noise_std=0.1,
        zoom=(0.9, 1.1),
    ),
}
STRONG = dict(
    name="photometric",
    jitter_probability=0.5,
    brightness=(0.75, 1.25),
    contrast=(0.75, 1.25),
    blur_probability=0.5,
    blur_sigma=(0.5, 1.15),
)
TEACHER = dict(teacher_momentum=0.9, temperature_period=10)
DISTILLATION = dict(
    TEACHER,
    strong=STRONG,
    bank_size=36,
    student_temperature=(0.1, 1.0),
    teacher_temperature=(0.05, 1.0),
    reverse_kl=False,
    teacher_mode="eval",
)
ACTION = dict(
    TEACHER,
    strong=STRONG,
    mix_mode="cutmix",
    pseudo_weight=1.0,
    pseudo_pixels="all",
    contrast_weight=0.1,
    contrast_temperature=(0.1, 1.0),
    num_anchors=8,
    num_negatives=16,
    sampler="naive",
    sampler_cells=(4, 4),
    sure_threshold=0.4,
    hard_threshold=0.5,
    teacher_mode="eval",
)
SETTINGS |= {
    "action_global": DISTILLATION,
    "action_local": dict(DISTILLATION, global_weight=1.0, local_weight=1.0),
    "action": ACTION,
    "action_pp": dict(
        ACTION,
        teacher_mode="train",
        labelled_weight=0.1,
        labelled_temperature=(0.1, 1.0),
        labelled_anchors=8,
        anchors_below=2.0,
        bank_size=100,
        centre_weight=0.2,
        centre_mode="mean",
        centres="simplex",
        centre_seed=0,
        mean_rate=0.1,
    ),
}
SETTINGS["mona"] = dict(
    supervised_weight=2.0,
    strong=STRONG,
    mix_mode="cutmix",
    pseudo_weight=1.0,
    pseudo_pixels="all",
    hard_threshold=0.5,
    teacher_momentum=0.9,
    teacher_mode="eval",
    contrast_weight=0.1,
    contrast_temperature=0.5,
    num_queries=8,
    num_negatives=16,
    sampler="stratified",
    sampler_cells=(2, 2),
    query_threshold=0.2,
    key_threshold=0.97,
    key_rule="other_class",
    entropy_of="student",
    entropy_percent=20.0,
    entropy_steps=10,
    bank_size=100,
    keys_per_step=16,
    warp_weight=1.0,
    warp=dict(
        degrees=(-60.0, 60.0),
        scale=(0.8, 1.25),
        shift=0.1,
        jitter=0.01,
        mirror_probability=0.5,
    ),
    sure_threshold=0.4,
    neighbour_weight=1.0,
    neighbours=2,
    pool_size=36,
    pool_cells=2,
)
# One moves images, the other labels too; for all it would double the compilation.
AUGMENTED = ("pcl", "supervised")
# The same methods on the U-Net that drops out features, row by row.
DROPPING = {
    f"{name}_drops": name
    for name in ("pcl", "pirl", "rotation", "tcsm", "action_local", "action_pp")
}
SETTINGS |= {name: SETTINGS[plain] for name, plain in DROPPING.items()}
FILES = {"pcl_exact": "pcl", "pcl_concat": "pcl", **DROPPING}
SEGMENTS = ("supervised", "mixup", "tcsm")
MODELS = {
    **dict.fromkeys(SEGMENTS, ("unet2d", {"num_classes": 3})),
    "rotation": ("unet2d_contrast", {"out_dim": 4}),
    "pirl": ("unet2d_jigsaw", {"out_dim": 8}),
    "gcl_local": ("unet2d_local", {"out_dim": 8}),
    "action_global": ("unet2d_distill", {"out_dim": 8}),
    "action_local": (
        "unet2d_distill_local",
        {"out_dim": 8, "num_classes": 3, "window": 16},
    ),
    "action": ("unet2d_dense", {"out_dim": 8, "num_classes": 3, "stride": 2}),
    "action_pp": ("unet2d_dense", {"out_dim": 8, "num_classes": 3, "stride": 2}),
    "mona": (
        "unet2d_pyramid",
        {"out_dim": 8, "num_classes": 3, "stride": 2, "backbone": "ssl4mis"},
    ),
}


def batch(draw: int = 0, size: int = SIZE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(draw)
    index = rng.integers(0, 9, ROWS).astype(np.int32)
    count = rng.integers(9, 12, ROWS).astype(np.int32)
    return {
        "image": rng.normal(size=(ROWS, size, size, 1)).astype(np.float32),
        "label": rng.integers(0, 3, (ROWS, size, size)).astype(np.int32),
        "index": index,
        "count": count,
        "position_bits": slices.position_bits(slices.position(index, count)),
        "partition": slices.partition(index, count),
        "unlabelled_image": rng.normal(size=(8, SIZE, SIZE, 1)).astype(np.float32),
        "slice": rng.integers(0, SLICES, ROWS).astype(np.int32),
        "num_slices": np.full(ROWS, SLICES, np.int32),
    }


def make(name: str, axis_name: str | None, dtype: str = "float32") -> Method:
    common = dict(dtype=dtype, width=2, bn_groups=1, axis_name=axis_name)
    if name == "toy":
        return toy(axis_name)
    plain = DROPPING.get(name, name)
    model, fields = MODELS.get(plain, ("unet2d_contrast", {"out_dim": 8}))
    if name in DROPPING:
        common["backbone"] = "ssl4mis"
    return methods.make(
        FILES.get(name, name),
        model=models.make(model, **fields, **common),
        augment=augment.make(**(SPATIAL if name in AUGMENTED else {"name": "none"})),
        axis_name=axis_name,
        **SETTINGS[name],
    )


def toy(axis_name: str | None) -> Method:
    """An EMA teacher fills a queue, as in ACTION and MoCo; the student distils."""
    base = make("simclr", axis_name)
    model = models.make(
        "unet2d_contrast",
        dtype="float32",
        width=2,
        bn_groups=1,
        out_dim=8,
        axis_name=axis_name,
    )

    def init(key, batch):
        params, model_state, _ = base.init(key, batch)
        queue = unit_length(jax.random.normal(key, (32, 8)))
        teacher = jax.tree.map(jnp.copy, params)
        return params, model_state, {"teacher": teacher, "queue": queue}

    def loss(params, state, batch, key):
        view = batch["image"]
        variables = {"params": params, **state.model_state}
        z, model_state = model.apply(
            variables, view, train=True, mutable=["batch_stats"]
        )
        teacher = {"params": state.method_state["teacher"], **state.model_state}
        target = jax.lax.stop_gradient(
            unit_length(model.apply(teacher, view, train=False))
        )
        queue = state.method_state["queue"]
        log_p = jax.nn.log_softmax(unit_length(z) @ queue.T / 0.1)
        value = -(jax.nn.softmax(target @ queue.T / 0.05) * log_p).sum(-1).mean()
        queue = jnp.concatenate([parallel.all_gather(target, axis_name), queue])[:32]
        return value, Aux(model_state, {**state.method_state, "queue": queue}, {})

    def after_step(state):
        teacher = optax.incremental_update(
            state.params, state.method_state["teacher"], 0.1
        )
        return state.replace(method_state={**state.method_state, "teacher": teacher})

    return dataclasses.replace(base, init=init, loss=loss, after_step=after_step)


@pytest.fixture(autouse=True)
def room_for_the_next_method():
    yield
    forget_compiled_code()


@functools.cache
def compiled(name: str, num_devices: int):
    """(method, optimiser, its step on so many devices)."""
    method, tx = make(name, parallel.AXIS), optax.sgd(0.1)
    devices = jax.devices()[:num_devices]
    step = parallel.pmap_step(make_train_step(method, tx, parallel.AXIS), devices)
    return method, tx, step


def begun(name: str, draw: int = 0):
    """(batch, state) before the first step."""
    method, tx, _ = compiled(name, 1)
    data = batch(draw, SIZES.get(name, SIZE))
    check_batch(data, method.batch_keys)
    data = {key: data[key] for key in method.batch_keys}
    return data, jax.device_get(init_state(method, tx, jax.random.key(1), data))


def stepped(name: str, num_devices: int, data, state):
    """(state, metrics) after a step on so many devices."""
    _, _, step = compiled(name, num_devices)
    shares = parallel.shard(data, num_devices)
    return jax.device_get(step(state, shares, jax.random.key(2)))


@pytest.mark.parametrize("name", [*SETTINGS, "toy"])
def test_one_device_equals_many(name):
    """Each of two steps from one state, as differences would grow over both."""
    for num_devices in (2, 4, 8) if name == "pcl" else (4,):
        apart = []
        for draw in range(3):
            data, state = begun(name, draw)
            farthest_of_draw = 0.0
            for _ in range(2):
                others = stepped(name, num_devices, data, state)
                state, metrics = stepped(name, 1, data, state)
                assert np.isfinite(metrics["loss"])
                np.testing.assert_allclose(
                    others[1]["loss"], metrics["loss"], atol=1e-5, rtol=1e-5
                )
                farthest_of_draw = max(farthest_of_draw, farthest(state, others[0]))
            assert float(metrics["grad_norm"]) > 0  # banks are empty at the first step
            apart.append(farthest_of_draw)
        # In one draw rounding may carry an activation over the kink of a ReLU, where
        # the gradient jumps; a wrong collective would show in every draw.
        assert sorted(apart)[1] < 1e-5, apart


def farthest(state, other) -> float:
    """The largest difference of two states in any element."""
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
    return max(np.abs(np.subtract(a, b, dtype=np.float64)).max() for a, b in pairs)


def test_a_positive_on_another_device_receives_gradient():
    gathered, _ = stepped("simclr", 8, *begun("simclr"))
    method = make("simclr", None)
    data = batch()
    tx = optax.sgd(0.1)
    state = init_state(method, tx, jax.random.key(1), data)
    alone, _ = make_train_step(method, tx, None)(
        state, {"image": data["image"][:2]}, jax.random.key(2)
    )
    kernel = gathered.params["encoder"]["level1"]["conv1"]["kernel"]
    assert (
        np.abs(kernel - alone.params["encoder"]["level1"]["conv1"]["kernel"]).max()
        > 1e-4
    )


def test_pmapped_equals_plain_step():
    state, expected = stepped("pcl", 1, *begun("pcl"))
    method, tx = make("pcl", None), optax.sgd(0.1)
    plain = init_state(method, tx, jax.random.key(1), batch())
    plain, metrics = make_train_step(method, tx, None)(
        plain, batch(), jax.random.key(2)
    )
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, state)


def test_the_teacher_follows_and_is_not_trained():
    state, _ = stepped("toy", 2, *begun("toy"))
    start = make("toy", None).init(jax.random.key(1), batch())[0]
    expected = jax.tree.map(lambda new, old: 0.1 * new + 0.9 * old, state.params, start)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        state.method_state["teacher"],
        expected,
    )


def test_methods_differ_only_in_their_positives():
    counts = {
        name: np.asarray(make(name, None).positives(batch()))
        for name in ("simclr", "gcl", "pcl")
    }
    data = batch()
    p = slices.position(data["index"], data["count"])
    near = np.abs(p[:, None] - p[None]) < 0.35
    same = data["partition"][:, None] == data["partition"][None]
    assert (counts["simclr"] == 1).all()
    np.testing.assert_array_equal(counts["pcl"], np.tile(2 * near.sum(1) - 1, 2))
    np.testing.assert_array_equal(counts["gcl"], np.tile(2 * same.sum(1) - 1, 2))


def test_collapse_is_seen_and_warned_about():
    method = make("pcl", None)
    state = init_state(method, optax.sgd(0.1), jax.random.key(0), batch())
    dead = jax.tree.map(jnp.zeros_like, state.params)
    value, aux = method.loss(dead, state, batch(), jax.random.key(1))
    expected = collapse_value(2 * ROWS, temperature=0.1, base_temperature=0.07)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert "collapse" in str(
        method.diagnose({k: float(v) for k, v in aux.metrics.items()})
    )
    assert warn_of_collapse({"collapse_gap": 0.1}) is None


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("plc", {}, "Did you mean 'pcl'"),
        ("base", {}, "unknown"),
        ("pcl", {"temprature": 1}, "Did you mean 'temperature'"),
        ("pcl", {"position_threshold": 0.0}, "expected > 0"),
        ("pcl", {"position_threshold": -1.0}, "expected > 0"),
        ("pcl", {"temperature": 0.0}, "expected > 0"),
        ("pcl", {"threshold_mode": "float32"}, "threshold_mode"),
        ("pcl", {"views": "both"}, "views"),
    ],
)
def test_bad_settings_are_one_clear_line(name, change, said):
    settings = {
        **SETTINGS["pcl"],
        "model": None,
        "augment": None,
        "axis_name": None,
        **change,
    }
    with pytest.raises(UserError, match=said) as caught:
        methods.make(name, **settings)
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named():
    with pytest.raises(UserError, match="'temperature'"):
        methods.make("simclr", model=None, augment=None, axis_name=None)


def test_state_is_a_pytree_of_arrays():
    state = init_state(make("toy", None), optax.adam(1.0), jax.random.key(0), batch())
    assert isinstance(state, TrainState)
    assert all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views": "concat"}, r"views is 'concat', .* needs views='separate'"),
        ({"groups_in_turn": True}, "groups_in_turn is True, .* drops out features"),
    ],
)
def test_dropout_is_refused_where_rows_are_no_slices_in_turn(change, said):
    model = models.make(
        "unet2d_contrast",
        dtype="float32",
        width=2,
        bn_groups=1,
        out_dim=8,
        axis_name=None,
        backbone="ssl4mis",
    )
    with pytest.raises(UserError, match=said):
        methods.make(
            "simclr",
            model=model,
            augment=augment.make(**SPATIAL),
            axis_name=None,
            **SETTINGS["simclr"] | change,
        )


def test_what_is_dropped_depends_on_the_key_of_the_step():
    method = make("tcsm_drops", None)
    state = init_state(method, optax.sgd(0.1), jax.random.key(0), batch())
    values = [
        float(method.loss(state.params, state, batch(), jax.random.key(number))[0])
        for number in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]


def test_groups_of_the_batch_are_refused_where_views_share_a_pass():
    model = models.make(
        "unet2d_contrast",
        dtype="float32",
        width=2,
        bn_groups=2,
        out_dim=8,
        axis_name=None,
    )
    with pytest.raises(UserError, match=r"bn_groups is 2, .*views is 'concat'"):
        methods.make(
            "simclr",
            model=model,
            augment=augment.make(**SPATIAL),
            axis_name=None,
            **SETTINGS["simclr"] | {"views": "concat"},
        )
