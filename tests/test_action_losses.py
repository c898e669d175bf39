"""The losses of ACTION and ACTION++: the worked numbers of their specifications.

Sections are those of specs/action.md (A) and specs/action_pp.md (P); numbers in float64
to the digits that are given there.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pclseg import windows
from pclseg.losses import anatomical, centres, sampling
from pclseg.losses.contrastive import info_nce_of, unit_length
from pclseg.losses.distillation import (
    confident_share,
    kl_divergence,
    similarity_log_probs,
)
from pclseg.losses.segmentation import (
    cross_entropy,
    dice_loss,
    dice_sums,
    pixel_cross_entropy,
)
from pclseg.parts import bank as banks
from pclseg.parts.temperature import cosine_temperature


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def close(found, expected, atol=1e-9):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


# Contrastive distillation, A 8.1

STUDENT = np.array([[1, 0.5], [0.2, -1]])
TEACHER = np.array([[0.9, 0.7], [0.1, -0.8]])
BANK = np.array([[1.0, 0], [0, 1], [-1, -1]])


def distilled(student, teacher, bank, tau_s, tau_t, filled=None, reverse=False):
    filled = jnp.ones(len(bank), bool) if filled is None else filled
    log_probs = [
        similarity_log_probs(z[:, None], bank[:, None], filled, temperature=tau)[:, 0]
        for z, tau in ((teacher, tau_t), (student, tau_s))
    ]
    return kl_divergence(*log_probs, reverse=reverse)


@pytest.mark.parametrize(
    ("tau_s", "tau_t", "rows", "reverse_mean"),
    [
        (0.1, 0.01, (0.0113578131, 0.0273365063), 0.6666617006),
        (0.5, 0.2, (0.0170722386, 0.2059952597), 0.2148955663),
        (0.1, 0.6, (1.6018047465, 1.0019011126), 0.4193016852),
    ],
)
def test_distillation_is_that_of_the_specification(tau_s, tau_t, rows, reverse_mean):
    given = STUDENT, TEACHER, BANK, tau_s, tau_t
    close(distilled(*given), rows, 1e-10)
    close(distilled(*given, reverse=True).mean(), reverse_mean, 1e-10)


def test_gradient_of_distillation_reaches_the_student_alone():
    def mean(student, teacher, bank):
        return distilled(student, teacher, bank, 0.5, 0.2).mean()

    to_student, to_teacher = jax.grad(mean, argnums=(0, 1))(STUDENT, TEACHER, BANK)
    expected = [[0.0037234853, -0.0074469706], [0.4455414584, 0.0891082917]]
    close(to_student, expected, 1e-10)
    np.testing.assert_array_equal(to_teacher, 0)


def test_probabilities_over_the_bank_are_those_of_the_specification():
    filled = jnp.ones(3, bool)
    log_probs = similarity_log_probs(
        STUDENT[:, None], BANK[:, None], filled, temperature=0.5
    )
    expected = [
        [0.6973946806, 0.2851240406, 0.0174812789],
        [0.3180995865, 0.0302341136, 0.6516662999],
    ]
    close(jnp.exp(log_probs[:, 0]), expected, 1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_empty_slots_of_the_bank_take_no_part(reverse):
    filled = jnp.array([True, True, False, True])
    junk = jnp.concatenate([BANK[:2], jnp.full((1, 2), 9.0), BANK[2:]])

    def mean(student, bank, filled):
        return distilled(student, TEACHER, bank, 0.5, 0.2, filled, reverse).mean()

    value, gradient = jax.value_and_grad(mean)(STUDENT, junk, filled)
    whole, its_gradient = jax.value_and_grad(mean)(STUDENT, BANK, jnp.ones(3, bool))
    close(value, whole, 1e-14)
    close(gradient, its_gradient, 1e-14)
    value, gradient = jax.value_and_grad(mean)(STUDENT, BANK, jnp.zeros(3, bool))
    assert value == 0 and not gradient.any()


def test_one_window_is_the_whole_and_the_order_of_windows_does_not_matter():
    rng = np.random.default_rng(0)
    z_s, z_t = (jnp.asarray(rng.normal(size=(2, 5, 3))) for _ in range(2))
    bank = jnp.asarray(rng.normal(size=(4, 5, 3)))
    filled = jnp.ones(4, bool)

    def mean(order):
        log_probs = [
            similarity_log_probs(z[:, order], bank[:, order], filled, temperature=tau)
            for z, tau in ((z_t, 0.2), (z_s, 0.5))
        ]
        return kl_divergence(*log_probs).mean()

    order = rng.permutation(5)
    close(mean(order), mean(np.arange(5)), 1e-14)
    alone = distilled(z_s[:, 2], z_t[:, 2], bank[:, 2], 0.5, 0.2).mean()
    close(mean(np.array([2])), alone, 1e-14)


def test_distillation_vanishes_where_both_are_alike():
    assert not distilled(STUDENT, STUDENT, BANK, 0.3, 0.3).any()  # P 8.6


def test_windows_are_the_complete_grid():  # A 8.1
    grid = jnp.arange(16.0).reshape(1, 4, 4, 1)
    means = windows.cut(grid, size=2, stride=1).mean(axis=-1)[0]
    np.testing.assert_array_equal(
        means, [2.5, 3.5, 4.5, 6.5, 7.5, 8.5, 10.5, 11.5, 12.5]
    )
    assert windows.cut(jnp.zeros((2, 32, 32, 4)), size=8, stride=4).shape == (
        2,
        49,
        256,
    )


# Supervised and pseudo-label losses, A 8.2 and 8.3

LOGITS = np.array([[[2.0, 0, -1], [0, 1, 0.5]], [[-1, 0.5, 2], [1, 1, 0]]])[None]
LABEL = np.array([[[0, 1], [2, 0]]])


def test_supervised_loss_is_that_of_the_specification():
    close(cross_entropy(LOGITS, LABEL), 0.4883554477, 1e-10)
    dice = dice_loss(dice_sums(LOGITS, LABEL))
    close(dice, [0.1347509423, 0.3149366984, 0.0956809162], 1e-10)
    close((0.4883554477 + dice.mean()) / 2, 0.3350724834, 1e-9)


def test_sums_of_parts_of_a_batch_make_the_dice_of_the_batch():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(6, 4, 4, 3)))
    label = jnp.asarray(rng.integers(0, 3, (6, 4, 4)))
    parts = dice_sums(logits[:2], label[:2]) + dice_sums(logits[2:], label[2:])
    close(dice_loss(parts), dice_loss(dice_sums(logits, label)), 1e-14)


def test_dice_is_that_of_a_loop():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 3, 4, 3))
    label = rng.integers(0, 3, (2, 3, 4))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for k, found in enumerate(dice_loss(dice_sums(jnp.asarray(logits), label))):
        g = label == k
        top = 2 * (p[..., k] * g).sum() + 1e-5
        close(found, 1 - top / ((p[..., k] ** 2).sum() + g.sum() + 1e-5), 1e-12)


@pytest.mark.parametrize(
    ("valid", "share", "loss"),
    [
        ([[True, True], [True, True]], 0.75, 0.3662665858),
        ([[True, True], [False, True]], 1.0, 0.5707034981),
    ],
)
def test_pseudo_label_loss_is_that_of_the_specification(valid, share, loss):
    valid = jnp.array([valid])
    confidence = jnp.array([[[0.99, 0.98], [0.5, 0.97]]])
    weight = confident_share(confidence, valid, threshold=0.97)
    close(weight, [share])
    each = pixel_cross_entropy(LOGITS, LABEL)
    close(weight[0] * jnp.where(valid, each, 0).sum() / valid.sum(), loss, 1e-10)


def test_a_slice_without_pseudo_labels_has_no_weight():
    none = jnp.zeros((1, 2, 2), bool)
    assert confident_share(jnp.ones((1, 2, 2)), none, threshold=0.5) == 0


# Anatomical contrast, A 8.4 and 8.5

ANCHORS = np.array([[1.0, 0, 0], [0.6, 0.8, 0]])
POSITIVE = np.array([0.8, 0.2, 0.1])
NEGATIVES = np.array([[[0.0, 1, 0], [0, 0, 1]], [[0, 1, 0], [-1, 0, 0]]])


def given_loss(anchors, temperature, normal=unit_length):
    positive = jnp.broadcast_to(normal(POSITIVE), anchors.shape)
    return info_nce_of(
        normal(anchors), positive, normal(NEGATIVES), temperature=temperature
    )


def test_loss_of_given_keys_is_that_of_the_specification():
    close(given_loss(ANCHORS, 0.5), [0.2557341031, 0.7539363933], 1e-10)
    close(given_loss(ANCHORS, 0.1).mean(), 0.4258964853, 1e-10)
    plain = given_loss(ANCHORS, 0.5, normal=lambda x: x)
    close(plain.mean(), 0.6198466163, 1e-10)
    gradient = jax.grad(lambda a: given_loss(a, 0.5).mean())(ANCHORS)
    expected = [
        [0, 0.0584954249, 0.0856607529],
        [-0.5241821515, 0.3931366136, -0.0637430106],
    ]
    close(gradient, expected, 1e-10)


def contrast(features, classes, hard, key=0, **changes):
    choices = dict(
        num_classes=2, num_anchors=32, num_negatives=8, temperature=0.5, chunk=16
    )
    return anatomical.anatomical_contrast(
        jnp.asarray(features),
        jnp.asarray(classes),
        jnp.asarray(hard),
        jax.random.key(key),
        **(choices | changes),
    )


@pytest.mark.parametrize(
    ("num_negatives", "expected"),
    [(1, 0.1063024232), (3, 0.2900351798), (512, 4.0677435731)],
)
def test_two_pixels_of_two_classes(num_negatives, expected):
    found = contrast(
        [[1, 0.2], [-0.3, 1]], [0, 1], [True, True], num_negatives=num_negatives
    )
    close(found, expected, 1e-9)


def test_three_pixels_on_average():
    features = [[1, 0.2], [0.4, 0.9], [-0.3, 1]]
    draw = jax.jit(
        lambda key: anatomical.anatomical_contrast(
            jnp.array(features),
            jnp.array([0, 1, 1]),
            jnp.array([True, False, True]),
            key,
            num_classes=2,
            num_anchors=64,
            num_negatives=8,
            temperature=0.5,
            chunk=64,
        )
    )
    found = np.array([draw(key) for key in jax.random.split(jax.random.key(0), 400)])
    close(found.mean(), 0.9199599828, 4 * 0.0086 / np.sqrt(400))
    close(found.std(), 0.0086, 0.001)


PROTOTYPES = np.array([[1.0, 0, 0], [0.7, 0.7, 0], [0, 0.6, 0.8], [0, 0, 1]])


def test_classes_of_negatives_are_those_that_are_confusable():
    probs = anatomical.confusion_probs(PROTOTYPES, jnp.ones(4, bool), temperature=0.5)
    expected = [
        [0, 0.6728417984, 0.1635791008, 0.1635791008],
        [0.5521544539, 0, 0.3136075583, 0.1342379877],
        [0.1206383481, 0.2818360021, 0, 0.5975256498],
    ]
    close(probs[:3], expected, 1e-10)
    present = jnp.array([True, False, True, False])
    probs = anatomical.confusion_probs(PROTOTYPES, present, temperature=0.5)
    np.testing.assert_array_equal(probs[0], [0, 0, 1, 0])
    alone = anatomical.confusion_probs(PROTOTYPES, jnp.arange(4) == 2, temperature=0.5)
    np.testing.assert_array_equal(alone[2], 0)


def test_pixels_are_drawn_evenly_from_their_class():
    mask = np.array([0, 1, 0, 1, 1, 0])
    grouped = sampling.members(jnp.asarray(1 - mask), 1)  # A 10: sample_from_mask
    at = [0.0, 0.34, 0.99]
    found = sampling.draw_members(grouped, jnp.zeros(3, int), jnp.array(at))
    np.testing.assert_array_equal(found, [1, 3, 4])


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_what_is_drawn_is_of_the_class(seed, num_classes, size):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, num_classes + 1, size)
    asked = rng.integers(0, num_classes, 50)
    drawn = sampling.draw_members(
        sampling.members(jnp.asarray(classes), num_classes),
        jnp.asarray(asked),
        jnp.asarray(rng.choice([0.0, rng.random(), 1 - 2**-24], 50)),
    )
    there = np.isin(asked, classes)
    np.testing.assert_array_equal(classes[drawn][there], asked[there])


@pytest.mark.parametrize(
    ("classes", "hard"),
    [
        ([0, 0, 0, 2], [True] * 4),  # one class, and a pixel of none
        ([2, 2, 2, 2], [False] * 4),  # nothing is sure
        ([0, 1, 0, 1], [False] * 4),  # nothing is hard
    ],
)
def test_without_pixels_to_compare_there_is_no_loss(classes, hard):
    features = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    value, gradient = jax.value_and_grad(lambda x: contrast(x, classes, hard))(features)
    assert value == 0 and not gradient.any()


def test_gradient_of_the_contrast_reaches_hard_pixels_alone():
    rng = np.random.default_rng(3)
    features = jnp.asarray(rng.normal(size=(20, 4)))
    classes, hard = rng.integers(0, 3, 20), rng.random(20) < 0.5
    classes[:4] = 0, 1, 2, 3  # 3 is none
    choices = dict(num_classes=3, num_anchors=64, num_negatives=16)
    gradient = jax.grad(lambda x: contrast(x, classes, hard, **choices))(features)
    moved = np.abs(gradient).sum(axis=1) > 0
    np.testing.assert_array_equal(moved, hard & (classes < 3))


def test_an_absent_class_is_neither_anchor_nor_negative_and_does_not_count():
    # Two classes at right angles: every negative has the cosine 0.
    features, classes = np.eye(2).repeat(3, axis=0), np.array([0, 0, 0, 2, 2, 2])
    choices = dict(num_classes=4, num_anchors=8, num_negatives=6)
    found = contrast(features, classes, [True] * 6, **choices)
    close(found, np.log(1 + 6 * np.exp(-1 / 0.5)), 1e-12)


def test_how_many_anchors_are_in_work_does_not_matter():
    rng = np.random.default_rng(4)
    features, classes = rng.normal(size=(30, 4)), rng.integers(0, 2, 30)
    found = [
        contrast(features, classes, [True] * 30, num_anchors=24, chunk=chunk)
        for chunk in (24, 16, 5)
    ]
    close(found, [found[0]] * 3, 1e-14)


# Centres of classes, P 8.1


@pytest.mark.parametrize(
    ("num_classes", "dim", "cosine", "of_temperatures", "without_self"),
    [
        (2, 2, -1, (14.2857142857, 2.0181499279, 1.1269280110), -2),
        (3, 2, -0.5, (14.2857142867, 2.0949229564, 1.3689811354), -0.3068528194),
        (4, 128, -1 / 3, (14.2857143017, 2.1893388394, 1.5826576531), 0.4319456220),
        (8, 7, -1 / 7, (14.2857148540, 2.5376095579, 2.1732081588), 1.6601958633),
    ],
)
def test_centres_are_the_corners_of_a_simplex(
    num_classes, dim, cosine, of_temperatures, without_self
):
    points = centres.simplex_centres(num_classes, dim, seed=3)
    gram = points @ points.T
    close(gram, np.where(np.eye(num_classes), 1, cosine), 1e-12)
    close(points.sum(axis=0), 0, 1e-12)
    points = jnp.asarray(points)
    for temperature, expected in zip((0.07, 0.5, 1), of_temperatures, strict=True):
        found = centres.uniformity(points, temperature=temperature, include_self=True)
        close(found, expected, 1e-10)
    found = centres.uniformity(points, temperature=0.5, include_self=False)
    close(found, without_self, 1e-9)


def test_uniformity_and_its_gradient_are_those_of_the_specification():
    x = jnp.array([[2.0, 0, 0], [0, 1, 0], [0.3, 0, 0.4]])

    def value(x, temperature=0.5):
        return centres.uniformity(x, temperature=temperature, include_self=True)

    found = [value(x, temperature) for temperature in (0.07, 0.5, 1.0)]
    close(found, [14.2879105026, 2.3867632911, 1.6585261139], 1e-10)
    close(3 * value(x), 7.1602898734, 1e-9)
    expected = [
        [0, 0.0639700356, 0.1512257973],
        [0.2047041138, 0, 0.1023520569],
        [0.4839225512, 0.2558801423, -0.3629419134],
    ]
    close(jax.grad(value)(x), expected, 1e-10)


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 128), (4, 496), (8, 128), (4, 3)])
def test_the_search_for_centres_ends_at_the_simplex(num_classes, dim):
    points = centres.solved_centres(num_classes, dim, temperature=0.07, seed=0)
    gram = points @ points.T
    off = ~np.eye(num_classes, dtype=bool)
    close(gram[off], -1 / (num_classes - 1), 1e-4)


def test_more_classes_than_a_simplex_takes_are_told():
    with pytest.raises(ValueError, match="4 equally far points need 3-D"):
        centres.simplex_centres(4, 2, seed=0)


THREE = np.array([[math.sqrt(3) / 2, 0.5], [-math.sqrt(3) / 2, 0.5], [0, -1]])
FOUR = np.array(
    [
        [0.8164965809, 0.4714045208, 0.3333333333],
        [-0.8164965809, 0.4714045208, 0.3333333333],
        [0, -0.9428090416, 0.3333333333],
        [0, 0, -1],
    ]
)


def test_means_of_classes_move_as_in_the_specification():  # P 8.2
    before = unit([[1, 0], [0, 1], [-1, 0.2]])
    features = unit([[0.9, 0.1], [0.8, -0.2], [-0.3, 1]])
    labels = jnp.array([0, 0, 1])
    means, seen = centres.moved_means(
        before, jnp.ones(3, bool), features, labels, rate=0.1
    )
    expected = [
        [0.9999774717, -0.0067123864],
        [-0.0288444802, 0.9995839114],
        [-0.9805806757, 0.1961161351],
    ]
    close(means, expected, 1e-10)
    assert seen.all()
    assigned = centres.assigned_centres(means, THREE)
    np.testing.assert_array_equal(assigned, [2, 0, 1])
    cosine = (means * THREE[assigned]).sum()
    close(cosine, 1.4287901327, 1e-9)


def test_a_class_seen_first_takes_its_first_mean_and_others_stay():
    features = unit([[0.9, 0.1], [0.8, -0.2]])
    start = jnp.zeros((3, 2)), jnp.zeros(3, bool)
    means, seen = centres.moved_means(*start, features, jnp.array([1, 1]), rate=0.1)
    close(means, [[0, 0], [0.9977455664, -0.0671102436], [0, 0]], 1e-10)
    np.testing.assert_array_equal(seen, [False, True, False])


@pytest.mark.parametrize(
    ("means", "points", "expected", "cosine"),
    [
        ([[0.4, 1], [-0.1, 1.4], [-0.7, 0.4]], THREE, (0, 1, 2), 0.8501642727),
        (
            [[0, -0.9, 0.3], [0.1, 0.2, -1], [0.9, 0.5, 0.2], [-0.8, 0.6, 0.4]],
            FOUR,
            (2, 3, 0, 1),
            3.9575712218,
        ),
    ],
)
def test_centres_are_assigned_by_cosine(means, points, expected, cosine):  # P 8.3
    means = unit(means)
    assigned = centres.assigned_centres(means, points)
    np.testing.assert_array_equal(assigned, expected)
    close((means * points[assigned]).sum(), cosine, 1e-9)


# Adaptive anatomical contrast, P 8.4

A_ANCHORS = unit([[0.9, 0.1], [-0.3, 1], [-0.5, -0.9]])
A_LABELS = np.array([0, 1, 2])
A_KEYS = unit([[1, 0.2], [-0.1, 1], [-0.4, -1]])
A_BANK = unit([[1, -0.1], [0.2, 1], [-1, -1], [0.5, 0.5]])
A_BANK_LABELS = np.array([0, 1, 2, -1])
KEPT, MASKED = np.ones(4, bool), np.arange(4) < 3


def terms(anchors=A_ANCHORS, filled=KEPT, assigned=(0, 1, 2), **changes):
    choices = dict(temperature=0.1, centre_weight=0.2, mode="code") | changes
    return centres.centre_contrast(
        anchors,
        A_KEYS,
        A_LABELS,
        A_BANK,
        A_BANK_LABELS,
        filled,
        THREE,
        jnp.asarray(assigned),
        **choices,
    )


@pytest.mark.parametrize(
    ("tau", "weight", "mode", "filled", "assigned", "to_class", "to_centre"),
    [
        (0.07, 0.2, "code", KEPT, (0, 1, 2), 0.5905767991, 0.1791421403),
        (0.1, 0.2, "code", KEPT, (0, 1, 2), 0.6010977281, 0.1441688951),
        (1, 0.2, "code", KEPT, (0, 1, 2), 1.0004116911, 0.1084470813),
        (0.5, 0.1, "code", KEPT, (0, 1, 2), 0.8324755299, 0.0500296887),
        (0.1, 0.2, "paper", KEPT, (0, 1, 2), 1.8032931842, 0.4325066853),
        (0.1, 0.2, "mean", KEPT, (0, 1, 2), 0.9016465921, 0.4325066853),
        (0.1, 0.2, "mean", MASKED, (0, 1, 2), 0.8836802030, 0.4289134075),
        (0.07, 0.2, "mean", MASKED, (0, 1, 2), 0.8783975166, 0.5359328846),
        (0.1, 0.2, "code", KEPT, (1, 2, 0), 0.6010977281, 1.2861382621),
        (0.1, 0.0, "code", KEPT, (0, 1, 2), 0.6010977281, 0.0),
    ],
)
def test_contrast_with_centres_is_that_of_the_specification(
    tau, weight, mode, filled, assigned, to_class, to_centre
):
    found = terms(
        filled=filled,
        assigned=assigned,
        temperature=tau,
        centre_weight=weight,
        mode=mode,
    )
    close(found, (to_class, to_centre), 1e-9)


def test_gradient_of_the_contrast_with_centres():
    gradient = jax.grad(lambda a: sum(terms(a)))(A_ANCHORS)
    expected = [
        [-0.0637952719, 0.2099191440],
        [-0.0657101838, 0.0480587605],
        [0.1312245313, -0.0612224766],
    ]
    close(gradient, expected, 1e-9)


@pytest.mark.parametrize("size", [6, 60])
def test_how_much_a_centre_weighs_beside_the_positives(size):  # P 11.5
    """In mode "code" a share 1 / (|P| + 1), and so with a full bank next to nothing."""
    rng = np.random.default_rng(0)
    bank, labels = unit(rng.normal(size=(size, 2))), np.arange(size) % 3

    def gradients(mode):
        def term(anchors, number):
            return centres.centre_contrast(
                anchors,
                A_KEYS,
                A_LABELS,
                bank,
                labels,
                np.ones(size, bool),
                THREE,
                jnp.arange(3),
                temperature=0.1,
                centre_weight=0.2,
                mode=mode,
            )[number]

        return [np.asarray(jax.grad(term)(A_ANCHORS, number)) for number in (0, 1)]

    positives = 1 + size // 3  # the own key and those of the class
    (mean_class, mean_centre), (code_class, code_centre), (sum_class, sum_centre) = (
        gradients(mode) for mode in ("mean", "code", "paper")
    )
    close(code_centre, mean_centre / (positives + 1), 1e-12)
    close(code_class, mean_class * positives / (positives + 1), 1e-12)
    close(sum_centre, mean_centre, 1e-12)
    close(sum_class, mean_class * positives, 1e-12)


def test_names_of_classes_and_a_common_turn_do_not_matter():
    angle = 0.7
    turn = jnp.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    renamed = jnp.array([2, 0, 1])  # class 0 is called 2, and so on
    found = centres.centre_contrast(
        A_ANCHORS @ turn,
        A_KEYS @ turn,
        renamed[A_LABELS],
        A_BANK @ turn,
        jnp.where(A_BANK_LABELS >= 0, renamed[A_BANK_LABELS], -1),
        KEPT,
        THREE @ turn,
        jnp.argsort(renamed),
        temperature=0.1,
        centre_weight=0.2,
        mode="code",
    )
    close(found, terms(), 1e-12)


def test_an_anchor_that_does_not_count_changes_nothing():
    more = jnp.concatenate([A_ANCHORS, unit([[0.3, 0.3]])])
    found = centres.centre_contrast(
        more,
        jnp.concatenate([A_KEYS, A_KEYS[:1]]),
        jnp.append(A_LABELS, -1),
        A_BANK,
        A_BANK_LABELS,
        KEPT,
        THREE,
        jnp.arange(3),
        temperature=0.1,
        centre_weight=0.2,
        mode="mean",
    )
    close(found, terms(mode="mean"), 1e-14)


# The bank and the schedule of temperatures


@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_bank_keeps_what_came_last(size, batches):
    bank = banks.empty(size, keys=jnp.zeros(2), labels=jnp.int32(0))
    came, number = [], 0
    for batch in batches:
        rows = np.arange(number, number + batch)
        keys = jnp.asarray(rows[:, None] * np.ones(2))
        bank = banks.pushed(bank, keys=keys, labels=jnp.asarray(rows, jnp.int32))
        came += rows.tolist()
        number += batch
    there = np.asarray(banks.there(bank))
    assert there.sum() == min(size, number)
    assert sorted(np.asarray(bank.rows["labels"])[there].tolist()) == came[-size:]
    np.testing.assert_array_equal(
        bank.rows["keys"][:, 0][there], bank.rows["labels"][there]
    )


def test_temperature_goes_down_and_up_again():  # P 8.5
    shares = np.array([0, 1 / 8, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1])

    def at(step, period, low):
        return cosine_temperature(step, period=period, low=low, high=1.0)

    expected = [1, 0.8681980515, 0.55, 0.325, 0.1, 0.55, 1]
    close(at(shares * 24, 24, 0.1), expected, 1e-10)
    expected = [1, 0.8638046533, 0.535, 0.3025, 0.07, 0.535, 1]
    close(at(shares * 24, 24, 0.07), expected, 1e-10)
    close(at(np.array([1, 7500]), 20000, 0.1), [0.9999999778, 0.2318019485], 1e-10)
    expected = [1, 0.9140576475, 0.6890576475, 0.4109423525, 0.1859423525, 0.1]
    close(at(np.arange(6), 10, 0.1), expected, 1e-10)
