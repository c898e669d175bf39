"""Oracle: a naive float64 loop over the pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pclseg.losses.segmentation import cross_entropy, one_hot, soft_cross_entropy


def random_batch(seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(3, 4, 5, 4)).astype(np.float32)
    return logits, rng.integers(0, 4, (3, 4, 5)).astype(np.int32)


def test_cross_entropy_equals_naive_loop():
    logits, label = random_batch()
    expected = np.zeros(3)
    for b, y, x in np.ndindex(label.shape):
        pixel = logits[b, y, x].astype(np.float64)
        expected[b] += np.log(np.exp(pixel).sum()) - pixel[label[b, y, x]]
    loss = cross_entropy(jnp.asarray(logits), jnp.asarray(label))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected / 20, rtol=1e-5)


def test_equal_logits_cost_log_of_the_number_of_classes():
    loss = cross_entropy(jnp.zeros((2, 3, 3, 8)), jnp.ones((2, 3, 3), jnp.uint8))
    np.testing.assert_allclose(loss, np.full(2, np.log(8)), rtol=1e-6)


def test_huge_logits_stay_finite_in_value_and_gradient():
    logits = jnp.array([1e4, -1e4, 0.0]).reshape(1, 1, 1, 3)
    value, grad = jax.value_and_grad(
        lambda x: cross_entropy(x, jnp.ones((1, 1, 1), int))[0]
    )(logits)
    assert value == 2e4
    np.testing.assert_array_equal(grad.ravel(), [1, -1, 0])


def test_bfloat16_logits_are_computed_in_float32():
    logits, label = random_batch(1)
    half = jnp.asarray(logits, jnp.bfloat16)
    np.testing.assert_array_equal(
        cross_entropy(half, label), cross_entropy(half.astype(jnp.float32), label)
    )


@pytest.mark.parametrize("label", [-4, -3, -1, 3])
def test_class_that_does_not_exist_is_not_silent(label):
    label = jnp.full((1, 2, 2), label)
    assert np.isnan(cross_entropy(jnp.zeros((1, 2, 2, 3)), label)[0])


def test_a_slice_does_not_depend_on_its_batch():
    logits, label = map(jnp.asarray, random_batch(2))
    alone = [cross_entropy(logits[b : b + 1], label[b : b + 1])[0] for b in range(3)]
    np.testing.assert_allclose(cross_entropy(logits, label), alone, rtol=1e-6)


def test_soft_cross_entropy_equals_naive_loop():
    logits, _ = random_batch(3)
    probs = np.random.default_rng(4).dirichlet(np.ones(4), (3, 4, 5))
    expected = np.zeros(3)
    for b, y, x in np.ndindex(logits.shape[:3]):
        pixel = logits[b, y, x].astype(np.float64)
        log_probs = pixel - np.log(np.exp(pixel).sum())
        expected[b] -= (probs[b, y, x] * log_probs).sum() / 20
    loss = soft_cross_entropy(jnp.asarray(logits), jnp.asarray(probs, jnp.float32))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_of_one_hot_labels_soft_and_hard_cross_entropy_agree():
    logits, label = map(jnp.asarray, random_batch(5))
    soft, hard = (
        jax.value_and_grad(lambda x, f=f: f(x).sum())(logits)
        for f in (
            lambda x: soft_cross_entropy(x, one_hot(label, 4)),
            lambda x: cross_entropy(x, label),
        )
    )
    np.testing.assert_allclose(soft[0], hard[0], rtol=1e-6)
    np.testing.assert_allclose(soft[1], hard[1], atol=1e-6)


def test_soft_cross_entropy_of_huge_logits_is_finite_in_value_and_gradient():
    logits = jnp.array([1e4, -1e4, 0.0]).reshape(1, 1, 1, 3)
    probs = jnp.array([0.5, 0.25, 0.25]).reshape(1, 1, 1, 3)
    value, grad = jax.value_and_grad(lambda x: soft_cross_entropy(x, probs)[0])(logits)
    assert value == 0.25 * 2e4 + 0.25 * 1e4
    np.testing.assert_array_equal(grad.ravel(), [0.5, -0.25, -0.25])


def test_soft_cross_entropy_of_bfloat16_is_computed_in_float32():
    logits, label = random_batch(6)
    half = jnp.asarray(logits, jnp.bfloat16)
    probs = jnp.asarray(0.75 * one_hot(label, 4) + 0.0625, jnp.bfloat16)
    value = soft_cross_entropy(half, probs)
    assert value.dtype == jnp.float32
    exact = soft_cross_entropy(half.astype(jnp.float32), probs.astype(jnp.float32))
    np.testing.assert_array_equal(value, exact)
    grad = jax.grad(lambda x: soft_cross_entropy(x, probs).sum())(half)
    assert grad.dtype == jnp.bfloat16 and np.isfinite(grad).all()


def test_one_hot_of_a_class_that_does_not_exist_is_not_silent():
    found = one_hot(jnp.array([[[0, 2, 3, -1]]]), 3)
    np.testing.assert_array_equal(found[0, 0, :2], [[1, 0, 0], [0, 0, 1]])
    assert np.isnan(found[0, 0, 2:]).all()
