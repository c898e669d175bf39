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
ROW, COLUMN = np.mgrid[:16, :16]


def grid(size, cells):
    return sampling.grid_strata((size, size), cells)


def smooth_map(row, column):
    """The similarity map of A2, as a contrast with 512 keys of similarity 0."""
    waves = np.cos(np.pi * (row - 5) / 16) * np.cos(np.pi * (column - 9) / 16)
    s = 0.8 * waves + 0.1 * ((5 * row + 3 * column) % 7) / 6
    return np.log(np.exp(s / 0.5) + 512) - s / 0.5


def test_variances_by_hand():  # A1
    found = sampling.estimator_variances(BY_HAND.reshape(-1), grid(4, (2, 2)), 8)
    np.testing.assert_allclose(found, (0.69482421875, 0.400390625, 0.12109375))


def test_variances_of_unequal_strata():  # A1b
    left = np.setdiff1d(np.arange(16), [0, 1, 4, 15])
    values, strata = BY_HAND.reshape(-1)[left], grid(4, (2, 2))[left]
    found = sampling.estimator_variances(values, strata, 24)
    expected = 0.236111111111, 0.063946759259, 0.027199074074
    np.testing.assert_allclose(found, expected, atol=1e-12)


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
    np.testing.assert_allclose(
        values[[0, 5 * 16 + 9, 255]],
        (6.413383639236, 4.548959180668, 6.440902107271),
        atol=1e-12,
    )
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
    np.testing.assert_allclose(found, expected, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 40))
def test_strata_never_make_it_worse(seed, num_strata, pixels):
    rng = np.random.default_rng(seed)
    values, strata = rng.normal(size=pixels), rng.integers(0, num_strata, pixels)
    found = sampling.estimator_variances(values, strata, pixels)
    assert found.stratified <= found.naive + 1e-12
    assert found.antithetic <= 2 * found.stratified + 1e-12


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


def disc():
    """Class 0 inside the disc of A4, nothing outside; the values; 4 x 4 cells of 6."""
    row, column = np.mgrid[:24, :24]
    inside = (row - 12) ** 2 + (column - 11) ** 2 <= 81
    return np.where(inside, 0, 1)[None], smooth_map(row, column).reshape(-1)


def test_draws_from_an_irregular_class():  # A4
    classes, values = disc()
    inside = values[classes.reshape(-1) == 0]
    assert len(inside) == 253
    np.testing.assert_allclose(inside.mean(), 6.025104429507, atol=1e-12)
    np.testing.assert_allclose(inside.var(), 0.670797053697, atol=1e-12)
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


def test_pairs_by_hand():  # A1
    pairs = (0, 5), (3, 6), (12, 9), (15, 10)
    values = BY_HAND.reshape(-1)
    assert np.mean([values[list(pair)] for pair in pairs]) == 3.375
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
        (300, 256, 240),
        (5233, 256, 240),
    ],
)
def test_the_authors_draws_fill_cells_then_top_up(pixels, number, in_cells):
    """Table of 3.2: all cells get as many, apart from what is drawn evenly."""
    edge = round(math.sqrt(pixels))
    drawn = draw("folded", np.zeros((1, 1, pixels), int), number, 200)[:, 0]
    side = edge // 4

    def cell(index):
        row, column = index // edge, index % edge
        return np.minimum(row // side, 3) * 4 + np.minimum(column // side, 3)

    expected = np.repeat(np.arange(16), in_cells // 16)
    for of_one in drawn:
        np.testing.assert_array_equal(cell(of_one[:in_cells]), expected)


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
