"""Optimisers and schedule: numbers of PyTorch in float64, and the formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pclseg.errors import UserError
from pclseg.train import optimizer

DEFAULTS = dict(
    name="sgd",
    peak_lr=0.1,
    min_lr=0.0,
    schedule="cosine",
    lr_batch_size=0,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-5,
    warmup_steps=0,
    frozen=(),
    batch_size=32,
    total_steps=1000,
)


def _make(**changes):
    return optimizer.make(**{**DEFAULTS, **changes})


# Loss w1^2 + w2^2 from (1, -2), constant learning rate 0.1, weight decay 1e-5.
STEPS = {
    "sgd": [
        (0.799999, -1.599998),
        (0.459997500001, -0.919995000002),
        (0.061996190004, -0.123992380008),
    ],
    "adam": [
        (0.900000000500, -1.900000000250),
        (0.800412228692, -1.800166486116),
        (0.701586272946, -1.700623392046),
    ],
}


@pytest.mark.parametrize("name", list(STEPS))
def test_three_steps_equal_pytorch(name):
    with jax.enable_x64(True):
        tx, _ = _make(name=name, min_lr=0.1)
        params = jnp.array([1.0, -2.0], jnp.float64)
        state = tx.init(params)
        for expected in STEPS[name]:
            gradient = jax.grad(lambda w: jnp.sum(w**2))(params)
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(params, expected, rtol=0, atol=2e-12)


def test_cosine_with_floor_equals_the_authors_values():
    _, schedule = _make(peak_lr=5e-5, min_lr=5e-6)
    steps = [0, 250, 500, 750, 950, 999]
    expected = [5e-5, 4.267767e-5, 2.5e-5, 7.322330e-6, 5e-6, 5e-6]
    np.testing.assert_allclose([schedule(t) for t in steps], expected, rtol=1e-6)


def test_poly_with_floor_equals_its_worked_values():
    settings = dict(schedule="poly", peak_lr=0.01, total_steps=30000)
    _, schedule = _make(**settings)
    rates = [schedule(step) for step in (0, 15000, 30000, 40000)]
    np.testing.assert_allclose(rates, [0.01, 0.0053588673, 0, 0], rtol=1e-6)
    _, schedule = _make(**settings, min_lr=1e-3)
    rates = [schedule(step) for step in (0, 15000, 29000, 30000, 40000)]
    expected = [0.01, 0.0053588673, 1e-3, 1e-3, 1e-3]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_poly_equals_its_worked_values_in_float64():
    with jax.enable_x64(True):
        _, schedule = _make(schedule="poly", peak_lr=0.01, total_steps=30000)
        rates = [schedule(step) for step in (0, 1, 15000, 29999)]
    expected = [0.01, 0.0099996999995, 0.005358867313, 9.345248856e-07]
    np.testing.assert_allclose(rates, expected, rtol=1e-10)


def test_poly_follows_the_formula_and_warms_up_as_the_cosine():
    _, schedule = _make(schedule="poly", warmup_steps=10)
    step = np.arange(1000)
    expected = 0.1 * (1 - step / 1000) ** 0.9 * np.minimum((step + 1) / 10, 1)
    actual = jax.vmap(schedule)(jnp.asarray(step))
    np.testing.assert_allclose(actual, expected, atol=2e-8)


def test_without_a_schedule_the_rate_is_the_cosine():
    # As in the run directories of before the key was.
    settings = {key: DEFAULTS[key] for key in DEFAULTS if key != "schedule"}
    _, schedule = optimizer.make(**settings)
    _, cosine = _make(schedule="cosine")
    assert schedule(300) == cosine(300)


def test_first_step_uses_the_rate_of_step_zero_and_the_second_that_of_step_one():
    tx, schedule = _make(momentum=0.0, weight_decay=0.0, total_steps=3)
    state, used = tx.init(jnp.zeros(())), []
    for _ in range(3):
        update, state = tx.update(jnp.ones(()), state, jnp.zeros(()))
        used.append(-float(update))
    expected = [0.05 * (1 + math.cos(math.pi * t / 3)) for t in range(3)]
    np.testing.assert_allclose(used, expected, rtol=1e-6)
    np.testing.assert_allclose(used, [schedule(t) for t in range(3)], rtol=1e-6)


def test_warm_up_rises_linearly_to_the_cosine_and_ignores_the_floor():
    _, plain = _make(min_lr=0.01)
    _, schedule = _make(min_lr=0.01, warmup_steps=10)
    shares = [float(schedule(t) / plain(t)) for t in (0, 4, 9, 10, 500)]
    np.testing.assert_allclose(shares, [0.1, 0.5, 1, 1, 1], rtol=1e-5)


def test_rate_stays_at_the_floor_after_the_last_step():
    _, schedule = _make(min_lr=1e-3)
    np.testing.assert_allclose([schedule(1000), schedule(1500)], 1e-3, rtol=1e-6)


def test_schedule_follows_the_formula_over_many_steps():
    steps = 112500
    _, schedule = _make(total_steps=steps)
    step = np.arange(0, steps, 997)
    expected = 0.05 * (1 + np.cos(np.pi * step / steps))
    actual = jax.vmap(schedule)(jnp.asarray(step))
    np.testing.assert_allclose(actual, expected, atol=2e-8)


def test_weight_decay_reaches_every_leaf_before_the_moments_of_adam():
    # With zero gradients Adam turns any decay into a full step of lr towards zero.
    tx, _ = _make(name="adam")
    params = {"kernel": jnp.ones((2, 2)), "norm": {"scale": -jnp.ones(2)}}
    updates, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params
    )
    for update, leaf in zip(
        jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(update, -0.1 * leaf, rtol=2e-3)


@pytest.mark.parametrize("name", list(STEPS))
def test_state_holds_arrays_only(name):
    state = _make(name=name)[0].init({"a": jnp.ones(3)})
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match="'adamw'; known optimizers are: adam, sgd, nest"
    ):
        _make(name="adamw")


def test_stage_without_steps_is_refused():
    with pytest.raises(UserError, match="0 steps"):
        _make(total_steps=0)


@pytest.mark.parametrize("name", list(STEPS))
def test_frozen_modules_keep_their_bits_also_under_weight_decay(name):
    tx, _ = _make(name=name, weight_decay=0.1, frozen=("encoder",))
    free, _ = _make(name=name, weight_decay=0.1)
    draw = np.random.default_rng(0).normal
    start = {
        part: {"kernel": jnp.asarray(draw(size=(3, 3)), jnp.float32)}
        for part in ("encoder", "decoder")
    }
    ends = []
    for optimiser in (tx, free):
        params, state = start, optimiser.init(start)
        for _ in range(3):
            updates, state = optimiser.update(params, state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    frozen, moved = ends
    np.testing.assert_array_equal(
        frozen["encoder"]["kernel"], start["encoder"]["kernel"]
    )
    assert (moved["encoder"]["kernel"] != start["encoder"]["kernel"]).all()
    np.testing.assert_array_equal(
        frozen["decoder"]["kernel"], moved["decoder"]["kernel"]
    )


def test_a_frozen_module_that_is_none_is_named():
    tx, _ = _make(frozen=("encodr",))
    with pytest.raises(
        UserError, match="has: decoder, encoder. Did you mean 'encoder'"
    ):
        tx.init({"decoder": jnp.ones(2), "encoder": jnp.ones(2)})


PARAMS = {"kernel": [[1.0, -2.0], [0.5, 0.0]], "bias": [0.3, -0.4]}
GRADIENTS = [
    {"kernel": [[0.1, 0.2], [-0.3, 0.4]], "bias": [0.5, -0.6]},
    {"kernel": [[-0.7, 0.1], [0.2, 0.2]], "bias": [0.1, 0.1]},
    {"kernel": [[0.0, 0.0], [0.0, 0.3]], "bias": [-0.2, 0.4]},
]
DECAY, RATE = 0.1, 0.05


def naive_nesterov(w, gradients, *, is_kernel):
    """As the documentation of torch.optim.SGD(nesterov=True) writes it."""
    moment = np.zeros_like(w)
    for g in gradients:
        g = g + DECAY * w  # of biases too
        moment = 0.9 * moment + g
        w = w - RATE * (g + 0.9 * moment)
    return w


def naive_lars(w, gradients, *, is_kernel):
    moment = np.zeros_like(w)
    for g in gradients:
        trust = 1.0
        if is_kernel:
            g = g + DECAY * w
            trust = 1e-3 * np.linalg.norm(w) / np.linalg.norm(g)
        moment = 0.9 * moment + RATE * trust * g
        w = w - moment
    return w


def naive_lamb(w, gradients, *, is_kernel):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        if is_kernel:
            u = u + DECAY * w
            u = u * np.linalg.norm(w) / np.linalg.norm(u)
        w = w - RATE * u
    return w


@pytest.mark.parametrize(
    ("name", "naive"),
    [("nesterov", naive_nesterov), ("lars", naive_lars), ("lamb", naive_lamb)],
)
def test_optimisers_equal_their_formulas(name, naive):
    with jax.enable_x64(True):
        tx, _ = _make(name=name, peak_lr=RATE, min_lr=RATE, weight_decay=DECAY)
        params = {key: jnp.array(value) for key, value in PARAMS.items()}
        state = tx.init(params)
        for gradient in GRADIENTS:
            gradient = {key: jnp.array(value) for key, value in gradient.items()}
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    for key, have in params.items():
        gradients = [np.array(gradient[key]) for gradient in GRADIENTS]
        want = naive(np.array(PARAMS[key]), gradients, is_kernel=key == "kernel")
        np.testing.assert_allclose(have, want, rtol=1e-12)


@pytest.mark.parametrize(
    ("lr_batch_size", "lr_scaling", "growth"),
    [(0, "linear", 1), (32, "linear", 16), (32, "sqrt", 4), (512, "sqrt", 1)],
)
def test_rates_grow_with_the_batch(lr_batch_size, lr_scaling, growth):
    _, plain = _make(min_lr=0.01)
    _, schedule = _make(
        min_lr=0.01,
        batch_size=512,
        lr_batch_size=lr_batch_size,
        lr_scaling=lr_scaling,
    )
    for step in (0, 500, 999):
        np.testing.assert_allclose(schedule(step), growth * plain(step), rtol=1e-6)
