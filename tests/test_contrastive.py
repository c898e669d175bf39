"""Oracles: worked examples A, B, C of the authors' formula and a naive float64 loop."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pclseg.losses.contrastive import collapse_value, info_nce, unit_length

FACTOR = 0.1 / 0.07

A = np.eye(2), np.eye(2)
B = (
    np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 1.0, 0], [0, 0, 2.0]]),
    np.array([[0.6, 0.8, 0], [1.0, 0, 0], [0, 0.6, 0.8], [0, -0.6, 0.8]]),
)
C = np.array([[3.0, 4], [0, 0], [-4, 3]]), np.array([[4.0, 3], [1, 1], [-3, 4]])
B_POSITION, C_POSITION = [0.10, 0.15, 0.50, 1.00], [0.8, 0.9, 0.7]


def equal(values):
    return np.equal.outer(values, values)


def near(position, threshold):
    return np.abs(np.subtract.outer(position, position)) < threshold


@functools.partial(jax.jit, static_argnames=("temperature", "base_temperature"))
def slice_loss(
    view1, view2, slice_positives, *, temperature=0.1, base_temperature=0.07
):
    """Loss of each of the 2B anchors; positives [B, B] are given between slices."""
    embedding = unit_length(jnp.concatenate([view1, view2]))
    return info_nce(
        embedding,
        embedding,
        jnp.tile(jnp.asarray(slice_positives), (2, 2)),
        jnp.eye(len(embedding), dtype=bool),
        temperature=temperature,
        base_temperature=base_temperature,
    )


def as_float32(views):
    return [jnp.asarray(view, jnp.float32) for view in views]


EXAMPLES = {
    "A simclr": (A, np.eye(2, dtype=bool), 0.000129708196),
    "A pcl all": (A, near([0.20, 0.25], 0.1), 9.523939232006),
    "A pcl none": (A, near([0.2, 0.9], 0.1), 0.000129708196),
    "A gcl": (A, equal([1, 4]), 0.000129708196),
    "B simclr": (B, np.eye(4, dtype=bool), 3.071364821622),
    "B pcl 0.1": (B, near(B_POSITION, 0.1), 2.404698154955),
    "B pcl 0.45": (B, near(B_POSITION, 0.45), 4.785650535908),
    "B gcl": (B, equal([1, 1, 2, 4]), 2.404698154955),
    "C simclr": (C, np.eye(3, dtype=bool), 3.312528210742),
    "C pcl 0.1": (C, near(C_POSITION, 0.1), 3.217450453087),
    "C gcl": (C, equal([3, 4, 3]), 9.407766305980),
}


@pytest.mark.parametrize(
    ("views", "positives", "expected"), EXAMPLES.values(), ids=EXAMPLES
)
def test_worked_examples(views, positives, expected):
    loss = slice_loss(*as_float32(views), positives)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss.mean(), expected, rtol=0, atol=1e-5)
    with jax.enable_x64(True):
        loss = slice_loss(*map(jnp.asarray, views), positives)
        np.testing.assert_allclose(loss.mean(), expected, rtol=0, atol=1e-11)


def test_example_a_has_its_closed_forms():
    single = slice_loss(*as_float32(A), np.eye(2, dtype=bool))
    every = slice_loss(*as_float32(A), np.ones((2, 2), bool))
    log_sum = math.log(math.exp(10) + 2)
    np.testing.assert_allclose(single, np.full(4, FACTOR * (log_sum - 10)), atol=1e-6)
    np.testing.assert_allclose(
        every, np.full(4, FACTOR * (log_sum - 10 / 3)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("positives", "expected"),
    [
        (np.eye(4, dtype=bool), 10.299220879621),
        (near(B_POSITION, 0.1), 9.632554212954),
        (near(B_POSITION, 0.45), 12.013506593907),
    ],
    ids=["simclr", "pcl 0.1", "pcl 0.45"],
)
def test_example_b_at_temperature_one_half(positives, expected):
    loss = slice_loss(*as_float32(B), positives, temperature=0.5)
    np.testing.assert_allclose(loss.mean(), expected, rtol=0, atol=1e-5)


def test_example_b_per_anchor():
    expected = [3.061555756, 2.038429760, 3.200481600, 0.991407837]
    expected += [3.764210300, 3.061555756, 3.111114080, 0.008830151]
    loss = slice_loss(*as_float32(B), near(B_POSITION, 0.1))
    np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-5)


def test_example_b_gradient_in_float64():
    expected = [
        [0, -1.33608985, 0.00135941],
        [-0.88544017, 1.18058689, 0.01755085],
        [1.19389659, 0, -2.54249127],
        [0.00064145, 0.98813432, 0],
    ]
    with jax.enable_x64(True):
        positives = near(B_POSITION, 0.1)
        grad = jax.grad(lambda view: slice_loss(view, B[1], positives).mean())
        np.testing.assert_allclose(grad(jnp.asarray(B[0])), expected, rtol=0, atol=1e-8)


def test_simclr_is_a_multiple_of_nt_xent():
    # google-research/simclr sums the mean losses of the two views.
    both = np.concatenate(B)
    both = both / np.linalg.norm(both, axis=1, keepdims=True)
    logits = both @ both.T / 0.1 - 1e9 * np.eye(8)
    other_view = logits[np.arange(8), (np.arange(8) + 4) % 8]
    anchors = np.log(np.exp(logits).sum(1)) - other_view
    nt_xent = anchors[:4].mean() + anchors[4:].mean()
    assert nt_xent == pytest.approx(4.299910750271, abs=1e-11)
    loss = slice_loss(*as_float32(B), np.eye(4, dtype=bool)).mean()
    np.testing.assert_allclose(loss, 5 / 7 * nt_xent, atol=1e-5)


def naive_info_nce(anchors, keys, positives, ignored, temperature, base_temperature):
    losses = np.zeros(len(anchors))
    for a, anchor in enumerate(anchors):
        used = [k for k in range(len(keys)) if not ignored[a, k]]
        denominator = sum(math.exp(anchor @ keys[k] / temperature) for k in used)
        terms = [
            math.log(math.exp(anchor @ keys[k] / temperature) / denominator)
            for k in used
            if positives[a, k]
        ]
        if terms:
            losses[a] = -temperature / base_temperature * sum(terms) / len(terms)
    return losses


@pytest.mark.parametrize("seed", range(5))
def test_info_nce_equals_naive_loop(seed):
    rng = np.random.default_rng(seed)
    anchors, keys = rng.normal(size=(7, 5)), rng.normal(size=(11, 5))
    anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    positives = rng.random((7, 11)) < 0.3
    ignored = rng.random((7, 11)) < 0.2
    positives[0], ignored[1] = False, True  # no positive; no key at all
    expected = naive_info_nce(anchors, keys, positives, ignored, 0.2, 0.07)
    arrays = jnp.asarray(anchors, jnp.float32), jnp.asarray(keys, jnp.float32)
    options = {"temperature": 0.2, "base_temperature": 0.07}
    loss = info_nce(*arrays, jnp.asarray(positives), jnp.asarray(ignored), **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    with jax.enable_x64(True):
        loss = info_nce(anchors, keys, positives, ignored, **options)
        np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-12)


def random_views(seed, num_slices=6, dim=4):
    rng = np.random.default_rng(seed)
    views = rng.normal(size=(2, num_slices, dim)).astype(np.float32)
    return views, near(rng.random(num_slices), 0.3)


def test_order_of_the_slices_does_not_matter():
    views, positives = random_views(0)
    order = np.random.default_rng(1).permutation(6)
    loss = slice_loss(*views, positives)
    permuted = slice_loss(*views[:, order], positives[np.ix_(order, order)])
    np.testing.assert_allclose(
        permuted, loss[np.concatenate([order, order + 6])], rtol=1e-5
    )


def test_swapping_the_views_swaps_the_losses():
    views, positives = random_views(2)
    loss = slice_loss(*views, positives)
    swapped = slice_loss(views[1], views[0], positives)
    np.testing.assert_allclose(swapped, jnp.roll(loss, 6), rtol=1e-5)


def test_length_of_the_embedding_does_not_matter():
    views, positives = random_views(3)
    lengths = np.random.default_rng(4).uniform(0.1, 10, (2, 6, 1)).astype(np.float32)
    loss, scaled = (
        slice_loss(*views, positives),
        slice_loss(*(views * lengths), positives),
    )
    np.testing.assert_allclose(scaled, loss, rtol=1e-4)


@pytest.mark.parametrize("threshold", [0.01, 0.3, 2.0])
def test_loss_is_at_least_log_of_the_number_of_positives(threshold):
    views, _ = random_views(5)
    positives = near(np.linspace(0.1, 1, 6), threshold)
    bound = FACTOR * np.log(2 * positives.sum(1) - 1)
    assert np.all(np.asarray(slice_loss(*views, positives)) >= np.tile(bound, 2) - 1e-5)


@pytest.mark.parametrize(
    ("slices", "expected"),
    [(24, 5.500211), (25, 5.559743), (32, 5.918764), (48, 6.505538), (64, 6.920267)],
)
def test_collapse_value(slices, expected):
    options = {"temperature": 0.1, "base_temperature": 0.07}
    value = collapse_value(2 * slices, **options)
    assert value == pytest.approx(expected, abs=5e-7)
    view = jnp.ones((slices, 3))
    for positives in (np.eye(slices, dtype=bool), near(np.arange(slices), 5)):
        loss = slice_loss(view, view, positives)
        np.testing.assert_allclose(loss, np.full(2 * slices, value), rtol=1e-6)


def test_no_positive_gives_zero_loss_and_zero_gradient():
    views, _ = random_views(6)
    positives = np.zeros((6, 6), bool)
    assert not np.any(slice_loss(*views, positives))
    grad = jax.grad(lambda view: slice_loss(view, views[1], positives).sum())(views[0])
    np.testing.assert_array_equal(grad, np.zeros_like(views[0]))


def test_no_key_at_all_gives_zero_loss_and_zero_gradient():
    anchors = jnp.eye(3)
    everything = jnp.ones((3, 3), bool)

    def loss(anchors):
        options = {"temperature": 0.1, "base_temperature": 0.07}
        return info_nce(anchors, anchors, everything, everything, **options).sum()

    value, grad = jax.value_and_grad(loss)(anchors)
    assert value == 0
    np.testing.assert_array_equal(grad, np.zeros((3, 3)))


def test_tiny_temperature_neither_overflows_nor_spoils_the_gradient():
    # The anchor itself has by far the largest logit, 1000; its exponential is infinite.
    view1, view2 = as_float32(B)

    def loss(view):
        return slice_loss(view, view2, np.eye(4, dtype=bool), temperature=0.001).mean()

    value, grad = jax.value_and_grad(loss)(view1)
    assert np.isfinite(value) and np.all(np.isfinite(grad))


def test_bfloat16_embedding_is_computed_in_float32():
    views, positives = random_views(7)
    half = [jnp.asarray(view, jnp.bfloat16) for view in views]
    loss = slice_loss(*half, positives)
    assert loss.dtype == jnp.float32
    exact = slice_loss(*[view.astype(jnp.float32) for view in half], positives)
    np.testing.assert_array_equal(loss, exact)
    grad = jax.grad(lambda view: slice_loss(view, half[1], positives).mean())(half[0])
    assert grad.dtype == jnp.bfloat16 and bool(jnp.all(jnp.isfinite(grad)))


def test_jit_changes_nothing():
    views, positives = random_views(8)
    loss = slice_loss(*views, positives)
    with jax.disable_jit():
        np.testing.assert_allclose(slice_loss(*views, positives), loss, rtol=1e-6)


def test_unit_length_and_its_zero_vector():
    embedding = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0]])
    np.testing.assert_allclose(
        unit_length(embedding), [[0.6, 0.8], [0, 0], [0.1, 0]], rtol=1e-6
    )
    grad = jax.grad(lambda e: (unit_length(e) * jnp.array([[1.0, 2.0]])).sum())(
        embedding
    )
    assert np.all(np.isfinite(grad))


def test_zero_vector_gives_finite_gradient_of_the_loss():
    grad = jax.grad(lambda v: slice_loss(v, as_float32(C)[1], equal([3, 4, 3])).mean())
    assert np.all(np.isfinite(grad(as_float32(C)[0])))
