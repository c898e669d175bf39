"""Losses of MONA: the numbers of the specification, section 10, and what must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pclseg.losses import sampling, tail
from pclseg.losses.anatomical import confusion_probs
from pclseg.losses.contrastive import info_nce_of, unit_length
from pclseg.losses.distillation import (
    confident_share,
    kl_divergence,
    masked_kl,
    similarity_log_probs,
)
from pclseg.losses.neighbours import neighbour_distance
from pclseg.losses.segmentation import cross_entropy, dice_loss, dice_sums
from pclseg.parts import bank as banks
from pclseg.parts import ema, warp
from pclseg.parts.pseudo_labels import pseudo_cross_entropy
from pclseg.parts.sampler import draw_of
from pclseg.state import TrainState


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def close(found, expected, atol=1e-10):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def alike(embedding, entries, tau):
    """Of one window: [B, D], [S, D] -> [B, S]."""
    z, bank = (jnp.asarray(x, jnp.float64)[:, None] for x in (embedding, entries))
    filled = jnp.ones(len(entries), bool)
    return similarity_log_probs(z, bank, filled, temperature=tau)[:, 0]


def distilled(student, teacher, entries, tau_t, reverse=False):
    log_t, log_s = alike(teacher, entries, tau_t), alike(student, entries, 0.1)
    return float(kl_divergence(log_t, log_s, reverse=reverse).mean())


W, V = [[1, 2, 2], [0, -1, 1]], [[2, 1, 2], [1, 0, 1]]
ENTRIES = [*np.eye(3), [1, 1, 1]]


@pytest.mark.parametrize(
    ("tau", "loss", "reverse"),
    [
        (0.1, 2.427120126219, 0.871701445171),
        (0.01, 3.586449841232, 7.463096725816),
    ],
)
def test_global_loss(tau, loss, reverse):  # M1
    close(distilled(W, V, ENTRIES, tau), loss)
    close(distilled(W, V, ENTRIES, tau, reverse=True), reverse)


def test_logits_of_the_global_loss():  # M1
    logits = jnp.array(
        [
            [3.3333333333, 6.6666666667, 6.6666666667, 9.6225044865],
            [0, -7.0710678119, 7.0710678119, 0],
        ]
    )
    close(alike(W, ENTRIES, 0.1), jax.nn.log_softmax(logits), 2e-10)


@pytest.mark.parametrize(
    ("tau", "of_windows", "loss"),
    [
        (0.1, (2.153449084568, 0.653480727488), 1.403464906028),
        (0.01, (2.153494508069, 1.250639184917), 1.702066846493),
    ],
)
def test_local_loss(tau, of_windows, loss):  # M2
    first = distilled(
        [[1, 0], [0, 1]], [[1, 1], [0, 2]], [[1, 0], [0, 1], [-1, 0]], tau
    )
    second = distilled(
        [[1, 1], [2, -1]], [[0, 1], [1, -1]], [[1, 2], [1, -2], [0, 1]], tau
    )
    close((first, second), of_windows)
    close((first + second) / 2, loss)


LOGITS = np.moveaxis(
    np.array(
        [
            [[[2, 0], [1, -1]], [[0, 1], [1, 2]], [[-1, 1], [0, 0.5]]],
            [[[-0.5, 0.5], [0, 0.25]], [[0, 0.5], [0.5, 1]], [[1, 0], [0.5, -0.5]]],
        ]
    ),
    1,
    -1,
)


def test_supervised_loss():  # M3
    label = np.array([[[0, 1], [0, 2]]])
    close(cross_entropy(LOGITS[:1], label), [0.908786731082])
    dice = dice_loss(dice_sums(LOGITS[:1], label))
    close(dice, [0.131611898001, 0.574895931664, 0.716119032044])
    close(cross_entropy(LOGITS[:1], label)[0] + dice.mean(), 1.382995684985)


def test_pseudo_label_loss():  # M4
    label = np.array([[[0, 1], [1, 2]], [[2, -1], [1, 0]]])
    confidence = np.array([[[0.99, 0.97], [0.5, 0.98]], [[0.99, 0], [0.97, 0.6]]])
    valid = jnp.asarray(label >= 0)
    share = confident_share(jnp.asarray(confidence), valid, threshold=0.97)
    close(share, [0.75, 2 / 3], 1e-7)  # float32, as the authors'
    found = pseudo_cross_entropy(
        jnp.asarray(LOGITS), label, valid, share, count_zeros=True, axis_name=None
    )
    close(found, 0.646657610074, 1e-8)
    unsure = confident_share(jnp.asarray(confidence), valid, threshold=1.0)
    assert not unsure.any()  # all below: no loss


ROWS = np.array(
    [
        [0.97, 0.02, 0.01],
        [0.6, 0.3, 0.1],
        [0.34, 0.33, 0.33],
        [0.9, 0.05, 0.05],
        [0.5, 0.5, 0],
    ]
)


def test_entropy_and_its_percentiles():  # M5
    h = tail.entropy(jnp.asarray(ROWS))
    expected = (
        0.153837592929,
        0.897945724557,
        1.098512616751,
        0.394397691147,
        0.693147180360,
    )
    close(h, expected)
    percents = jnp.array([20.0, 80.0, 10.0, 90.0])
    expected = 0.346285671504, 0.938059102996, 0.250061632216, 1.018285859873
    close(tail.masked_percentile(h, jnp.ones(5, bool), percents), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20))
def test_percentiles_are_those_of_numpy(seed, number):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        values, valid = rng.normal(size=number), rng.random(number) < 0.6
        percents = np.array([0.0, 13.7, 50.0, 100.0])
        found = tail.masked_percentile(
            jnp.asarray(values), jnp.asarray(valid), jnp.asarray(percents)
        )
        if valid.any():
            close(found, np.percentile(values[valid], percents))
        else:
            assert np.isinf(found).all()


def test_info_nce():  # M6
    queries = unit_length(jnp.array([[1.0, 2, 2], [2, 0, 0]]))
    positive = jnp.broadcast_to(unit_length(jnp.ones((1, 3), float)), (2, 3))
    negatives = jnp.array(
        [
            [[1.0, 0, 0], [0, 1, 0], [-1, 0, 0]],
            [[0.0, 0, 1], [1, 1, 0], [0, 0, 0]],
        ]
    )
    found = info_nce_of(queries, positive, unit_length(negatives), temperature=0.5)
    close(found, (0.648610990588, 1.073842181585))


def test_info_nce_against_zeros():  # M7
    for s, expected in (
        (1, 4.252653228731),
        (0.5, 5.243619725415),
        (0, 6.240275845171),
        (-1, 8.238588916836),
    ):
        query = jnp.array([1.0, 0])
        positive = jnp.array([s, np.sqrt(1 - s * s)])
        found = info_nce_of(query, positive, jnp.zeros((512, 2)), temperature=0.5)
        close(found, expected)


def test_info_nce_of_all_other_classes():  # M11, the paper's form
    r = jnp.array([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8], [0.6, -0.8]])
    kind = np.array([0, 0, 1, 1, 2])
    for scale, expected in (
        (lambda x: x, 2.458484916918),
        (unit_length, 2.314636598803),
    ):
        total = 0.0
        for i in range(5):
            mean = scale(r[kind == kind[i]].mean(axis=0))
            others = r[kind != kind[i]]
            total += float(info_nce_of(r[i], mean, others, temperature=0.5))
        close(total, expected, 1e-8)


def test_relation_of_classes():  # M12
    means = jnp.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])
    probs = confusion_probs(means, jnp.ones(3, bool), temperature=0.5)
    close(probs[0], (0, 0.832018385134, 0.167981614866))
    close(probs[2], (0.5, 0.5, 0))


# M8: one labelled and one unlabelled image of 4 pixels.

STUDENT = np.array([[1.0, 0], [0, 1], [-1, 0], [1, 1]])
TAUGHT = np.array([[1, 0.5], [0.5, 1], [-1, 0.5], [0, -1]])
TAUGHT_U = np.array([[1.0, -1], [3, 1], [1, -2], [-2, 1]])
PROBS = np.array(
    [
        [0.7, 0.1, 0.1, 0.1],
        [0.1, 0.6, 0.2, 0.1],
        [0.2, 0.1, 0.5, 0.2],
        [0.05, 0.05, 0.1, 0.8],
        [0.05, 0.4, 0.35, 0.2],
        [0.3, 0.1, 0.35, 0.25],
        [0.3, 0.4, 0.05, 0.25],
        [0.4, 0.3, 0.25, 0.05],
    ]
)


def chosen(label, percent=0.0, rule="code", probs=PROBS, known=4, entropy=None):
    """Of `known` labelled pixels and others after them."""
    n = len(label)
    return tail.candidates(
        jnp.asarray(label),
        jnp.arange(n) < known,
        jnp.asarray(np.ones(n) if entropy is None else entropy),
        jnp.asarray(probs),
        percent=jnp.float64(percent),
        query_threshold=0.3,
        key_threshold=0.97,
        rule=rule,
    )


def contrast(label, bank, queries=None):
    """Of the labelled pixels alone, as in M8."""
    of_all = chosen(np.tile(label, 2), probs=PROBS)
    taught = jnp.asarray(np.concatenate([TAUGHT, TAUGHT_U]))
    none = jnp.full(4, 4)
    return float(
        tail.tail_contrast(
            jnp.asarray(np.concatenate([STUDENT, STUDENT])),
            taught,
            jnp.concatenate([of_all.queries[:4] if queries is None else queries, none]),
            jnp.concatenate([jnp.asarray(label), none]),
            jnp.asarray(bank)[:, None],
            jnp.ones(4, int),
            jax.random.key(0),
            num_queries=5,
            num_negatives=7,
            temperature=0.5,
            chunk=2,
        )
    )


def test_whole_contrast():
    found = chosen(np.tile(np.arange(4), 2))
    keys = np.zeros((8, 4), bool)
    keys[4:] = np.eye(4, dtype=bool)  # each pseudo-label is the least likely class
    np.testing.assert_array_equal(found.keys, keys)
    close(contrast(np.arange(4), TAUGHT_U), 1.526465392443)
    close(contrast(np.arange(4), np.zeros((4, 2))), 1.429632702024)


def test_an_absent_class_does_not_shift_the_others():
    close(contrast(np.array([0, 0, 2, 3]), np.zeros((4, 2))), 1.720981646916)


@pytest.mark.parametrize("kind", range(4))
def test_losses_of_classes(kind):
    """Of one class with queries among four with a mean, a quarter."""
    expected = 1.760054346334, 1.163875511986, 0.390939923500, 2.790991787951
    found = contrast(
        np.arange(4), TAUGHT_U, queries=np.where(np.arange(4) == kind, kind, 4)
    )
    close(4 * found, expected[kind])


def test_negatives_are_drawn_from_what_is_there_alone():
    rng = np.random.default_rng(0)
    r, taught = rng.normal(size=(2, 6, 3))
    bank = rng.normal(size=(3, 5, 3))
    label = jnp.asarray([0, 0, 1, 1, 2, 2])
    values = []
    for rubbish in (0.0, 7.0):
        for kind, filled in enumerate((1, 2, 3)):
            bank[kind, filled:] = rubbish * rng.normal(size=(5 - filled, 3))
        values.append(
            tail.tail_contrast(
                jnp.asarray(r),
                jnp.asarray(taught),
                label,
                label,
                jnp.asarray(bank),
                jnp.asarray([1, 2, 3]),
                jax.random.key(0),
                num_queries=16,
                num_negatives=50,
                temperature=0.5,
            )
        )
    close(*values)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5])
def test_keys_are_not_of_the_class_whatever_the_number_of_classes(num_classes):
    rng = np.random.default_rng(num_classes)
    probs = rng.dirichlet(np.full(num_classes, 0.5), 400)
    label = rng.integers(0, num_classes, 400)
    label[200:] = probs[200:].argmax(axis=1)  # pseudo-labels
    found = chosen(
        label, 20.0, "other_class", probs, known=200, entropy=tail.entropy(probs)
    )
    keys = np.asarray(found.keys)
    assert keys.any(axis=0).all()  # every bank is filled
    assert not keys[np.arange(400), label].any()  # with what is not of its class
    assert not (keys & (probs >= 0.97)).any()
    code = chosen(label, 20.0, "code", probs, known=200, entropy=tail.entropy(probs))
    assert not np.asarray(code.keys)[:200].any()
    if num_classes <= 3:
        assert not code.keys.any()


def test_rules_of_keys_by_hand():
    probs = np.array([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])
    found = chosen([0, 3], 50.0, "other_class", probs, known=1)
    # Labelled 0: of the likely, 0 and 1, the other. Not labelled: 0, 1 are unlikely.
    expected = [[False, True, False, False], [True, True, False, False]]
    np.testing.assert_array_equal(found.keys, expected)


def test_ranks_of_classes():
    probs = jnp.array([[0.1, 0.6, 0.3], [0.4, 0.2, 0.4]])
    np.testing.assert_array_equal(tail.class_ranks(probs), [[2, 0, 1], [0, 2, 1]])
    assert [tail.first_rank(k) for k in (2, 3, 4, 5, 8)] == [1, 1, 2, 3, 3]


def test_sure_and_unsure_pixels_are_those_beyond_the_percentiles():
    entropy = np.arange(11.0)
    label = np.where(np.arange(11) == 0, 3, 1)  # the first is of no class
    probs = np.tile([0.05, 0.9, 0.05], (11, 1))
    found = chosen(label, 20.0, "other_class", probs, known=0, entropy=entropy)
    low = np.flatnonzero(np.asarray(found.queries) == 1)
    np.testing.assert_array_equal(low, [1, 2])  # of 1..10, up to 2.8
    high = np.flatnonzero(found.keys.any(axis=1))
    np.testing.assert_array_equal(high, [9, 10])


def test_some_of_takes_all_or_as_many_as_asked():
    mask = np.zeros((20, 3), bool)
    mask[[3, 7], 0] = mask[:, 1] = True
    pixels, there = tail.some_of(jnp.asarray(mask), jax.random.key(0), 5)
    assert set(np.asarray(pixels[0])[np.asarray(there[0])]) == {3, 7}
    assert there.sum(axis=1).tolist() == [2, 5, 0]
    assert len(set(np.asarray(pixels[1]))) == 5
    counts = np.zeros(20)
    for seed in range(400):
        pixels, _ = tail.some_of(jnp.asarray(mask), jax.random.key(seed), 5)
        counts[np.asarray(pixels[1])] += 1
    assert np.abs(counts - 100).max() < 40  # 4.6 standard deviations


def drawn_contrast(rng, n):
    """n pixels, their arguments of `tail_contrast`, a bank; its mean over all draws."""
    k, d = 3, 5
    r, taught = rng.normal(size=(2, n, d))
    label = rng.integers(0, k + 1, n)
    queries = np.where(rng.random(n) < 0.5, label, k)
    bank = rng.normal(size=(k, 1, d))

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    means = unit(np.stack([taught[label == c].mean(axis=0) for c in range(k)]))
    total = 0.0
    for c in range(k):
        own = unit(r[queries == c])
        positive = np.exp(own @ means[c] / 0.5)
        negative = 4 * np.exp(own @ unit(bank[c, 0]) / 0.5)
        each = -np.log(positive / (positive + negative))
        total += each.mean()
    pixels = tuple(jnp.asarray(x) for x in (r, taught, queries, label))
    return pixels, (jnp.asarray(bank), jnp.ones(k, int)), total / k


def test_contrast_is_that_of_a_loop():
    pixels, bank, expected = drawn_contrast(np.random.default_rng(0), 60)
    found = tail.tail_contrast(
        *pixels,
        *bank,
        jax.random.key(1),
        num_queries=20000,
        num_negatives=4,
        temperature=0.5,
        chunk=500,
    )
    np.testing.assert_allclose(found, expected, rtol=0.01)  # queries are drawn


@pytest.mark.parametrize("how", ["naive", "stratified", "antithetic"])
def test_the_mean_contrast_does_not_depend_on_the_order(how):  # acceptance 6
    """As drawn, with the slices exchanged, with all pixels exchanged; 2000 draws."""
    rng, n = np.random.default_rng(0), 2 * 8 * 8
    pixels, bank, expected = drawn_contrast(rng, n)

    def value(order, key):
        return tail.tail_contrast(
            *(x[order] for x in pixels),
            *bank,
            key,
            num_queries=8,
            num_negatives=4,
            temperature=0.5,
            draw=draw_of(how, (2, 2), [(2, 8, 8)]),
        )

    many = jax.jit(jax.vmap(value, in_axes=(None, 0)))
    keys = jax.random.split(jax.random.key(1), 2000)
    for order in (np.arange(n), np.roll(np.arange(n), n // 2), rng.permutation(n)):
        values = many(order, keys)
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(len(keys))


def test_gradient_of_the_contrast_reaches_queries_alone_and_is_finite():
    label = jnp.asarray([0, 1, 1, 2])

    def value(features, taught, bank):
        return tail.tail_contrast(
            features,
            taught,
            jnp.asarray([0, 3, 1, 3]),
            label,
            bank,
            jnp.asarray([2, 1, 0]),
            jax.random.key(0),
            num_queries=4,
            num_negatives=3,
            temperature=0.5,
        )

    features = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    features = features.at[2].set(0.0)  # of no direction
    bank = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 3)))
    grads = jax.grad(value, argnums=(0, 1, 2))(features, 2 * features, bank)
    assert np.isfinite(grads[0]).all() and np.abs(grads[0][0]).max() > 0
    assert not grads[0][jnp.asarray([1, 3])].any()
    assert not grads[1].any() and not grads[2].any()


def test_no_contrast_of_one_class_or_with_empty_banks():
    label = jnp.zeros(4, int)
    common = dict(num_queries=4, num_negatives=3, temperature=0.5)
    x, key = jnp.ones((4, 3), float), jax.random.key(0)
    bank = jnp.ones((2, 2, 3), float)
    one = tail.tail_contrast(x, x, label, label, bank, jnp.ones(2, int), key, **common)
    assert float(one) == 0
    label = jnp.asarray([0, 0, 1, 1])
    none = tail.tail_contrast(
        x, x, label, label, bank, jnp.zeros(2, int), key, **common
    )
    assert float(none) == 0


# Neighbours.

POOL = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
STUDENTS = np.array([[1, 0.2, 0.1], [0.1, 0.1, 1]])
TEACHERS = np.array([[0.2, 1, 0.1], [0.5, 0.1, 1]])


def test_nearest_neighbours():  # M9
    def mean(student, teacher, pool):
        return neighbour_distance(
            student, teacher, pool, jnp.ones(4, bool), neighbours=2
        ).mean()

    close(mean(STUDENTS, TEACHERS, POOL), 0.943789508463)
    gradient, to_teacher, to_pool = jax.grad(mean, argnums=(0, 1, 2))(
        STUDENTS, TEACHERS, POOL
    )
    expected = [
        [0.142233261186, -0.735529607974, 0.048726604086],
        [-0.441683462798, 0.053390308690, 0.038829315411],
    ]
    close(gradient, expected)
    assert not to_teacher.any() and not to_pool.any()


def test_neighbours_that_are_not_there_do_not_count():
    filled = jnp.array([False, True, False, False])
    given = STUDENTS, TEACHERS
    found = neighbour_distance(*given, POOL, filled, neighbours=3)
    of_one = POOL[1:2], jnp.ones(1, bool)
    close(found, neighbour_distance(*given, *of_one, neighbours=1))
    nobody = jnp.zeros(4, bool)
    none = neighbour_distance(*given, POOL, nobody, neighbours=2)
    assert not none.any()


# Warps.


def test_agreement_of_warped_slices():  # M10
    reference = np.moveaxis(np.array([[[2.0, 0], [1, 0]], [[0, 1], [1, 0]]]), 0, -1)
    logits = np.moveaxis(np.array([[[1.0, 0], [0, 3]], [[0, 2], [1, 0]]]), 0, -1)
    mask = np.array([[1, 0.5], [0, 1]])
    given = (jnp.asarray(x[None]) for x in (reference, logits, mask))
    close(masked_kl(*given), [0.385549903744])
    same = jnp.asarray(reference[None])
    close(masked_kl(same, same, jnp.asarray(mask[None])), 0, 1e-15)
    assert float(masked_kl(same, 2 * same, jnp.zeros((1, 2, 2)))[0]) == 0
    to_reference = jax.grad(lambda x: masked_kl(x, 2 * same, jnp.ones((1, 2, 2))).sum())
    assert not to_reference(same).any()


def place_at(moved, x, y):
    """What the spline says of a pixel of a 9 x 9 slice, as (x, y)."""
    row, column = warp.places(moved, (9, 9))[:, round((y + 1) * 4), round((x + 1) * 4)]
    return float(column) / 4 - 1, float(row) / 4 - 1


def test_a_spline_says_affine_maps_exactly():  # M13
    points = jnp.asarray(warp.control_points())
    angle, shift = jnp.deg2rad(jnp.float64(30)), jnp.array([0.05, -0.02])
    moved = warp.similar(points, angle, jnp.float64(1.1), shift)
    close(place_at(moved, -1, -1), (-0.352627944163, -1.522627944163))
    close(place_at(moved, 1, -1), (1.552627944163, -0.422627944163))
    close(place_at(moved, 0.5, 0.25), (0.388813972081, 0.493156986041))


def test_a_spline_meets_its_points():
    moved = jnp.asarray(np.random.default_rng(0).normal(size=(25, 2)))
    found = warp.places(moved, (5, 5)) / 2 - 1
    close(np.stack([found[1], found[0]], axis=-1).reshape(25, 2), moved, 1e-9)


WARP = dict(
    degrees=(-60.0, 60.0),
    scale=(1 / 1.2, 1 / 0.8),
    shift=0.1,
    jitter=0.01,
    mirror_probability=0.5,
)
STILL = dict(
    degrees=(0.0, 0.0), scale=(1.0, 1.0), shift=0.0, jitter=0.0, mirror_probability=0.0
)


def test_no_warp_leaves_slices_alone_and_a_mirror_turns_them():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 7, 3)))
    keys = jax.random.split(jax.random.key(0), 2)
    for share, expected in ((0.0, images), (1.0, images[:, :, ::-1])):
        ranges = warp.make_warp(dict(STILL, mirror_probability=share))
        where = warp.draw_warps(ranges, jax.random.key(1), keys, (6, 7))
        close(warp.warped(images, where), expected, 1e-4)


def test_slices_that_are_not_square_are_turned_and_not_sheared():
    ranges = warp.make_warp(dict(STILL, degrees=(60.0, 60.0)))
    keys = jax.random.split(jax.random.key(0), 1)
    where = np.asarray(warp.draw_warps(ranges, jax.random.key(1), keys, (64, 128)))[0]
    right, down = (
        where[:, 30, 61] - where[:, 30, 60],
        where[:, 31, 60] - where[:, 30, 60],
    )
    np.testing.assert_allclose(np.hypot(*right), 1, atol=0.02)
    np.testing.assert_allclose(np.hypot(*down), 1, atol=0.02)
    np.testing.assert_allclose(right @ down, 0, atol=0.02)


def test_warps_are_drawn_in_their_ranges():
    keys = jax.random.split(jax.random.key(0), 400)
    ranges = warp.make_warp(dict(WARP, jitter=0.0, mirror_probability=0.0))
    where = np.asarray(warp.draw_warps(ranges, jax.random.key(1), keys, (3, 3))) - 1
    right = where[:, :, 1, 2] - where[:, :, 1, 1]  # of a step to the right
    scale = np.hypot(*right.T)
    degrees = np.degrees(np.arctan2(right[:, 0], right[:, 1]))
    for values, low, high in (
        (scale, 1 / 1.2, 1 / 0.8),
        (degrees, -60, 60),
        (where[:, 0, 1, 1], -0.1, 0.1),
        (where[:, 1, 1, 1], -0.1, 0.1),
    ):
        assert low - 1e-4 <= values.min() < low + 0.05 * (high - low)
        assert high + 1e-4 >= values.max() > high - 0.05 * (high - low)


# State.


def test_banks_of_classes_are_first_in_first_out():  # M14
    one = banks.empty(3, key=jnp.zeros(1))
    z, a, b, c = (jnp.full((1, 1), value) for value in (9.0, 1.0, 2.0, 3.0))
    for rows, expected in (
        (z, [9]),
        (jnp.concatenate([a, b]), [9, 1, 2]),
        (c, [1, 2, 3]),
    ):
        one = banks.pushed(one, key=rows)
        order = (int(one.next) - int(one.filled) + np.arange(int(one.filled))) % 3
        close(one.rows["key"][order, 0], expected)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (0.99, [(1.02, -1.98), (1.0398, -1.9602), (1.059402, -1.940598)]),
        (1.0, [(1, -2)] * 3),
        (0.0, [(3, 0)] * 3),
    ],
    ids=["moves", "is kept", "is copied"],
)
def test_the_teacher_follows(decay, expected):  # M14, acceptance 9
    params, statistics = jnp.array([3.0, 0]), {"batch_stats": jnp.array([30.0, 0])}
    teacher = {"params": jnp.array([1.0, -2]), "batch_stats": jnp.array([10.0, -20])}
    own = {"teacher": teacher}
    state = TrainState(jnp.int32(0), params, (), statistics, own)
    for of_step in expected:
        state = ema.follow(state, decay=decay, mode="eval")
        close(state.method_state["teacher"]["params"], of_step)
        close(state.method_state["teacher"]["batch_stats"], np.multiply(10, of_step))


@pytest.mark.parametrize("how", ["stratified", "antithetic"])
def test_contrast_and_its_gradient_vary_less(how):  # ARCO, test 9
    """Of features that are smooth in the slice, over 200 draws of the queries.

    The gradient is summed over the cells of the grid: weights that all pixels share see
    such sums, not single pixels.
    """
    row, column = np.mgrid[:16, :16] / 16
    waves = [
        f(np.pi * (a * row + b * column))
        for f in (np.sin, np.cos)
        for a, b in ((1, 0), (0, 1), (1, 1), (2, 1))
    ]
    features = jnp.asarray(np.stack(waves, axis=-1).reshape(256, 8))
    label = jnp.asarray((row + column > 1).astype(int).reshape(256))
    bank = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 8)))

    def moments(draw):
        def value(features, key):
            return tail.tail_contrast(
                features,
                features,
                label,
                label,
                bank,
                jnp.ones(2, int),
                key,
                num_queries=32,
                num_negatives=8,
                temperature=0.5,
                draw=draw,
            )

        keys = jax.random.split(jax.random.key(0), 200)
        both = jax.jit(jax.vmap(jax.value_and_grad(value), in_axes=(None, 0)))
        values, grads = both(features, keys)
        around = grads.reshape(200, 4, 4, 4, 4, 8).sum(axis=(2, 4))
        return values, float(around.var(axis=0).sum())

    plain, plain_gradient = moments(sampling.naive)
    values, gradient = moments(draw_of(how, (4, 4), [(1, 16, 16)]))
    assert values.var() < 0.5 * plain.var()
    assert gradient < 0.5 * plain_gradient
    error = np.sqrt((values.var() + plain.var()) / 200)
    assert abs(float(values.mean() - plain.mean())) < 4 * error


# Half precision.


def of_neighbours(student):
    given = TEACHERS.astype(np.float32), POOL.astype(np.float32), jnp.ones(4, bool)
    return neighbour_distance(student, *given, neighbours=2).mean()


def of_queries(r):
    pixels, bank, _ = drawn_contrast(np.random.default_rng(0), 60)
    _, taught, queries, label = pixels
    taught, entries = (x.astype(jnp.float32) for x in (taught, bank[0]))
    return tail.tail_contrast(
        r,
        taught,
        queries,
        label,
        entries,
        bank[1],
        jax.random.key(1),
        num_queries=8,
        num_negatives=4,
        temperature=0.5,
        chunk=8,
    )


def of_pixels(logits):
    reference = np.random.default_rng(1).normal(size=logits.shape)
    mask = np.ones(logits.shape[:-1], np.float32)
    return masked_kl(reference.astype(np.float32), logits, mask).mean()


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(of_neighbours, (2, 3)), (of_queries, (60, 5)), (of_pixels, (2, 4, 4, 3))],
)
def test_bfloat16_is_computed_in_float32(loss, shape):
    half = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.bfloat16)
    value, gradient = jax.value_and_grad(loss)(half)
    expected, of_float32 = jax.value_and_grad(loss)(half.astype(jnp.float32))
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(
        gradient.astype(np.float32), of_float32, rtol=2**-7, atol=1e-6
    )
