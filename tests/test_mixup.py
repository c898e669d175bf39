"""Mixup against float64 NumPy, and the draws against their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pixelwise import CLASSES, WEIGHTS, Pixelwise

from pclseg import augment, methods
from pclseg.augment import sample_keys
from pclseg.errors import UserError
from pclseg.methods.mixup import blend, draw_pairs
from pclseg.train.step import init_state

ROWS, SIZE = 4, 16
PLAIN = augment.make("none")


def mixup(model, *, alpha=0.4, augmentation=PLAIN):
    return methods.make(
        "mixup", model=model, augment=augmentation, axis_name=None, alpha=alpha
    )


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(ROWS, SIZE, SIZE, 1)).astype(np.float32),
        "label": rng.integers(0, CLASSES, (ROWS, SIZE, SIZE)).astype(np.int32),
    }


def keys(number, seed=0):
    return sample_keys(jax.random.key(seed), jnp.arange(number))


def test_the_loss_equals_a_naive_loop_over_blends():
    method, data, key = mixup(Pixelwise()), batch(), jax.random.key(3)
    state = init_state(method, optax.sgd(0.1), jax.random.key(1), data)
    value, _ = method.loss(state.params, state, data, key)
    _, mix_key = jax.random.split(key)
    drawn = sample_keys(mix_key, jnp.arange(ROWS))
    pairs, share = draw_pairs(drawn, num_rows=ROWS, alpha=0.4)
    assert 0.01 < np.abs(share - np.round(share)).max()  # some are real blends
    slope, offset = (np.asarray(state.params[x], np.float64) for x in WEIGHTS)
    total = 0.0
    for (i, j), lam in zip(np.asarray(pairs), np.asarray(share, float), strict=True):
        for y, x in np.ndindex(SIZE, SIZE):
            a, b = (data["image"][row, y, x, 0].astype(np.float64) for row in (i, j))
            target = np.zeros(CLASSES)
            target[data["label"][i, y, x]] += lam
            target[data["label"][j, y, x]] += 1 - lam
            logits = (lam * a + (1 - lam) * b) * slope + offset
            total -= target @ (logits - np.log(np.exp(logits).sum()))
    np.testing.assert_allclose(value, total / (ROWS * SIZE * SIZE), rtol=1e-5)


def test_pairs_are_uniform_over_the_batch_with_replacement():
    pairs, _ = draw_pairs(keys(6000), num_rows=5, alpha=0.1)
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(np.asarray(pairs).T), 1)
    # 240 expected in each of 25 cells, of standard deviation 15.2
    assert np.abs(counts - 240).max() < 5 * 15.2


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_shares_have_the_moments_of_beta(alpha):
    _, share = draw_pairs(keys(6000), num_rows=5, alpha=alpha)
    share = np.asarray(share, np.float64)
    assert np.isfinite(share).all() and share.min() >= 0 and share.max() <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(share.mean() - 0.5) < 5 * np.sqrt(variance / 6000)
    np.testing.assert_allclose(share.var(), variance, rtol=0.05)


def test_draws_of_a_row_do_not_depend_on_the_other_rows():
    few, many = (draw_pairs(keys(n), num_rows=8, alpha=0.1) for n in (3, 7))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:3])


def test_a_blend_of_a_slice_with_itself_is_that_slice():
    values = jnp.asarray(batch()["image"])
    pairs = jnp.tile(jnp.arange(ROWS)[:, None], 2)
    share = jnp.array([0.0, 0.3, 0.9, 1.0])
    np.testing.assert_allclose(blend(values, pairs, share), values, rtol=1e-6)


def test_slices_are_augmented_before_they_are_mixed():
    def double(keys, images, labels):
        return 2 * images, (labels + 1) % CLASSES

    data, key = batch(), jax.random.key(0)
    state = init_state(mixup(Pixelwise()), optax.sgd(0.1), key, data)
    inside, _ = mixup(Pixelwise(), augmentation=double).loss(
        state.params, state, data, key
    )
    before = dict(zip(("image", "label"), double(None, *data.values()), strict=True))
    outside, _ = mixup(Pixelwise()).loss(state.params, state, before, key)
    np.testing.assert_allclose(inside, outside, rtol=1e-6)


def test_labels_outside_the_classes_are_not_silent():
    method, data = mixup(Pixelwise()), batch()
    data["label"][:] = CLASSES
    state = init_state(method, optax.sgd(0.1), jax.random.key(1), data)
    assert np.isnan(method.loss(state.params, state, data, jax.random.key(0))[0])


def test_prediction_is_of_the_slices_as_they_are():
    method, images = mixup(Pixelwise()), batch()["image"]
    state = init_state(method, optax.sgd(0.1), jax.random.key(1), batch())
    slope, offset = (np.asarray(state.params[x]) for x in WEIGHTS)
    np.testing.assert_allclose(
        method.predict(state, images), images * slope + offset, rtol=1e-6
    )


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(UserError, match=r"method\.alpha is .*; expected > 0"):
        mixup(None, alpha=alpha)
