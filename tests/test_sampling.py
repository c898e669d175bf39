"""Draws of pixels by class: the numbers of the specification of ARCO, section 8."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pclseg.errors import UserError
from pclseg.losses import sampling
from pclseg.parts.sampler import SAMPLERS, check_sampler, draw_of

BY_HAND = np.array([[1, 2, 0, 1], [3, 5, 2, 2], [4, 4, 1, 0], [6, 8, 3, 7]])
LEFT = np.setdiff1d(np.arange(16), [0, 1, 4, 15])  # of A1b
ROW, COLUMN = np.mgrid[:16, :16]


def exactly(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def grid(size, cells):
    return sampling.grid_strata((size, size), cells)


def smooth_map(row, column):
    """The similarity map of A2, as a contrast with 512 keys of similarity 0."""
    waves = np.cos(np.pi * (row - 5) / 16) * np.cos(np.pi * (column - 9) / 16)
    s = 0.8 * waves + 0.1 * ((5 * row + 3 * column) % 7) / 6
    return np.log(np.exp(s / 0.5) + 512) - s / 0.5


def test_variances_by_hand():  # A1
    found = sampling.estimator_variances(BY_HAND.reshape(-1), grid(4, (2, 2)), 8)
    exactly(found, (0.69482421875, 0.400390625, 0.12109375))


def test_variances_of_unequal_strata():  # A1b
    values, strata = BY_HAND.reshape(-1)[LEFT], grid(4, (2, 2))[LEFT]
    found = sampling.estimator_variances(values, strata, 24)
    exactly(found, (0.236111111111, 0.063946759259, 0.027199074074))


@pytest.mark.parametrize(
    ("cells", "number", "expected"),
    [
        ((2, 2), 32, (1.0642613651e-2, 6.8737186210e-3, 1.8710222156e-3)),
        ((4, 4), 32, (1.0642613651e-2, 1.9537169072e-3, 2.5482244498e-4)),
        ((4, 4), 256, (1.3303267064e-3, 2.4421461340e-4, 3.1852805622e-5)),
        ((8, 8), 256, (1.3303267064e-3, 6.3794203158e-5, 1.5734640055e-5)),
    ],
)
def test_variances_of_a_similarity_map(cells, number, expected):  # A2
    values = smooth_map(ROW, COLUMN).reshape(-1)
    expected_values = 6.413383639236, 4.548959180668, 6.440902107271
    exactly(values[[0, 5 * 16 + 9, 255]], expected_values)
    exactly((values.mean(), values.var()), (5.594093051966, 0.340563636828))
    found = sampling.estimator_variances(values, grid(16, cells), number)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (ROW + 2 * COLUMN, (3.3203125, 0.1953125, 0)),
        ((ROW % 4 - 1.5) ** 2 + (COLUMN % 4 - 1.5) ** 2, (0.0625, 0.0625, 0.125)),
        (4 * (ROW // 4) + COLUMN // 4, (0.6640625, 0, 0)),
        (ROW + 2 * COLUMN + (ROW % 4 - 1.5) ** 2, (3.3515625, 0.2265625, 0.0625)),
    ],
)
def test_variances_of_special_maps(values, expected):  # A3
    found = sampling.estimator_variances(values.reshape(-1), grid(16, (4, 4)), 32)
    exactly(found, expected)


def test_what_strata_gain():  # A2
    values = smooth_map(ROW, COLUMN).reshape(-1)
    found = sampling.estimator_variances(values, grid(16, (4, 4)), 32)
    exactly(found.naive - found.stratified, 0.008688896744)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 40))
def test_strata_never_make_it_worse(seed, num_strata, pixels):
    rng = np.random.default_rng(seed)
    values, strata = rng.normal(size=pixels), rng.integers(0, num_strata, pixels)
    found = sampling.estimator_variances(values, strata, pixels)
    assert found.stratified <= found.naive + 1e-12
    assert found.antithetic <= 2 * found.stratified + 1e-12
    of_stratum = np.array([values[strata == stratum].mean() for stratum in strata])
    exactly(found.naive - found.stratified, of_stratum.var() / pixels)


def draw(name, classes, number, repeats, cells=(4, 4), num_classes=1):
    """[repeats, K, number] pixels of `classes`, [R, H, W] of integers."""
    classes = jnp.asarray(classes)
    sampler = draw_of(name, cells, [classes.shape])
    keys = jax.random.split(jax.random.key(0), repeats)
    many = jax.jit(
        jax.vmap(lambda key: sampler(classes.reshape(-1), key, num_classes, number))
    )
    return np.asarray(many(keys).pixels)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("naive", 1.0642613651e-2),
        ("stratified", 1.9537169072e-3),
        ("antithetic", 2.5482244498e-4),
        # Of the authors' functions, 20,000 estimates.
        ("folded", 1.985e-3),
        ("folded_antithetic", 2.583e-4),
    ],
)
def test_draws_vary_as_computed_and_are_unbiased(name, expected):  # A2
    values = smooth_map(ROW, COLUMN).reshape(-1)
    means = values[draw(name, np.zeros((1, 16, 16), int), 32, 20_000)].mean(axis=(1, 2))
    tolerance = 0.08 if name.startswith("folded") else 0.05
    np.testing.assert_allclose(means.var(), expected, rtol=tolerance)
    error = math.sqrt(means.var() / len(means))
    assert abs(means.mean() - values.mean()) < 4 * error


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("naive", 0.236111111111),
        ("stratified", 0.063946759259),
        ("antithetic", 0.027199074074),
    ],
)
def test_draws_from_unequal_strata(name, variance):  # A1b
    """Their mean is that of the pixels, 3, and not that of the means of the strata."""
    strata, values = grid(4, (2, 2)), BY_HAND.reshape(-1)
    means = [values[LEFT][strata[LEFT] == stratum].mean() for stratum in range(4)]
    exactly(np.mean(means), 3.270833333333)
    classes = np.where(np.isin(np.arange(16), LEFT), 0, 1).reshape(1, 4, 4)
    drawn = draw(name, classes, 24, 20_000, cells=(2, 2))[:, 0]
    means = values[drawn].mean(axis=1)
    np.testing.assert_allclose(means.var(), variance, rtol=0.05)
    assert abs(means.mean() - 3) < 4 * math.sqrt(variance / len(means))
    if name != "naive":
        for of_one in strata[drawn[:50]]:
            np.testing.assert_array_equal(np.bincount(of_one), (2, 8, 8, 6))


def disc():
    """Class 0 inside the disc of A4, nothing outside; the values; 4 x 4 cells of 6."""
    row, column = np.mgrid[:24, :24]
    inside = (row - 12) ** 2 + (column - 11) ** 2 <= 81
    return np.where(inside, 0, 1)[None], smooth_map(row, column).reshape(-1)


def test_variances_of_an_irregular_class():  # A4
    classes, values = disc()
    inside = classes.reshape(-1) == 0
    strata = grid(24, (4, 4))[inside]
    expected = 0, 12, 9, 0, 15, 36, 36, 9, 18, 36, 36, 12, 1, 18, 15, 0
    np.testing.assert_array_equal(np.bincount(strata, minlength=16), expected)
    found = sampling.estimator_variances(values[inside], strata, 64)
    exactly(found.naive, 0.010481203964)
    exactly(1 - found.stratified / found.naive, 0.839722513530)
    assert found.stratified / found.naive == pytest.approx(0.160277, abs=5e-7)


def test_draws_from_an_irregular_class():  # A4
    classes, values = disc()
    inside = values[classes.reshape(-1) == 0]
    assert len(inside) == 253
    exactly((inside.mean(), inside.var()), (6.025104429507, 0.670797053697))
    of = {}
    for name in SAMPLERS:
        drawn = draw(name, classes, 64, 20_000)
        assert (classes.reshape(-1)[drawn] == 0).all()
        means = values[drawn].mean(axis=(1, 2))
        of[name] = means.var() / (inside.var() / 64)
        if not name.startswith("folded"):
            error = math.sqrt(means.var() / len(means))
            assert abs(means.mean() - inside.mean()) < 4 * error
    np.testing.assert_allclose(of["stratified"], 0.180, rtol=0.05)
    np.testing.assert_allclose(of["antithetic"], 0.135, rtol=0.05)
    np.testing.assert_allclose(of["folded"], 0.232, rtol=0.05)
    np.testing.assert_allclose(of["folded_antithetic"], 0.145, rtol=0.05)
    assert of["antithetic"] < of["stratified"] < of["naive"]


@pytest.mark.parametrize("name", ["naive", "stratified", "antithetic"])
@pytest.mark.parametrize("number", [15, 16])
def test_all_pixels_of_a_class_are_as_likely(name, number):
    """By chi squared, at 1 in 1000; draws of one call depend on each other."""
    classes, _ = disc()
    drawn = draw(name, classes, number, 20_000)
    counts = np.bincount(drawn.reshape(-1), minlength=classes.size)
    counts = counts[classes.reshape(-1) == 0]
    expected = drawn.size / len(counts)
    statistic = ((counts - expected) ** 2 / expected).sum()
    degrees = len(counts) - 1
    assert statistic < degrees + 3.1 * math.sqrt(2 * degrees) * (
        2 if name == "antithetic" else 1  # a pixel that is its own mirror comes twice
    )


@pytest.mark.parametrize("name", ["stratified", "antithetic"])
def test_every_cell_of_a_full_slice_gets_its_share(name):
    drawn = draw(name, np.zeros((2, 16, 16), int), 64, 50)
    strata = np.tile(grid(16, (4, 4)), 2)[drawn[:, 0]]
    for of_one in strata:
        np.testing.assert_array_equal(np.bincount(of_one), 4)


@pytest.mark.parametrize(("number", "expected"), [(40, 1.6), (64, 0)])
def test_shares_that_are_not_whole_may_vary_more(number, expected):
    """What differs from column to column of the grid: in step with what is over."""
    values = np.where(COLUMN // 4 % 2, 1.0, -1.0).reshape(-1)
    drawn = draw("stratified", np.zeros((1, 16, 16), int), number, 4000)
    found = values[drawn].mean(axis=(1, 2)).var() * number
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-12)


@pytest.mark.parametrize("values", [ROW, COLUMN, smooth_map(ROW, COLUMN)])
@pytest.mark.parametrize("name", ["stratified", "antithetic"])
@pytest.mark.parametrize("whole", [True, False])
def test_of_many_slices_the_mean_varies_less(name, values, whole):
    """Eight slices alike: shares must not fall in step with the columns of the grid."""
    classes = np.zeros((8, 16, 16), int)
    if not whole:
        classes[:, (ROW - 8) ** 2 + (COLUMN - 7) ** 2 < 20] = 1
    many = np.tile(values.reshape(-1), 8)
    inside = many[classes.reshape(-1) == 0]
    for number in (32, 50, 64):
        means = many[draw(name, classes, number, 2000)].mean(axis=(1, 2))
        # Pairs of 32 are as few as the cells; more of them come closer to the formula.
        assert means.var() < 0.8 * inside.var() / number


def test_pairs_mirror_each_other_about_the_centre_of_their_cell():
    drawn = draw("antithetic", np.zeros((2, 16, 16), int), 64, 50)[:, 0]
    first, second = drawn[:, ::2], drawn[:, 1::2]
    cells = np.tile(grid(16, (4, 4)), 2)
    np.testing.assert_array_equal(cells[first], cells[second])
    for cell in range(16):
        inside = np.flatnonzero(cells == cell)
        both = (first + second)[cells[first] == cell]
        assert set(both) == {inside[0] + inside[-1]}


@pytest.mark.parametrize(
    ("name", "ranks", "pixels", "mean"),
    [
        ("stratified", (0, 3, 1, 1, 2, 0, 3, 2), (0, 5, 3, 3, 12, 8, 15, 14), 3.5),
        ("antithetic", (0, 1, 2, 3), (0, 5, 3, 6, 12, 9, 15, 10), 3.375),
    ],
)
def test_pixels_of_given_ranks(monkeypatch, name, ranks, pixels, mean):  # A1
    uniforms = iter([jnp.full((1, 1), 0.5), (jnp.array([ranks]) + 0.5) / 4])
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: next(uniforms))
    sampler = draw_of(name, (2, 2), [(1, 4, 4)])
    drawn = sampler(jnp.zeros(16, int), jax.random.key(0), 1, 8).pixels
    np.testing.assert_array_equal(drawn, [pixels])
    assert BY_HAND.reshape(-1)[drawn].mean() == mean


@pytest.mark.parametrize("name", ["stratified", "antithetic"])
def test_draws_are_those_of_a_loop(monkeypatch, name):
    """Of a slot's stratum, in the class, and of a pair the second mirrors the first."""
    classes, _ = disc()
    slots, cells = 64 // (1 + (name == "antithetic")), grid(24, (4, 4))
    inside = np.flatnonzero(classes == 0)
    ranked = inside[np.argsort(cells[inside], kind="stable")]
    places = np.random.default_rng(0).random((1, slots), np.float32)
    expected = []
    for slot, place in enumerate(places[0]):
        cell = cells[ranked[int((slot + 0.3) * 253 / slots)]]
        members = [pixel for pixel in inside if cells[pixel] == cell]
        first = int(place * len(members))
        pair = members[first], members[len(members) - 1 - first]
        expected += pair if name == "antithetic" else pair[:1]
    uniforms = iter([jnp.full((1, 1), 0.3), jnp.asarray(places)])
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: next(uniforms))
    sampler = draw_of(name, (4, 4), [classes.shape])
    drawn = sampler(jnp.asarray(classes.reshape(-1)), jax.random.key(0), 1, 64)
    np.testing.assert_array_equal(drawn.pixels[0], expected)


def test_the_mirror_image_of_a_mirror_image_is_the_pixel():
    classes, _ = disc()
    drawn = draw("antithetic", classes, 64, 500)
    pairs = {tuple(pair) for pair in drawn.reshape(-1, 2)}
    mirror = dict(pairs)
    assert len(mirror) == len(pairs) == 253
    assert all(mirror[mirror[pixel]] == pixel for pixel in mirror)


def test_pairs_by_hand():  # A1
    pairs = (0, 5), (3, 6), (12, 9), (15, 10)
    drawn = draw("antithetic", np.zeros((1, 4, 4), int), 8, 200, cells=(2, 2))
    found = {tuple(sorted(pair)) for pair in drawn.reshape(-1, 2)}
    assert {tuple(sorted(pair)) for pair in pairs} <= found
    assert {sum(pair) for pair in found} == {5, 9, 21, 25}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("number", [1, 2, 7, 64])
def test_few_pixels_none_and_any_number(name, number):
    """0, 1, 3 and 50 pixels of four classes, and 10 of none."""
    classes = np.repeat([4, 1, 2, 3], [10, 1, 3, 50]).reshape(1, 8, 8)
    drawn = draw(name, classes, number, 300, num_classes=4)
    assert drawn.shape == (300, 4, number)
    for kind in (1, 2, 3):
        assert (classes.reshape(-1)[drawn[:, kind]] == kind).all()
    assert len(set(drawn[:, 2].reshape(-1))) == 3
    assert ((drawn >= 0) & (drawn < 64)).all()


def test_one_stratum_is_drawn_as_without():
    """In law: every pixel as likely, and the mean as variable."""
    values = smooth_map(ROW, COLUMN).reshape(-1)
    drawn = draw("stratified", np.zeros((1, 16, 16), int), 32, 20_000, cells=(1, 1))
    means = values[drawn].mean(axis=(1, 2))
    np.testing.assert_allclose(means.var(), values.var() / 32, rtol=0.05)


def test_one_pixel_a_stratum_is_drawn_once():
    drawn = draw("stratified", np.zeros((1, 4, 4), int), 16, 20)
    np.testing.assert_array_equal(np.sort(drawn[:, 0]), np.tile(np.arange(16), (20, 1)))


@pytest.mark.parametrize(
    ("pixels", "number", "in_cells"),
    [
        (240, 256, 240),
        (256, 256, 256),
        (272, 256, 240),
        (273, 256, 256),
        (300, 256, 240),
        (307, 256, 256),
        (5233, 256, 240),
    ],
)
def test_the_authors_draws_fill_cells_then_top_up(pixels, number, in_cells):
    """Table of 3.2: all cells get as many, apart from what is drawn evenly."""
    edge = round(math.sqrt(pixels))
    drawn = draw("folded", np.zeros((1, 1, pixels), int), number, 5_000)[:, 0]
    row, column = np.divmod(np.arange(max(edge**2, pixels)), edge)
    side = edge // 4
    cell = np.minimum(row // side, 3) * 4 + np.minimum(column // side, 3)
    of_slot = np.repeat(np.arange(16), in_cells // 16)
    # The last row of cells may reach beyond the pixels; that is drawn evenly too.
    certain = in_cells if edge**2 <= pixels else in_cells * 3 // 4
    assert (cell[drawn[:, :certain]] == of_slot[:certain]).all()
    expected = (in_cells // 16 / np.bincount(cell[: edge**2]))[cell]
    expected[edge**2 :] = 0
    expected = expected[:pixels] + (number - expected[:pixels].sum()) / pixels
    counts = np.bincount(drawn.reshape(-1), minlength=pixels) / len(drawn)
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected / len(drawn))).all()


def test_the_authors_draws_favour_small_cells():
    counts = np.zeros(300)
    drawn = draw("folded", np.zeros((1, 1, 300), int), 64, 20_000)
    counts = np.bincount(drawn.reshape(-1), minlength=300) / 20_000
    row, column = np.arange(289) // 17, np.arange(289) % 17
    large = (row >= 12).astype(int) + (column >= 12)
    for kind, expected in enumerate((0.240833, 0.203333, 0.173333)):
        np.testing.assert_allclose(
            counts[:289][large == kind].mean(), expected, atol=0.004
        )
    np.testing.assert_allclose(counts[289:].mean(), 0.053333, atol=0.004)
    pairs = draw("folded_antithetic", np.zeros((1, 1, 300), int), 64, 20_000)
    counts = np.bincount(pairs.reshape(-1), minlength=300) / 20_000
    np.testing.assert_allclose(counts[289:].mean(), 0.106667, atol=0.004)


def test_grids_cover_slices_as_evenly_as_can_be():
    cells = sampling.grid_strata((5, 7), (2, 3)).reshape(5, 7)
    assert sorted(set(cells.reshape(-1))) == list(range(6))
    np.testing.assert_array_equal(cells[:, 0], [0, 0, 0, 3, 3])
    np.testing.assert_array_equal(cells[0], [0, 0, 0, 1, 1, 2, 2])


def test_streams_share_their_strata():
    sampler = draw_of("stratified", (1, 2), [(1, 1, 4), (1, 2, 2)])
    assert isinstance(sampler, functools.partial)
    np.testing.assert_array_equal(sampler.keywords["strata"], [0, 0, 1, 1, 0, 1, 0, 1])
    assert sampler.keywords["num_strata"] == 2


@pytest.mark.parametrize(
    ("sampler", "cells", "expected"),
    [
        ("grid", (4, 4), "method.sampler is 'grid'; expected one of: naive"),
        ("naive", (4,), r"method.sampler_cells is \(4,\); expected \(rows, columns\)"),
        ("naive", (4, 0), r"method.sampler_cells is \(4, 0\); expected"),
        (
            "stratified",
            (5, 4),
            "at most 16 cells, as many as draws of a class",
        ),
        ("antithetic", (3, 3), "at most 8 cells, .* in pairs"),
    ],
)
def test_wrong_settings_are_named(sampler, cells, expected):
    with pytest.raises(UserError, match=expected):
        check_sampler(sampler, cells, 16)


def test_a_single_draw_is_no_pair():
    with pytest.raises(UserError, match="is 'antithetic'; expected one without pairs"):
        check_sampler("antithetic", (1, 1), 1)


def test_the_authors_draws_hold_for_very_many_pixels():
    """No product of whole numbers grows beyond 32 bits."""
    drawn = draw("folded", np.zeros((1, 1, 600_000), int), 4096, 1)[0, 0]
    edge = round(math.sqrt(600_000))
    in_first_cell = drawn[: 4080 // 16]
    assert (in_first_cell // edge < edge // 4).all()
    assert (in_first_cell % edge < edge // 4).all()
