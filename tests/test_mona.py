"""Steps of MONA, and of ARCO, on a small network; what it shares is in test_action."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import optax
import pytest
from test_action import (
    CLASSES,
    MONA,
    ROWS,
    Network,
    batch,
    leaves_apart,
    make,
    network,
    sizes,
    stepped,
)

from pclseg import models
from pclseg.data.datasets import phantom
from pclseg.errors import UserError
from pclseg.models import heads
from pclseg.parts.equivariance import equivariance_term
from pclseg.parts.neighbours import averaged
from pclseg.parts.streams import Stream
from pclseg.parts.tail import percent_at
from pclseg.train.step import init_state, make_train_step

STILL = dict(
    degrees=(0.0, 0.0), scale=(1.0, 1.0), shift=0.0, jitter=0.0, mirror_probability=0.0
)


def test_the_loss_is_the_sum_of_what_is_logged():
    _, _, said = stepped("mona", count=3)
    for of_step in said[1:]:
        of_step = {key: float(value) for key, value in of_step.items()}
        expected = of_step["cross_entropy"] + of_step["dice_loss"]
        expected += of_step["pseudo_cross_entropy"] + 0.01 * of_step["tail_contrast"]
        expected += of_step["equivariance"] + of_step["neighbour_distance"]
        np.testing.assert_allclose(of_step["loss"], expected, rtol=1e-5)
    assert float(said[1]["neighbour_distance"]) == 0  # nobody is in the pool
    assert float(said[1]["tail_contrast"]) > 0  # its own keys are in the banks before
    assert min(float(said[3][k]) for k in ("tail_contrast", "equivariance")) > 0
    assert float(said[3]["neighbour_distance"]) > 0


@pytest.mark.parametrize("term", ["contrast", "warp", "neighbour"])
def test_every_term_alone_reaches_the_student(term):
    """The authors' neighbour term does not."""
    weights = dict.fromkeys(("contrast", "warp", "neighbour"), 0.0) | {term: 1.0}
    changed = {f"{name}_weight": weight for name, weight in weights.items()}
    method, states, _ = stepped("mona", count=2)

    def value(params):
        alone = make("mona", supervised_weight=0.0, pseudo_weight=0.0, **changed)
        return alone.loss(params, states[-1], batch(method, 4), jax.random.key(3))[0]

    grads = jax.tree.leaves(jax.grad(value)(states[-1].params))
    assert all(np.isfinite(grad).all() for grad in grads)
    assert max(float(np.abs(grad).max()) for grad in grads) > 0


class Plain(Network):
    """The same without normalisation, so all passes agree."""

    def features(self, images, train):
        self.norm(self.first(images), train=False)
        return jax.nn.relu(self.first(images))


def test_slices_that_are_not_warped_agree_with_themselves():
    method = make("mona", model=Plain(), strong={"name": "none"}, warp=STILL)
    tx, data = optax.sgd(0.1), batch(method)
    state = init_state(method, tx, jax.random.key(1), data)
    step = jax.jit(make_train_step(method, tx, None))
    _, said = step(state, data, jax.random.key(2))
    assert abs(float(said["equivariance"])) < 1e-6


@pytest.mark.parametrize("turned", [0.0, 1.0])
def test_labels_and_logits_are_warped_as_the_image_is(turned):
    """Mirrored, a network of single pixels says the same, in the mirrored place."""
    mirror = STILL | {"mirror_probability": turned}
    method = make("mona", model=Plain(), strong={"name": "none"}, warp=mirror)
    tx, data = optax.sgd(0.1), batch(method)
    state = init_state(method, tx, jax.random.key(1), data)
    _, said = jax.jit(make_train_step(method, tx, None))(state, data, jax.random.key(2))
    assert abs(float(said["equivariance"])) < 1e-6


def test_what_must_agree_is_warped_too():
    """Of a mirrored slice with an object on the left the right half must agree."""
    term = equivariance_term(
        axis_name=None,
        strong={"name": "none"},
        warp_weight=1.0,
        warp=STILL | {"mirror_probability": 1.0},
        sure_threshold=0.5,
    )
    left = np.broadcast_to(np.arange(8) < 4, (1, 8, 8))
    image = jnp.zeros((1, 8, 8, 1))
    logits = left[..., None] * np.arange(CLASSES, dtype=np.float32)
    label, known = jnp.asarray(left, jnp.int32), jnp.ones(left.shape)
    stream = Stream(image, image, label, known, jnp.asarray(logits), image)
    background = stream._replace(label=jnp.zeros_like(label))

    def value(said_of_mirrored):
        def student(state, images, number):
            return jnp.asarray(said_of_mirrored), state

        step, key = jnp.int32(0), jax.random.key(0)
        said = term.loss(stream, background, student, {}, {}, step, key)
        return float(said.value)

    mirrored = logits[:, :, ::-1]
    wrong = mirrored + np.asarray([3.0, 0.0, 0.0], np.float32)
    assert abs(value(mirrored)) < 1e-6
    assert abs(value(np.where(left[..., None], wrong, mirrored))) < 1e-6
    assert value(np.where(left[..., None], mirrored, wrong)) > 0.1


def test_only_objects_and_sure_pixels_must_agree():
    """Of background alone, or of nothing sure, nothing is asked."""
    data = batch(make("mona"))
    values = []
    for label, threshold in ((0, 1.0), (1, 1.0)):
        method = make("mona", sure_threshold=threshold)
        data["label"] = np.full_like(data["label"], label)
        state = init_state(method, optax.sgd(0.1), jax.random.key(1), data)
        step = jax.jit(make_train_step(method, optax.sgd(0.1), None))
        values.append(float(step(state, data, jax.random.key(2))[1]["equivariance"]))
    assert values[0] == 0 < values[1]  # labels are sure, pseudo-labels are not


def test_the_warped_view_of_unlabelled_slices_is_another_strong_one():
    """Without warps and normalisation only that is left to disagree about."""
    method = make("mona", model=Plain(), warp=STILL, mix_mode="none")
    tx, data = optax.sgd(0.1), batch(method)
    data["label"] = np.zeros_like(data["label"])  # labelled slices ask for nothing
    state = init_state(method, tx, jax.random.key(1), data)
    _, said = jax.jit(make_train_step(method, tx, None))(state, data, jax.random.key(2))
    assert float(said["equivariance"]) > 1e-6


def test_the_share_of_sure_pixels_falls_in_a_straight_line():  # M5
    term = []
    for step in (0, 47, 93, 200):
        percent = percent_at(jnp.int32(step), first=20.0, steps=94)
        term.append(float(percent))
    np.testing.assert_allclose(term, (20, 10, 0.212765957447, 0), rtol=1e-5)


def test_in_the_end_only_labelled_pixels_send_queries():
    method, states, _ = stepped("mona", entropy_percent=50.0)
    shares = []
    for step in (0, 4, 8):  # of 8
        state = states[0].replace(step=jnp.int32(step))
        _, aux = method.loss(state.params, state, batch(method), jax.random.key(3))
        shares.append(float(aux.metrics["queries"]))
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] <= ROWS / (ROWS + 3) + 1e-6


def test_what_is_kept_of_the_teacher_is_what_it_says_as_one():
    """Not what the student would say with its predictor."""
    kept = []
    for factor in (1.0, 3.0):
        method = make("mona", model=Network(asymmetric=factor))
        tx, data = optax.sgd(0.1), batch(method)
        state = init_state(method, tx, jax.random.key(1), data)
        step = jax.jit(make_train_step(method, tx, None))
        own = step(state, data, jax.random.key(2))[0].method_state
        pool, banks = own["neighbours"]["pool"], own["tail"]["banks"]
        kept.append((pool.rows["key"], banks.rows["key"]))
    for plain, tripled in zip(*kept, strict=True):
        np.testing.assert_allclose(3 * plain, tripled, rtol=1e-4, atol=1e-6)
        assert np.abs(plain).max() > 0


def test_a_network_that_sees_around_a_pixel_notices_warps():
    class Wide(Plain):
        def setup(self):
            super().setup()
            self.around = nn.Conv(4, (3, 3))

        def features(self, images, train):
            self.norm(self.first(images), train=False)
            return jax.nn.relu(self.around(images))

    tx, values = optax.sgd(0.1), []
    for warp in (STILL, MONA["warp"]):
        method = make("mona", model=Wide(), strong={"name": "none"}, warp=warp)
        data = batch(method)
        state = init_state(method, tx, jax.random.key(1), data)
        step = jax.jit(make_train_step(method, tx, None))
        values.append(float(step(state, data, jax.random.key(2))[1]["equivariance"]))
    assert values[0] < 1e-6 < 1e-4 < values[1]


TERMS = {  # metric and state by weight
    "contrast_weight": ("tail_contrast", "tail"),
    "warp_weight": ("equivariance", "equivariance"),
    "neighbour_weight": ("neighbour_distance", "neighbours"),
}


@pytest.mark.parametrize("weight", list(TERMS))
def test_a_term_without_weight_is_not_computed_and_changes_no_draw_of_others(weight):
    _, states, said = stepped("mona", count=3, **{weight: 0.0})
    _, others, others_said = stepped("mona", count=3)
    metric, name = TERMS[weight]
    assert metric not in said[1] and metric in others_said[1]
    assert name not in states[1].method_state
    rest = {metric for metric, _ in TERMS.values()} - {metric}
    for key in ("cross_entropy", "pseudo_cross_entropy", *rest):
        assert float(said[1][key]) == float(others_said[1][key])
    # The pool of neighbours is empty at first.
    assert leaves_apart(states[-1].params, others[-1].params) > 0


def test_banks_hold_what_the_teacher_says_of_other_classes():
    """Of labelled pixels of another class, or of pixels that are not labelled."""
    method = make("mona", mix_mode="none", strong={"name": "none"})
    tx, data = optax.sgd(0.1), batch(method)
    before = init_state(method, tx, jax.random.key(1), data)
    step = jax.jit(make_train_step(method, tx, None))
    after, _ = step(before, data, jax.random.key(2))
    net, teacher = network("mona"), before.method_state["teacher"]
    images = np.concatenate([data["image"], data["unlabelled_image"]])
    logits, features = net.apply(teacher, images, train=False, method="taught")
    features = np.asarray(features).reshape(-1, features.shape[-1])
    probs = np.asarray(jax.nn.softmax(logits[:, ::2, ::2])).reshape(-1, CLASSES)
    label = data["label"][:, ::2, ::2].reshape(-1)
    label = np.concatenate([label, probs[len(label) :].argmax(axis=1)])
    banks = after.method_state["tail"]["banks"]
    assert int(banks.filled.min()) > 0
    for kind in range(CLASSES):
        for row in np.asarray(banks.rows["key"][kind])[: int(banks.filled[kind])]:
            apart = np.abs(features - row).max(axis=1)
            assert apart.min() < 1e-5
            assert label[apart.argmin()] != kind
            assert probs[apart.argmin(), kind] < 0.97


def test_the_code_of_the_authors_has_a_row_of_zeros_in_its_banks():
    _, (before, after), _ = stepped("mona", key_rule="code")
    for state in (before, after):
        banks = state.method_state["tail"]["banks"]
        assert banks.filled.tolist() == [1] * CLASSES  # of three classes none has keys
        assert not np.asarray(banks.rows["key"]).any()


def test_sure_pixels_are_those_of_the_network_that_is_asked():
    """Only the contrast of sure pixels asks; at step 0 the teacher is the student."""
    plain = dict(model=Plain(), strong={"name": "none"}, mix_mode="none")
    contrasts = {}
    for whose in ("student", "teacher"):
        method = make("mona", entropy_of=whose, **plain)
        tx, data = optax.sgd(1.0), batch(method)
        state = init_state(method, tx, jax.random.key(1), data)
        step = jax.jit(make_train_step(method, tx, None))
        contrasts[whose] = []
        for _ in range(3):
            state, said = step(state, data, jax.random.key(2))
            contrasts[whose].append(float(said["tail_contrast"]))
    assert contrasts["student"][0] == contrasts["teacher"][0]
    assert contrasts["student"][1:] != contrasts["teacher"][1:]


def test_the_pool_holds_unlabelled_slices_in_their_order():
    _, states, _ = stepped("mona", count=3)
    pools = [state.method_state["neighbours"]["pool"] for state in states]
    assert [int(pool.filled) for pool in pools] == [0, 3, 5, 5]
    first = np.asarray(pools[1].rows["key"][:3])
    np.testing.assert_array_equal(pools[2].rows["key"][1:3], first[1:])
    assert np.abs(np.asarray(pools[2].rows["key"][0]) - first[0]).max() > 0


@pytest.mark.parametrize("sampler", ["stratified", "antithetic", "folded"])
@pytest.mark.parametrize("name", ["mona", "action", "action_pp"])
def test_another_sampler_changes_what_is_drawn_and_nothing_else(name, sampler):
    _, _, said = stepped(name)
    _, _, others = stepped(name, sampler=sampler)
    drawn = {"tail_contrast", "anatomical_contrast", "class_contrast"}
    drawn |= {"centre_contrast", "loss", "grad_norm", "centres_moved"}
    assert said[1].keys() == others[1].keys()
    for key in said[1]:
        if key not in drawn:
            assert float(said[1][key]) == float(others[1][key]), key
    assert float(said[1]["loss"]) != float(others[1]["loss"])
    assert np.isfinite(float(others[1]["loss"]))


def test_no_array_grows_with_pixels_times_pixels():
    method = make("mona", model=Network(stride=1))
    data = batch(method)
    state = jax.eval_shape(
        lambda key: init_state(method, optax.sgd(0.1), key, data), jax.random.key(0)
    )
    step = jax.make_jaxpr(make_train_step(method, optax.sgd(0.1), None))(
        state, data, jax.random.key(1)
    )
    pixels = 7 * data["image"].shape[1] ** 2  # of both streams
    # Embeddings are of 8 numbers; 25 control points are weighed at every pixel.
    assert max(sizes(step.jaxpr)) <= 25 * pixels


# Networks.


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(name, method, **fields):
    """Of what a network of the authors' size says of a slice, and its parameters."""
    common = dict(dtype="float32", bn_groups=1, width=16, backbone="ssl4mis")
    model = models.make(name, num_classes=4, **fields, **common)
    image = jax.ShapeDtypeStruct((1, 256, 256, 1), jnp.float32)
    said, variables = jax.eval_shape(
        lambda x: model.init_with_output(
            jax.random.key(0), x, train=False, method=method
        ),
        image,
    )
    return said, variables["params"]


def test_the_pyramid_has_the_parameters_of_the_authors():
    said, params = shapes("unet2d_pyramid", "dense", out_dim=496, stride=1)
    assert count((params["encoder"], params["decoder"])) == 1_813_764
    assert count(params["encoder"]) == 1_180_464
    assert count(params["pyramid"]) == 890_112
    assert count((params["predictor1"], params["predictor2"])) == 492_032
    assert said[1].shape == (1, 256, 256, 496)


def test_the_heads_of_pre_training_have_the_parameters_of_the_authors():
    fields = dict(out_dim=512, window=64)
    _, params = shapes("unet2d_distill_local", "as_student", **fields)
    names = "head", "predictor", "local_head", "local_predictor"
    assert [count(params[name]) for name in names] == [197_376, 525_312, 76, 40]


def test_the_pyramid_is_the_same_whatever_the_stride():
    rng = np.random.default_rng(0)
    maps = tuple(
        jnp.asarray(rng.normal(size=(2, size, size, width)), jnp.float32)
        for size, width in ((2, 6), (4, 4), (8, 3), (16, 2), (32, 1))
    )
    said = []
    for stride in (1, 4):
        head = heads.PyramidHead(5, stride, "float32")
        params = head.init(jax.random.key(0), maps, (32, 32))
        said.append(head.apply(params, maps, (32, 32)))
    np.testing.assert_allclose(said[1], said[0][:, ::4, ::4], atol=1e-5)


def test_the_pyramid_by_hand():
    """Two maps of one pixel: W (x + V x; f)."""
    small, large = jnp.full((1, 1, 1, 1), 2.0), jnp.full((1, 1, 1, 1), 5.0)
    head = heads.PyramidHead(1, 1, "float32")
    params = {
        "params": {
            "level0": {"kernel": jnp.array([[3.0]])},
            "level1": {"kernel": jnp.array([[0.5], [10.0]])},
        }
    }
    found = head.apply(params, (small, large), (1, 1))
    np.testing.assert_allclose(found, [[[[0.5 * (2 + 3 * 2) + 10 * 5]]]])


def test_pixels_that_are_embedded_alike_are_warned_of():
    _, _, said = stepped("mona")
    said = {key: float(value) for key, value in said[1].items()}
    assert 0.1 < said["embedding_std"] < 1.5
    said |= {
        f"{name}_share_{k}": 0.1 for name in ("pseudo", "labelled") for k in (1, 2)
    }
    assert make("mona").diagnose(said) is None
    warning = make("mona").diagnose(said | {"embedding_std": 0.01})
    assert warning.startswith("all pixels are embedded alike (embedding_std 0.010")
    both = make("mona").diagnose(said | {"embedding_std": 0.01, "pseudo_share_1": 0.0})
    assert "nothing of class 1" in both
    assert "a lower method.warp_weight" in both
    assert both.endswith(warning)
    lost = said | {"pseudo_share_1": 0.0}
    assert "warp_weight" not in make("mona", warp_weight=0.0).diagnose(lost)
    alike = said | {"embedding_std": 0.01}
    assert "neighbour" not in make("mona", neighbour_weight=0.0).diagnose(alike)
    assert make("mona", contrast_weight=0.0).diagnose(alike) is None


def slices(root, index):
    """Two slices of a phantom, (images [2, 32, 32, 1], labels [2, 32, 32])."""
    image, label = (
        nib.as_closest_canonical(nib.load(root / kind / f"phantom_{index:02d}.nii.gz"))
        .get_fdata()
        .T[9:17:4, ::2, ::2]
        for kind in ("images", "labels")
    )
    image = (image - image.mean()) / image.std()
    label = np.searchsorted(phantom.LABEL_VALUES, label)
    return image.astype(np.float32)[..., None], label.astype(np.int32)


def taught_two_phantoms(root, *, steps, seed=1, **changed):
    """(model, last state, every step's metrics, images, labels)."""
    phantom.generate(root / "raw", volumes=2, seed=0)
    both = zip(*(slices(root / "raw", i) for i in (0, 1)), strict=True)
    image, label = (np.concatenate(parts) for parts in both)
    data = {"image": image, "label": label, "unlabelled_image": image}
    model = models.make(
        "unet2d_pyramid",
        width=8,
        num_classes=CLASSES,
        out_dim=16,
        stride=2,
        dtype="float32",
        bn_groups=1,
        backbone="pcl",
    )
    method = make("mona", model=model, entropy_steps=steps, **changed)
    tx = optax.sgd(optax.cosine_decay_schedule(0.05, steps), 0.9)
    state = init_state(method, tx, jax.random.key(seed), data)
    step = jax.jit(make_train_step(method, tx, None))
    said = []
    for _ in range(steps):
        state, metrics = step(state, data, jax.random.key(2))
        said.append(metrics)
    return model, state, said, image, label


@pytest.mark.slow
def test_two_phantoms_are_learnt_with_every_term(tmp_path):  # acceptance 11
    model, state, said, image, label = taught_two_phantoms(tmp_path, steps=150)
    parts = ("tail_contrast", "equivariance", "neighbour_distance")
    assert min(float(said[-1][part]) for part in parts) > 0
    trained = {"params": state.params, **state.model_state}
    for weights in (trained, state.method_state["teacher"]):
        found = np.asarray(model.apply(weights, image, train=False)).argmax(axis=-1)
        for kind in range(1, CLASSES):
            ours, theirs = found == kind, label == kind
            assert 2 * (ours & theirs).sum() > 0.95 * (ours.sum() + theirs.sum())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_phantom_trains_whatever_the_sampler(tmp_path, seed):  # ARCO, test 10
    ends = {}
    for sampler in ("naive", "stratified", "antithetic"):
        _, _, said, *_ = taught_two_phantoms(
            tmp_path, steps=40, seed=seed, sampler=sampler
        )
        contrast = np.array([float(one["tail_contrast"]) for one in said])
        supervised = [float(one["cross_entropy"] + one["dice_loss"]) for one in said]
        assert 0 < contrast[20:].var() < 0.01  # about a mean of 2.8
        assert supervised[-1] < 0.5 * supervised[0]
        ends[sampler] = contrast[-1]
    assert len(set(ends.values())) == 3  # the draws do differ


def test_averages_over_a_coarse_grid():
    rows = jnp.arange(24.0).reshape(1, 4, 6, 1)
    found = np.asarray(averaged(rows, 2)).reshape(2, 2)
    expected = np.arange(24.0).reshape(2, 2, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(found, expected)
    few = averaged(rows, 100)  # no more cells than pixels
    np.testing.assert_allclose(few, np.arange(24.0)[None])
    uneven = np.asarray(averaged(jnp.arange(5.0).reshape(1, 5, 1, 1), 2))
    np.testing.assert_allclose(uneven, [[1.0, 3.0]])  # 0..2 and 2..4, as adaptive pools


# Mistakes.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"supervised_weight": -1.0}, "supervised_weight is -1.0; expected >= 0"),
        ({"contrast_temperature": 0.0}, "contrast_temperature is 0.0; expected > 0"),
        ({"num_queries": 0}, "num_queries is 0; expected 1 or more"),
        ({"entropy_steps": 0}, "entropy_steps is 0; expected 1 or more"),
        ({"entropy_percent": 51.0}, r"entropy_percent is 51.0; expected 0\.\.50"),
        ({"key_rule": "any"}, "key_rule is 'any'; expected one of: other_class, code"),
        ({"entropy_of": "both"}, "entropy_of is 'both'; expected one of: student"),
        ({"neighbours": 6}, "pool_size is 5; expected method.neighbours, 6, or more"),
        ({"query_threshold": 2.0}, r"query_threshold is 2.0; expected 0\.\.1"),
        ({"sampler": "even"}, "sampler is 'even'; expected one of: naive, stratified"),
        ({"sampler_cells": (0, 4)}, r"sampler_cells is \(0, 4\); expected"),
        ({"warp": {}}, "method.warp needs the setting"),
        ({"warp": STILL | {"angle": 3.0}}, "method.warp.*'angle'"),
        ({"warp": STILL | {"scale": (0.0, 1.0)}}, r"warp.scale is \(0.0, 1.0\)"),
        ({"warp": STILL | {"degrees": (5.0, 1.0)}}, "warp.degrees .* low <= high"),
        ({"warp": STILL | {"scale": (1.0, 11.0)}}, r"0\.1 <= low <= high <= 10"),
        ({"warp": STILL | {"scale": (0.05, 1.0)}}, r"0\.1 <= low <= high <= 10"),
        ({"warp": STILL | {"degrees": (0.0, 181.0)}}, "low <= high <= 180"),
        ({"warp": STILL | {"shift": 3.0}}, r"warp.shift is 3.0; expected 0\.\.2"),
        ({"warp": STILL | {"jitter": -0.1}}, "warp.jitter is -0.1; expected"),
        ({"warp": STILL | {"jitter": 0.25}}, "warp.jitter is 0.25; .* less than 0.25"),
        ({"warp": STILL | {"mirror_probability": 2.0}}, "warp.mirror_probability is"),
    ],
)
def test_bad_settings_are_one_clear_line(change, said):
    with pytest.raises(UserError, match=said) as caught:
        make("mona", **change)
    assert "\n" not in str(caught.value)
