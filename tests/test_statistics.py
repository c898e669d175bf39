"""Intervals, tests and labels needed, against naive twins, scipy and worked numbers."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pclseg.evaluation import statistics

pytestmark = pytest.mark.filterwarnings("error")
NAN = math.nan
WEIGHTS = [1.0, 2.0, 0.5, 1.0, 3.0, 1.0]
VALUES = [0.2, 0.4, 0.9, 0.1, NAN, 0.7]
PATIENTS = ["p2", "p1", "p2", "p3", "p3", "p10"]


def interval(values, patients, *, weights=None, seed=0, resamples=2000, level=0.95):
    return statistics.bootstrap_interval(
        values, patients, weights=weights, seed=seed, resamples=resamples, level=level
    )


def one_each(values):
    return values, [str(number) for number in range(len(values))]


def naive_interval(values, patients, weights, *, seed, resamples, level):
    """Draws patient by patient, with all of their values, in a loop."""
    names = sorted({p for p, v in zip(patients, values, strict=True) if v == v})
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), [1 / len(names)] * len(names), size=resamples)
    means = []
    for count in counts:
        total = weight = 0.0
        for name, times in zip(names, count, strict=True):
            for v, p, w in zip(values, patients, weights, strict=True):
                if p == name and v == v:
                    total, weight = total + times * w * v, weight + times * w
        means.append(total / weight)
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_bootstrap_equals_a_loop_over_the_same_draws(weights):
    options = {"seed": 3, "resamples": 200, "level": 0.9}
    found = interval(VALUES, PATIENTS, weights=weights, **options)
    naive = naive_interval(VALUES, PATIENTS, weights or [1.0] * 6, **options)
    assert found == pytest.approx(naive, rel=1e-12)


def test_bootstrap_of_one_value_a_patient_equals_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=30)
    found = interval(*one_each(values), resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    # The SD of a 2.5 % quantile of 20,000 normal means is 0.019 of their SD.
    tolerance = 4 * 0.019 * values.std() / math.sqrt(30) * math.sqrt(2)
    assert found == pytest.approx(theirs, abs=tolerance)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    trials, n, level = 400, 40, 0.9
    hits = 0
    for _ in range(trials):
        low, high = interval(*one_each(rng.normal(5, 2, n)), level=level, resamples=500)
        hits += low <= 5 <= high
    # The percentile interval is that of a normal with SD s * sqrt((n - 1) / n).
    z = stats.norm.ppf((1 + level) / 2) * math.sqrt((n - 1) / n)
    expected = 2 * stats.t.cdf(z, n - 1) - 1
    assert hits / trials == pytest.approx(expected, abs=4 * math.sqrt(0.1 * 0.9 / 400))


def test_copies_of_a_patients_value_narrow_nothing():
    values, patients = one_each([0.1, 0.4, 0.35, 0.8])
    assert interval(values * 5, patients * 5) == pytest.approx(
        interval(values, patients), rel=1e-12
    )


def test_bootstrap_depends_on_the_seed_but_not_on_the_order():
    forward = interval(VALUES, PATIENTS)
    assert forward == pytest.approx(interval(VALUES[::-1], PATIENTS[::-1]), rel=1e-12)
    rng = np.random.default_rng(0)
    many = one_each(rng.normal(size=25))
    assert interval(*many) == interval(*many) != interval(*many, seed=1)


def test_bootstrap_shifts_and_scales_with_the_values():
    values = np.array(VALUES)
    low, high = interval(VALUES, PATIENTS)
    assert interval(3 - 2 * values, PATIENTS) == pytest.approx(
        (3 - 2 * high, 3 - 2 * low)
    )


def test_fewer_than_two_patients_have_no_interval():
    assert interval([0.1, 0.2, NAN], ["a", "a", "b"]) is None
    assert interval([], []) is None


def naive_p(differences):
    """All 2^n signs of the midranks of |d|, zeros dropped: the exact two-sided p."""
    found = [d for d in differences if d]
    ranks = stats.rankdata(np.abs(found))
    middle = ranks.sum() / 2
    distance = abs(ranks[np.array(found) > 0].sum() - middle)
    signs = itertools.product((0, 1), repeat=len(found))
    extreme = [abs(np.dot(ranks, s) - middle) >= distance - 1e-9 for s in signs]
    return np.mean(extreme)


@pytest.mark.parametrize(
    "differences",
    [
        [0.3],
        [0.1, 0.2],
        [1, 2, 3, 4, 5, 6],
        [0.5, -0.2, 0.9, 1.4, -0.1, 0.3, 0.8],
        [0.5, 0, -0.2, 0, 0.9],
        [0.5, -0.5, 0.5, 1, 1, 0],
    ],
    ids=["one", "two", "all better", "mixed", "zeros", "ties and zeros"],
)
def test_wilcoxon_equals_all_signs(differences):
    found = statistics.paired_wilcoxon(differences)
    assert found == pytest.approx(naive_p(differences), rel=1e-12)
    assert statistics.paired_wilcoxon([-d for d in differences]) == found
    assert statistics.paired_wilcoxon([*differences, NAN]) == found


def test_zeros_take_no_part_in_wilcoxon():
    differences = list(np.random.default_rng(3).normal(0.3, 1, 20))
    exact = stats.wilcoxon(differences, method="exact").pvalue
    assert statistics.paired_wilcoxon([0.0, *differences, 0.0]) == exact


def test_wilcoxon_of_his_table():
    # Hollander and Wolfe 1973, 3.1: nine patients' depression factors, T+ = 5.
    first = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    second = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    differences = np.subtract(second, first)
    assert statistics.paired_wilcoxon(differences) == pytest.approx(0.0390625)


def test_large_samples_use_the_normal_approximation():
    differences = np.random.default_rng(2).normal(0.2, 1, 60)
    exact = stats.wilcoxon(differences, method="exact").pvalue
    assert statistics.paired_wilcoxon(differences) == pytest.approx(exact, abs=0.01)


def test_ties_of_many_patients_use_the_corrected_normal_approximation():
    differences = np.round(np.random.default_rng(2).normal(0.2, 1, 30), 1)
    ranks = stats.rankdata(np.abs(differences))
    assert (differences != 0).all() and len(np.unique(ranks)) < 30
    # Under the null each rank counts or not: mean sum / 2, variance sum of squares / 4.
    z = ranks[differences > 0].sum() - ranks.sum() / 2
    z /= math.sqrt((ranks**2).sum() / 4)
    expected = 2 * stats.norm.sf(abs(z))
    assert statistics.paired_wilcoxon(differences) == pytest.approx(expected)


def test_wilcoxon_without_any_difference():
    assert statistics.paired_wilcoxon([0.0, 0.0, NAN]) == 1
    assert statistics.paired_wilcoxon([NAN]) is None
    assert statistics.paired_wilcoxon([]) is None


def test_holm_worked_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04 -> 0.06.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )


def test_holm_passes_none_through_and_stays_below_one():
    assert statistics.holm([0.6, None, 0.02]) == pytest.approx([0.6, None, 0.04])
    assert statistics.holm([0.9, 0.8]) == [1, 1]
    assert statistics.holm([None]) == [None] and statistics.holm([]) == []
    assert statistics.holm([0.2]) == [0.2]


def test_holm_keeps_the_order_of_the_p_values():
    p = np.random.default_rng(0).uniform(size=20)
    adjusted = np.array(statistics.holm(list(p)))
    assert (np.diff(adjusted[p.argsort()]) >= 0).all() and (adjusted >= p).all()


@pytest.mark.parametrize(("patients", "comparisons"), [(1, 1), (5, 1), (6, 2), (7, 4)])
def test_few_patients_are_named_with_the_smallest_p(patients, comparisons):
    least = statistics.paired_wilcoxon(list(range(1, patients + 1)))
    least = statistics.holm([least] * comparisons)[0]
    sentence = statistics.few_patients(patients, comparisons=comparisons)
    assert least > 0.05 and f"is {least:.3g}:" in sentence


def test_enough_patients_and_folds_need_no_sentence():
    assert statistics.few_patients(6, comparisons=1) is None
    assert statistics.few_patients(8, comparisons=4) is None
    assert statistics.narrow_interval(20) is None
    assert statistics.narrow_interval(1) is None  # it has no interval
    assert "from 19 patients are too narrow" in statistics.narrow_interval(19)
    assert statistics.few_folds(3) is None
    assert "no SD" in statistics.few_folds(1)
    assert "2 folds is very uncertain" in statistics.few_folds(2)


CURVE = {2: 0.4, 6: 0.6, 10: 0.7, 80: 0.9}


@pytest.mark.parametrize(
    ("curve", "share", "expected"),
    [
        (CURVE, 2 / 3, (6, 2, 6)),
        (CURVE, 0.5 / 0.9, (4, 2, 6)),
        (CURVE, 0.8 / 0.9, (45, 10, 80)),
        (CURVE, 1.0, (80, 10, 80)),
        (CURVE, 0.4, (2, None, 2)),
        (CURVE, 1.1, (None, None, None)),
        ({}, 0.9, (None, None, None)),
        ({2: NAN}, 0.9, (None, None, None)),
        # 0.72 is reached at 2, lost at 6, and reached for good between 6 and 10.
        ({10: 0.82, 2: 0.8, 6: 0.62}, 0.8, (8, 6, 10)),
        ({2: 0.8, 6: 0.6}, 0.8, (None, None, None)),
        ({2: 0.6, 6: NAN, 10: 0.8}, 7 / 9, (6, 2, 10)),
    ],
)
def test_labels_needed(curve, share, expected):
    found = statistics.labels_needed(curve, full=0.9, share=share)
    expected = dict(zip(("labels", "low", "high"), expected, strict=True))
    assert found == pytest.approx(expected)
