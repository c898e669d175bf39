"""ACTION and ACTION++ as methods: what they add up, whom they train, what they keep.

Their losses are in test_action_losses.py, equality of devices in test_methods.py, whole
runs in test_action_runs.py.
"""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pclseg import augment, methods, models
from pclseg.errors import UserError
from pclseg.losses import sampling
from pclseg.losses.contrastive import unit_length
from pclseg.methods import action_pp
from pclseg.models import heads, layers
from pclseg.models.layers import BatchNorm
from pclseg.models.unet2d_semi import Outputs
from pclseg.parts import bank, ema
from pclseg.parts.pixels import pixels_of, prob_of_label
from pclseg.parts.pseudo_labels import class_shares, pseudo_cross_entropy
from pclseg.parts.streams import Stream
from pclseg.parts.supervision import labelled_loss
from pclseg.train.step import init_state, make_train_step

ROWS, SIZE, CLASSES = 4, 32, 3
STRONG = dict(
    name="photometric",
    jitter_probability=0.5,
    brightness=(0.75, 1.25),
    contrast=(0.75, 1.25),
    blur_probability=0.5,
    blur_sigma=(0.15, 1.15),
)
DISTILLATION = dict(
    strong={"name": "none"},
    bank_size=6,
    student_temperature=(0.1, 0.1),
    teacher_temperature=(0.05, 0.05),
    temperature_period=8,
    reverse_kl=False,
    teacher_momentum=0.9,
    teacher_mode="eval",
)
ACTION = dict(
    strong=STRONG,
    mix_mode="cutmix",
    pseudo_weight=1.0,
    pseudo_pixels="all",
    contrast_weight=0.01,
    contrast_temperature=(0.5, 0.5),
    temperature_period=8,
    num_anchors=8,
    num_negatives=16,
    sampler="naive",
    sampler_cells=(2, 2),
    sure_threshold=0.3,
    hard_threshold=0.97,
    teacher_momentum=0.9,
    teacher_mode="eval",
)
ACTION_PP = dict(
    ACTION,
    labelled_weight=0.01,
    labelled_temperature=(0.1, 1.0),
    labelled_anchors=8,
    anchors_below=2.0,
    bank_size=40,
    centre_weight=0.2,
    centre_mode="mean",
    centres="simplex",
    centre_seed=0,
    mean_rate=0.1,
)
MONA = dict(
    supervised_weight=2.0,
    strong=STRONG,
    mix_mode="cutmix",
    pseudo_weight=1.0,
    pseudo_pixels="all",
    hard_threshold=0.97,
    teacher_momentum=0.9,
    teacher_mode="eval",
    contrast_weight=0.01,
    contrast_temperature=0.5,
    num_queries=8,
    num_negatives=16,
    sampler="naive",
    sampler_cells=(2, 2),
    query_threshold=0.3,
    key_threshold=0.97,
    key_rule="other_class",
    entropy_of="student",
    entropy_percent=20.0,
    entropy_steps=8,
    bank_size=40,
    keys_per_step=12,
    warp_weight=1.0,
    warp=dict(
        degrees=(-60.0, 60.0),
        scale=(0.8, 1.25),
        shift=0.1,
        jitter=0.01,
        mirror_probability=0.5,
    ),
    sure_threshold=0.3,
    neighbour_weight=1.0,
    neighbours=2,
    pool_size=5,
    pool_cells=2,
)
SETTINGS = {
    "action_global": DISTILLATION,
    "action_local": dict(DISTILLATION, global_weight=1.0, local_weight=1.0),
    "action": ACTION,
    "action_pp": ACTION_PP,
    "mona": MONA,
}
MODELS = {
    "action_global": "unet2d_distill",
    "action_local": "unet2d_distill_local",
    "action": "unet2d_dense",
    "action_pp": "unet2d_dense",
    "mona": "unet2d_pyramid",
}


class Network(nn.Module):
    """1 x 1 layers around a batch normalisation, with the heads of all stages.

    Attributes:
        windows: whether it distils the two halves of its logits too.
        asymmetric: what the features of a teacher are multiplied with.
    """

    windows: bool = False
    asymmetric: float = 1.0
    num_classes: int = CLASSES
    stride: int = 2

    def setup(self):
        self.first = nn.Dense(4)
        self.norm = BatchNorm("float32", 1, None)
        self.last = nn.Dense(CLASSES)
        self.head, self.predictor = nn.Dense(8), nn.Dense(8)
        self.local_predictor = nn.Dense(CLASSES)

    def features(self, images, train):
        return jax.nn.relu(self.norm(self.first(images), train=train))

    def __call__(self, images, train):
        return self.last(self.features(images, train))

    def dense(self, images, train):
        x = self.features(images, train)
        s = self.stride
        return self.last(x), self.head(x[:, ::s, ::s])

    def taught(self, images, train):
        logits, features = self.dense(images, train)
        return logits, self.asymmetric * features

    def as_teacher(self, images, train):
        x = self.features(images, train)
        logits, said = self.last(x), {"global": self.head(x.mean((1, 2)))[:, None]}
        if not self.windows:
            return Outputs(None, said)
        halves = jnp.stack([half.mean((1, 2)) for half in jnp.split(logits, 2, 1)], 1)
        return Outputs(logits, {**said, "local": halves})

    def as_student(self, images, train):
        logits, said = self.as_teacher(images, train)
        predictors = {"global": self.predictor, "local": self.local_predictor}
        return Outputs(logits, {name: predictors[name](z) for name, z in said.items()})


def network(name):
    return Network(windows=name == "action_local")


def make(name, *, model=None, **changed):
    return methods.make(
        name,
        model=model or network(name),
        augment=augment.make("none"),
        axis_name=None,
        **SETTINGS[name] | changed,
    )


def batch(method, seed=0):
    rng = np.random.default_rng(seed)
    data = {
        "image": rng.normal(size=(ROWS, SIZE, SIZE, 1)).astype(np.float32),
        "label": rng.integers(0, CLASSES, (ROWS, SIZE, SIZE)).astype(np.int32),
        "unlabelled_image": rng.normal(size=(3, SIZE, SIZE, 1)).astype(np.float32),
    }
    return {key: data[key] for key in method.batch_keys}


@functools.cache
def compiled(name, **changed):
    """(method, optimiser, its step)."""
    method, tx = make(name, **changed), optax.sgd(0.1)
    return method, tx, jax.jit(make_train_step(method, tx, None))


@functools.cache
def stepped(name, count=1, **changed):
    """(method, states and metrics after 0, 1, ... steps of one batch each)."""
    method, tx, step = compiled(name, **changed)
    states = [init_state(method, tx, jax.random.key(1), batch(method))]
    said = [{}]
    for number in range(count):
        state, metrics = step(states[-1], batch(method, number), jax.random.key(2))
        states.append(state)
        said.append(metrics)
    return method, states, said


half = functools.partial(labelled_loss, dice_weight=0.5, axis_name=None)


def leaves_apart(a, b):
    return max(
        float(np.abs(np.subtract(x, y)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# Who is trained.


@pytest.mark.parametrize("name", SETTINGS)
def test_the_teacher_moves_once_a_step_with_its_statistics(name):
    _, (before, after), _ = stepped(name)
    student = {"params": after.params, **after.model_state}
    expected = jax.tree.map(
        lambda t, s: 0.9 * t + 0.1 * s, before.method_state["teacher"], student
    )
    found = after.method_state["teacher"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected
    )
    assert leaves_apart(found["params"], before.method_state["teacher"]["params"]) > 0


def test_a_teacher_in_training_keeps_statistics_of_its_own_passes():
    method, (before, after), _ = stepped("action", teacher_mode="train")
    found = after.method_state["teacher"]["batch_stats"]
    averaged = jax.tree.map(
        lambda t, s: 0.9 * t + 0.1 * s,
        before.method_state["teacher"]["batch_stats"],
        after.model_state["batch_stats"],
    )
    assert leaves_apart(found, averaged) > 1e-4
    _, expected = network("action").apply(
        before.method_state["teacher"],
        batch(method)["unlabelled_image"],
        train=True,
        mutable=["batch_stats"],
    )
    assert leaves_apart(found, expected["batch_stats"]) < 1e-5


@pytest.mark.parametrize("mode", ema.MODES)
@pytest.mark.parametrize("name", SETTINGS)
def test_no_gradient_reaches_what_a_method_keeps(name, mode):
    """The teacher, banks, means and centres; all floats of the method's state."""
    method = make(name, teacher_mode=mode)
    _, states, _ = stepped(name)
    state = states[-1]  # its banks are not empty
    floats, rest = _parted(state.method_state)

    def of_kept(floats):
        kept = _joined(floats, rest)
        return method.loss(
            state.params,
            state.replace(method_state=kept),
            batch(method, 5),
            jax.random.key(3),
        )[0]

    grads = jax.grad(of_kept)(floats)
    assert all((np.asarray(grad) == 0).all() for grad in grads)


def _parted(tree):
    leaves, structure = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    floats = [leaf for leaf, own in zip(leaves, is_float, strict=True) if own]
    return floats, (structure, leaves, is_float)


def _joined(floats, rest):
    structure, leaves, is_float = rest
    new = iter(floats)
    return structure.unflatten(
        [next(new) if own else leaf for leaf, own in zip(leaves, is_float, strict=True)]
    )


# Stages i and ii.


@pytest.mark.parametrize("name", ["action_global", "action_local"])
def test_a_batch_meets_earlier_ones_and_not_itself(name):
    method, states, said = stepped(name, count=3)
    terms = [key for key in said[1] if key.endswith("_distillation")]
    assert all(float(said[1][key]) == 0 for key in terms)  # nobody is there
    model, kept = network(name), states[1].method_state["bank"]
    streams = ["image", *(["unlabelled_image"] if name == "action_local" else [])]
    rows = sum(len(batch(method)[stream]) for stream in streams)
    assert int(kept.filled) == min(6, rows)
    teacher = states[0].method_state["teacher"]
    taught = [
        model.apply(teacher, batch(method)[stream], train=False, method="as_teacher")
        for stream in streams
    ]
    for window, stored in kept.rows.items():
        came = unit_length(jnp.concatenate([t.embeddings[window] for t in taught]))
        expected = np.roll(came[-6:], rows % 6 if rows > 6 else 0, axis=0)
        there = np.asarray(bank.there(kept))
        np.testing.assert_allclose(stored[there], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["action_global", "action_local"])
def test_the_loss_is_the_divergence_over_what_the_bank_held(name):
    method, states, _ = stepped(name, count=2)
    state, data, model = states[2], batch(method, 7), network(name)
    _, aux = method.loss(state.params, state, data, jax.random.key(4))
    kept, teacher = state.method_state["bank"], state.method_state["teacher"]
    student = {"params": state.params, **state.model_state}
    pairs = {window: [] for window in kept.rows}
    total = 0.0
    for stream in [key for key in ("image", "unlabelled_image") if key in data]:
        own, updates = model.apply(
            student,
            data[stream],
            train=True,
            mutable=["batch_stats"],
            method="as_student",
        )
        student = {**student, **updates}
        its = model.apply(teacher, data[stream], train=False, method="as_teacher")
        if stream == "image" and "label" in data:
            total += float(half(own.logits, data["label"])[0])
        for window, found in pairs.items():
            found.append((own.embeddings[window], its.embeddings[window]))
    there = np.asarray(bank.there(kept))
    for window, found in pairs.items():
        rows = []
        for own, its in found:
            for s, t in zip(np.float64(own), np.float64(its), strict=True):
                for w in range(s.shape[0]):
                    entries = np.float64(kept.rows[window])[there, w]
                    log_s, log_t = (
                        _log_softmax(_unit(entries) @ _unit(z[w]) / tau)
                        for z, tau in ((s, 0.1), (t, 0.05))
                    )
                    rows.append((np.exp(log_t) * (log_t - log_s)).sum())
        found = float(aux.metrics[f"{window}_distillation"])
        np.testing.assert_allclose(found, np.mean(rows), rtol=1e-3, atol=1e-6)
        total += np.mean(rows)
    value, _ = method.loss(state.params, state, data, jax.random.key(4))
    np.testing.assert_allclose(value, total, rtol=1e-4, atol=1e-6)


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def test_distillation_falls_towards_a_teacher_that_stands_still():
    method, tx = make("action_global", teacher_momentum=0.999999), optax.adam(1e-2)

    def data(seed):  # of slices that differ
        offset = np.random.default_rng(seed).normal(size=(ROWS, 1, 1, 1))
        return {"image": batch(method, seed)["image"] + np.float32(3 * offset)}

    state = init_state(method, tx, jax.random.key(1), data(0))
    other = init_state(method, tx, jax.random.key(5), data(0))
    teacher = ema.copy_of(other.params, other.model_state)
    state = state.replace(method_state={**state.method_state, "teacher": teacher})
    step = jax.jit(make_train_step(method, tx, None))
    losses = []
    for number in range(200):
        state, said = step(state, data(number % 20), jax.random.key(2))
        losses.append(float(said["loss"]))
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[2:22])


def test_temperatures_of_both_follow_one_schedule():
    _, _, said = stepped(
        "action_global",
        count=5,
        student_temperature=(0.1, 1.0),
        teacher_temperature=(0.01, 1.0),
    )
    student, teacher = (
        [float(metrics[f"{who}_temperature"]) for metrics in said[1:]]
        for who in ("student", "teacher")
    )
    np.testing.assert_allclose(student, [1, 0.8681980515, 0.55, 0.2318019485, 0.1])
    np.testing.assert_allclose(teacher[::2], [1, 0.505, 0.01], rtol=1e-5)


# Stage iii.


def test_losses_of_labels_and_pseudo_labels_are_those_of_the_specification():  # A 8.2-3
    logits = [[[2, 0, -1], [0, 1, 0.5]], [[-1, 0.5, 2], [1, 1, 0]]]
    label = np.array([[[0, 1], [2, 0]]])
    with jax.enable_x64(True):
        logits = jnp.asarray([logits], jnp.float64)
        value, parts = half(logits, label)
        np.testing.assert_allclose(value, 0.3350724834, atol=1e-9)
        np.testing.assert_allclose(parts["cross_entropy"], 0.4883554477, atol=1e-9)
        np.testing.assert_allclose(parts["dice_loss"], 0.1817895190, atol=1e-9)
        each = functools.partial(
            pseudo_cross_entropy, logits, count_zeros=True, axis_name=None
        )
        valid = np.ones((1, 2, 2), bool)
        weight = jnp.asarray([0.75])
        np.testing.assert_allclose(each(label, valid, weight), 0.3662665858, atol=1e-9)
        valid[0, 1, 0] = False
        found = each(np.where(valid, label, 3), valid, jnp.asarray([1.0]))
        np.testing.assert_allclose(found, 0.5707034981, atol=1e-9)
        assert float(each(label, np.zeros_like(valid), weight)) == 0


def test_pixels_that_cost_nothing_may_be_left_out_of_the_mean():
    logits = jnp.asarray([[[[200.0, 0.0], [0.0, 0.0]]]])
    label, valid = jnp.zeros((1, 1, 2), int), jnp.ones((1, 1, 2), bool)
    for count_zeros, expected in ((True, np.log(2) / 2), (False, np.log(2))):
        found = pseudo_cross_entropy(
            logits, label, valid, jnp.ones(1), count_zeros=count_zeros, axis_name=None
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["action", "action_pp"])
def test_the_loss_is_the_sum_of_what_is_logged(name):
    _, _, said = stepped(name, count=2)
    said = {key: float(value) for key, value in said[2].items()}
    expected = 0.5 * (said["cross_entropy"] + said["dice_loss"])
    expected += said["pseudo_cross_entropy"] + 0.01 * said["anatomical_contrast"]
    if name == "action_pp":
        expected += 0.01 * (said["class_contrast"] + said["centre_contrast"])
    np.testing.assert_allclose(said["loss"], expected, rtol=1e-5)
    assert min(said["anatomical_contrast"], said["sure_pixels"]) > 0


def test_pseudo_labels_without_a_class_are_warned_of():
    method, states, said = stepped("action", mix_mode="none")
    said = {key: float(value) for key, value in said[1].items()}
    data = batch(method)
    weak = network("action").apply(  # nothing is augmented but by the strong view
        states[0].method_state["teacher"], data["unlabelled_image"], train=False
    )
    found = np.asarray(weak).argmax(axis=-1)
    for kind in range(1, CLASSES):
        for name, label in (("pseudo", found), ("labelled", data["label"])):
            expected = (label == kind).mean()
            np.testing.assert_allclose(
                said[f"{name}_share_{kind}"], expected, rtol=1e-6
            )
    said |= {
        f"{name}_share_{k}": 0.1 for name in ("pseudo", "labelled") for k in (1, 2)
    }
    assert method.diagnose(said) is None
    assert method.diagnose(said | {"labelled_share_2": 0.0}) is None
    warning = method.diagnose(said | {"pseudo_share_2": 0.001})
    assert "nothing of class 2 (0.10% of pixels, of labels 10.00%); if" in warning


def test_shares_of_classes_are_of_pixels_that_have_one():
    label = jnp.asarray([[[0, 1, 3], [2, 1, 3]]])
    shares = class_shares("pseudo", label, 3)
    assert {k: float(v) for k, v in shares.items()} == {
        "pseudo_share_1": 0.5,
        "pseudo_share_2": 0.25,
    }
    assert (
        float(class_shares("pseudo", jnp.full((1, 2, 2), 3), 3)["pseudo_share_1"]) == 0
    )


def test_without_its_own_term_action_pp_is_action():
    """To the bit; and keeps nothing besides."""
    _, states, said = stepped("action", count=3)
    _, others, others_said = stepped("action_pp", count=3, labelled_weight=0.0)
    for a, b in zip(states, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
        jax.tree.map(
            np.testing.assert_array_equal,
            a.method_state["teacher"],
            b.method_state["teacher"],
        )
        assert a.method_state.keys() == b.method_state.keys()
    for a, b in zip(said, others_said, strict=True):
        assert {k: float(v) for k, v in a.items()} == {
            k: float(v) for k, v in b.items()
        }
    _, more, _ = stepped("action_pp", count=3)
    assert leaves_apart(more[-1].params, states[-1].params) > 0


def test_embedded_pixels_are_those_of_the_stride():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 2, 5)).astype(np.float32)
    logits = rng.normal(size=(2, 6, 4, CLASSES)).astype(np.float32)
    label = rng.integers(0, CLASSES + 1, (2, 6, 4))
    none = jnp.zeros(0)
    stream = Stream(none, none, *map(jnp.asarray, (label, label, logits, features)))
    pixels = pixels_of(stream, stride=2, axis_name=None)
    assert pixels.taught == ()
    stream = stream._replace(taught=(stream.logits, stream.features))
    taught_probs, taught = pixels_of(stream, stride=2, axis_name=None).taught
    np.testing.assert_array_equal(taught, pixels.features)
    np.testing.assert_array_equal(taught_probs, pixels.probs)
    rows = []
    for image in range(2):
        for row in range(3):
            for column in range(2):
                place = image, 2 * row, 2 * column
                softmax = np.exp(_log_softmax(np.float64(logits[place])))
                own = label[place]
                rows.append(
                    (
                        features[image, row, column],
                        own,
                        softmax[own] if own < CLASSES else 0.0,
                    )
                )
    expected = [np.stack(part) for part in zip(*rows, strict=True)]
    np.testing.assert_array_equal(pixels.features, expected[0])
    np.testing.assert_array_equal(pixels.label, expected[1])
    np.testing.assert_allclose(prob_of_label(pixels), expected[2], rtol=1e-5)


@pytest.mark.parametrize("name", ["action", "action_pp", "mona"])
@pytest.mark.parametrize("present", [(0,), (1,), (0, 2)])
def test_batches_without_a_class_are_finite_and_leave_it_alone(name, present):
    method, states, _ = stepped(name)
    state = states[-1]
    data = batch(method, 3)
    data["label"] = np.asarray(present, np.int32)[data["label"] % len(present)]
    after, said = compiled(name)[2](state, data, jax.random.key(5))
    assert all(np.isfinite(value) for value in said.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    if name == "action_pp":
        old, new = (s.method_state["labelled_contrast"] for s in (state, after))
        for kind in range(CLASSES):
            moved = np.abs(old["means"][kind] - new["means"][kind]).max() > 0
            assert moved == (kind in present)
        came = (int(new["bank"].next) - int(old["bank"].next)) % 40
        assert came == 8 * len(present)
        place = (int(old["bank"].next) + np.arange(came)) % 40
        assert set(np.asarray(new["bank"].rows["label"])[place]) == set(present)


def test_a_labelled_batch_of_one_class_and_nothing_sure_is_not_contrasted():
    method, states, _ = stepped("action", sure_threshold=1.0)
    data = batch(method, 3)
    data["label"] = np.zeros_like(data["label"])
    step = compiled("action", sure_threshold=1.0)[2]
    _, said = step(states[-1], data, jax.random.key(5))
    assert float(said["anatomical_contrast"]) == 0
    assert float(said["sure_pixels"]) == 0


def test_without_a_hard_pixel_there_is_no_contrast():
    _, _, said = stepped("action", hard_threshold=0.0)
    assert float(said[1]["anatomical_contrast"]) == 0


@pytest.mark.parametrize("mix_mode", ["classmix", "cutout", "none"])
def test_all_ways_of_mixing_train(mix_mode):
    _, states, said = stepped("action", mix_mode=mix_mode)
    assert np.isfinite(float(said[1]["loss"]))
    assert leaves_apart(states[0].params, states[1].params) > 0


@pytest.mark.parametrize("name", ["action", "action_pp"])
def test_no_array_grows_with_pixels_times_pixels(name):
    """At stride 1: the largest array of a step, gradient included, is of features."""
    method = make(name, model=Network(stride=1))
    data = batch(method)
    state = jax.eval_shape(
        lambda key: init_state(method, optax.sgd(0.1), key, data), jax.random.key(0)
    )
    step = jax.make_jaxpr(make_train_step(method, optax.sgd(0.1), None))(
        state, data, jax.random.key(1)
    )
    pixels = 7 * SIZE * SIZE  # of both streams
    assert max(sizes(step.jaxpr)) <= 12 * pixels  # embeddings are of 8 numbers
    # Negatives of 8 anchors of 3 classes, one more key and their 8 numbers, at a time.
    assert 8 * CLASSES * 17 * 8 in set(sizes(step.jaxpr))


def sizes(jaxpr):
    """Of all arrays in a program and in the programs inside it."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.size
        for value in equation.params.values():
            for inner in jax.tree.leaves(
                value, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")
            ):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)


# ACTION++.


def test_anchors_are_drawn_from_their_class():
    drawn, found = action_pp.draw_anchors(
        sampling.naive,
        jnp.asarray([0, 3, 0, 2, 2, 2]),
        jax.random.key(0),
        num_classes=3,
        number=50,
    )
    assert found.tolist() == [0] * 50 + [-1] * 50 + [2] * 50
    assert set(np.asarray(drawn[:50])) == {0, 2}
    assert set(np.asarray(drawn[100:])) == {3, 4, 5}


def test_anchors_are_drawn_below_a_probability():
    """Whose features alone are moved."""
    label = np.array([0, 0, 0, 2, 2, 2])
    of_label = np.array([0.1, 0.9, 0.5, 0.9, 0.8, 0.95])
    probs = np.repeat((1 - of_label[:, None]) / 2, 3, axis=1)
    probs[np.arange(6), label] = of_label
    features = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)

    def moved(below):
        term = _centre_term(1.0, num_classes=3, anchors_below=below)

        def value(features):
            stream = _in_a_column(features, features[::-1], label, np.log(probs))
            own = term.init(stream.features)
            return _value_and_state(term, stream, own, 0, jax.random.key(0))[0]

        return np.abs(jax.grad(value)(jnp.asarray(features))).max(axis=1) > 0

    assert moved(2.0).all()
    assert moved(0.7).tolist() == [True, False, True, False, False, False]


def test_the_bank_takes_what_the_teacher_says_of_the_anchors():
    method, (before, after), _ = stepped("action_pp")
    (_, taught) = network("action_pp").apply(
        before.method_state["teacher"],
        batch(method)["image"],
        train=False,
        method="dense",
    )
    said = unit_length(taught.reshape(-1, taught.shape[-1]))
    label = batch(method)["label"][:, ::2, ::2].reshape(-1)
    kept = after.method_state["labelled_contrast"]["bank"]
    assert int(kept.filled) == 8 * CLASSES
    for key, own in zip(kept.rows["key"][:24], kept.rows["label"][:24], strict=True):
        apart = np.abs(np.asarray(said) - np.asarray(key)).max(axis=1)
        assert apart[label == int(own)].min() < 1e-5


def test_centres_are_a_simplex_or_found_where_there_is_none():
    found = np.asarray(action_pp.class_centres("simplex", 4, 8, seed=3))
    np.testing.assert_allclose(
        found @ found.T, np.where(np.eye(4), 1, -1 / 3), atol=1e-6
    )
    solved = np.asarray(action_pp.class_centres("solved", 3, 8, seed=3))
    np.testing.assert_allclose(
        solved @ solved.T, np.where(np.eye(3), 1, -1 / 2), atol=1e-4
    )
    many = np.asarray(action_pp.class_centres("simplex", 6, 2, seed=3))
    angles = np.sort(np.arctan2(many[:, 1], many[:, 0]))
    np.testing.assert_allclose(np.diff(angles), np.pi / 3, atol=1e-3)


def test_rare_classes_lie_apart_with_centres_and_are_found_no_less():  # P 11.9
    """Four Gaussian classes of 100 : 10 : 3 : 1 pixels, a linear embedding."""
    rng = np.random.default_rng(0)
    counts = 100 * np.array([100, 10, 3, 1]) // 10
    places = 1.2 * rng.normal(size=(4, 6))
    label = np.repeat(np.arange(4), counts)
    x = jnp.asarray(places[label] + rng.normal(size=(len(label), 6)), jnp.float32)
    other = rng.normal(size=(400, 6)) + places[np.repeat(np.arange(4), 100)]

    def trained(centre_weight):
        term = _centre_term(centre_weight, num_classes=4)
        own = term.init(jnp.zeros((1, len(label), 1, 8)))
        weights = 0.3 * jax.random.normal(jax.random.key(0), (6, 8))
        taught = weights

        @jax.jit
        def step(weights, taught, own, number):
            def value(weights):
                logits = np.zeros((len(label), 4))
                stream = _in_a_column(x @ weights, x @ taught, label, logits)
                key = jax.random.fold_in(jax.random.key(1), number)
                return _value_and_state(term, stream, own, number, key)

            grad, after = jax.grad(value, has_aux=True)(weights)
            weights = weights - 0.3 * grad
            return weights, 0.9 * taught + 0.1 * weights, after

        for number in range(300):
            weights, taught, own = step(weights, taught, own, number)
        z = np.asarray(unit_length(x @ weights))
        means = _unit(np.stack([z[label == kind].mean(axis=0) for kind in range(4)]))
        said = np.asarray(unit_length(jnp.float32(other) @ weights)) @ means.T
        tail = (said.argmax(axis=1)[300:] == 3).mean()
        cosines = (means @ means.T)[np.triu_indices(4, 1)]
        return cosines, tail

    cosines, tail = trained(1.0)
    plain_cosines, plain_tail = trained(0.0)
    assert np.abs(cosines + 1 / 3).mean() < np.abs(plain_cosines + 1 / 3).mean()
    assert tail >= plain_tail - 0.02


def _centre_term(centre_weight, *, num_classes, anchors_below=2.0):
    return action_pp.centre_term(
        model=types.SimpleNamespace(num_classes=num_classes, stride=1),
        axis_name=None,
        sampler="naive",
        sampler_cells=(1, 1),
        labelled_weight=1.0,
        labelled_temperature=(0.3, 0.3),
        temperature_period=1,
        labelled_anchors=32,
        anchors_below=anchors_below,
        bank_size=512,
        centre_weight=centre_weight,
        centre_mode="mean",
        centres="simplex",
        centre_seed=0,
        mean_rate=0.1,
    )


def _in_a_column(features, taught, label, logits):
    """One slice, a pixel a row."""
    none = jnp.zeros(0)
    features, taught, label, logits = (
        jnp.asarray(x)[None, :, None] for x in (features, taught, label, logits)
    )
    return Stream(none, none, label, none, logits, features, (logits, taught))


def _value_and_state(term, labelled, own, step, key):
    value, after, *_ = term.loss(labelled, None, None, {}, own, jnp.int32(step), key)
    return value, after


# Networks.


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_enlargement_is_linear_between_corners(stride):
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    found = layers.enlarge(jnp.asarray(values), (12, 7), stride=stride)

    def along(values, axis, size):
        places = np.linspace(0, values.shape[axis] - 1, size)
        return np.apply_along_axis(
            lambda row: np.interp(places, np.arange(len(row)), row), axis, values
        )

    expected = along(along(values, 1, 12), 2, 7)[:, ::stride, ::stride]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_windows_of_the_pooled_map_are_those_of_the_whole():
    logits = jax.random.normal(jax.random.key(0), (2, 64, 32, CLASSES))
    head = heads.LocalHead(16, activate=False)
    params = head.init(jax.random.key(1), logits)
    found = heads.windows_of(head.apply(params, logits))
    expected = []
    for top in range(0, 49, 8):
        for left in range(0, 17, 8):
            window = np.asarray(logits)[:, top : top + 16, left : left + 16]
            pooled = window.reshape(2, 8, 2, 8, 2, CLASSES).mean(axis=(2, 4))
            for layer in ("dense1", "dense2"):
                own = jax.tree.map(np.asarray, params["params"]["layers"][layer])
                pooled = pooled @ own["kernel"] + own["bias"]
            expected.append(pooled.reshape(2, -1))
    assert found.shape == (2, 7 * 3, 64 * CLASSES)
    np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-5)


def test_sizes_of_the_specification():  # A 2
    common = dict(dtype="float32", bn_groups=1, width=16, backbone="ssl4mis")
    image = jax.ShapeDtypeStruct((1, 256, 256, 1), jnp.float32)

    def shapes(name, method, **fields):
        model = models.make(name, num_classes=4, **fields, **common)
        return jax.eval_shape(
            lambda x: model.init_with_output(
                jax.random.key(0), x, train=False, method=method
            ),
            image,
        )

    said, _ = shapes("unet2d_distill_local", "as_student", out_dim=512, window=64)
    assert said.embeddings["global"].shape == (1, 1, 512)
    assert said.embeddings["local"].shape == (1, 49, 256)
    (logits, features), variables = shapes(
        "unet2d_dense", "dense", out_dim=512, stride=1
    )
    assert logits.shape == (1, 256, 256, 4) and features.shape == (1, 256, 256, 512)
    assert variables["params"]["dense_head"]["join"]["kernel"].shape == (3, 3, 496, 512)
    (_, features), _ = shapes("unet2d_dense", "dense", out_dim=128, stride=4)
    assert features.shape == (1, 64, 64, 128)


def test_pixel_features_of_a_stride_see_no_more_than_every_so_many():
    """What the head says at stride 1 of a map that is constant, it says at stride 4."""
    maps = tuple(jnp.ones((1, size, size, 3)) for size in (2, 4, 8, 16, 32))
    said = []
    for stride in (1, 4):
        head = heads.DenseHead(5, stride, True, "float32")
        params = head.init(jax.random.key(0), maps, (32, 32))
        said.append(head.apply(params, maps, (32, 32)))
    np.testing.assert_allclose(
        said[1][0, 2:-2, 2:-2], said[0][0, 8:-8:4, 8:-8:4], rtol=1e-5
    )


# Mistakes.


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("action_global", {"bank_size": 0}, "bank_size is 0; expected 1 or more"),
        ("action_global", {"teacher_momentum": 1.0}, "teacher_momentum is 1.0"),
        ("action_global", {"teacher_mode": "on"}, "expected 'eval' or 'train'"),
        (
            "action_global",
            {"student_temperature": (1.0, 0.1)},
            r"student_temperature is \(1.0, 0.1\); expected \(low, high\)",
        ),
        ("action_global", {"teacher_temperature": (0.0, 1.0)}, "teacher_temperature"),
        ("action_global", {"temperature_period": 0}, "temperature_period is 0"),
        (
            "action",
            {"contrast_temperature": (0.1, 1.0), "temperature_period": 1},
            "temperature_period is 1; expected 2 or more steps",
        ),
        ("action_local", {"local_weight": -1.0}, "local_weight is -1.0; expected >= 0"),
        ("action_local", {"strong": "photometric"}, "strong is .*; expected a section"),
        (
            "action_local",
            {"strong": {"name": "photometrix"}},
            "method.strong: augmentation 'photometrix' is unknown.*'photometric'",
        ),
        (
            "action",
            {"strong": {}},
            "method.strong is {}; expected a section with a name",
        ),
        (
            "action",
            {
                "strong": {
                    "name": "turns",
                    "turn_probability": 0.0,
                    "rotate_probability": 0.0,
                    "degrees": (0.0, 0.0),
                    "image_order": 1,
                }
            },
            "method.strong.name is 'turns', which moves pixels",
        ),
        ("action", {"mix_mode": "mixup"}, "one of: cutmix, classmix, cutout, none"),
        ("action", {"pseudo_pixels": "some"}, "expected 'all' or 'wrong'"),
        ("action", {"sure_threshold": 1.5}, r"sure_threshold is 1.5; expected 0\.\.1"),
        ("action", {"num_anchors": 0}, "num_anchors is 0; expected 1 or more"),
        ("action_pp", {"centre_mode": "sum"}, "one of: mean, code, paper"),
        ("action_pp", {"centres": "random"}, "expected 'simplex' or 'solved'"),
        ("action_pp", {"mean_rate": 0.0}, "expected 0 < rate <= 1"),
        ("action_pp", {"labelled_temperature": (0.1,)}, "labelled_temperature"),
    ],
)
def test_bad_settings_are_one_clear_line(name, change, said):
    with pytest.raises(UserError, match=said) as caught:
        make(name, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_model_that_does_not_go_with_a_method_is_named(name):
    model = models.make(
        "unet2d", dtype="float32", bn_groups=1, width=2, num_classes=CLASSES
    )
    method = make(name, model=model)
    with pytest.raises(UserError, match=f"model.name=.*'{MODELS[name]}'"):
        method.init(jax.random.key(0), batch(method))


def test_logits_are_of_slices_that_windows_do_not_fit():
    """Evaluation pads to multiples of 16, whatever the windows of training."""
    model = models.make(
        "unet2d_distill_local",
        dtype="float32",
        bn_groups=1,
        width=2,
        num_classes=CLASSES,
        out_dim=8,
        window=24,
    )
    image = jax.ShapeDtypeStruct((1, 112, 128, 1), jnp.float32)
    logits, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), image
    )
    assert logits.shape == (1, 112, 128, CLASSES)


def test_a_slice_has_no_next_one_to_be_mixed_with():
    method, states, _ = stepped("action")
    data = batch(method)
    data["unlabelled_image"] = data["unlabelled_image"][:1]
    with pytest.raises(UserError, match="a step has one unlabelled slice"):
        method.loss(states[0].params, states[0], data, jax.random.key(0))


@pytest.mark.parametrize("window", [0, 12, 24, 40, 64])
def test_windows_that_do_not_fit_are_told(window):
    model = models.make(
        "unet2d_distill_local",
        dtype="float32",
        bn_groups=1,
        width=2,
        num_classes=CLASSES,
        out_dim=8,
        window=window,
    )
    method = make("action_local", model=model)
    with pytest.raises(
        UserError, match=f"model.window is {window}; expected a multiple"
    ):
        method.init(jax.random.key(0), batch(method))
