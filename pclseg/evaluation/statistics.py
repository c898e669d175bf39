"""What a set of patients can tell: intervals, a paired test, labels needed.

The unit of all of it is the patient. Volumes of one patient, and scores of one volume
under several seeds or folds, are alike, so they are no independent observations.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

MOST_FOR_EXACT = 50  # patients; scipy's exact distribution is fast up to there
MOST_FOR_SIGNS = 13  # patients with ties; all 2^13 signs are tried
FEWEST_FOR_INTERVAL = 20  # patients; of fewer, 95 % intervals hold the mean in < 93 %
FEWEST_FOR_SD = 3  # folds; of two values an SD is a difference


def bootstrap_interval(
    values: Sequence[float],
    patients: Sequence[str],
    *,
    weights: Sequence[float] | None,
    seed: int,
    resamples: int,
    level: float,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a mean, patients resampled.

    A patient that is drawn brings all of its values: the cluster bootstrap of Davison
    and Hinkley 1997, 3.8. The mean of a resample is sum(w * v) / sum(w).

    Args:
        values: [N]; NaN takes no part.
        patients: [N], whose value each is.
        weights: [N], positive; None for equal ones.
        seed: of the draws, which depend on nothing but it and the number of patients.
        resamples: how many means are made.
        level: share of them inside, in (0, 1), e.g. 0.95.

    Returns:
        (low, high), or None where fewer than two patients have a value.
    """
    value = np.asarray(values, np.float64)
    weight = np.ones_like(value) if weights is None else np.asarray(weights, np.float64)
    known = ~np.isnan(value)
    names, owner = np.unique(np.asarray(patients)[known], return_inverse=True)
    if len(names) < 2:
        return None
    value, weight = value[known], weight[known]
    draws = _draws(len(names), seed, resamples)
    means = (draws @ np.bincount(owner, weight * value)) / (
        draws @ np.bincount(owner, weight)
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@functools.lru_cache(maxsize=4)  # a comparison asks hundreds of times for the same
def _draws(patients: int, seed: int, resamples: int) -> np.ndarray:
    """[resamples, patients] float64: how often a resample has each patient."""
    equal = np.full(patients, 1 / patients)
    rng = np.random.default_rng(seed)
    return rng.multinomial(patients, equal, size=resamples).astype(np.float64)


def paired_wilcoxon(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test that differences lie around 0.

    Differences of 0 are dropped, as Wilcoxon 1945 does (`zero_method="wilcox"`): they
    speak for neither side. The distribution is exact where no two differences are
    equally large, for up to 50 of them; with ties that table does not hold, so for up
    to 13 all signs are tried, which is exact too; else it is the normal approximation
    with scipy's correction for ties, which is good at such numbers.

    Args:
        differences: one per patient; NaN takes no part.

    Returns:
        p in (0, 1]; 1 where all differences are 0, None where there is none.
    """
    found = np.asarray(differences, np.float64)
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    found = found[found != 0]
    if not len(found):
        return 1.0
    ties = len(np.unique(np.abs(found))) < len(found)
    if ties and len(found) <= MOST_FOR_SIGNS:
        method = stats.PermutationMethod(n_resamples=2 ** len(found))
    elif ties or len(found) > MOST_FOR_EXACT:
        method = "auto"  # is the approximation here; scipy 1.15 changed its name
    else:
        method = "exact"
    return float(stats.wilcoxon(found, zero_method="wilcox", method=method).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusts p for as many tests as there are p (Holm 1979, step-down).

    Of the k-th smallest of m: the greatest of min(1, (m - j + 1) * p_j) over j <= k.
    None is no test: it stays None and does not count in m.
    """
    tests = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    greatest = 0.0
    for rank, (p, place) in enumerate(tests):
        greatest = max(greatest, min(1.0, (len(tests) - rank) * p))
        adjusted[place] = greatest
    return adjusted


def few_patients(patients: int, *, comparisons: int) -> str | None:
    """A sentence where a paired test of so many patients cannot reach 0.05.

    The least two-sided p is 2 / 2^n, reached where all n differ to one side. Holm
    multiplies it by the number of comparisons whose p is not smaller: those of more
    patients may come first. Of nobody there is no test.

    Args:
        patients: n, of those whose values differ.
        comparisons: those, of all that are adjusted together, with 1 to n patients.
    """
    least = min(1.0, comparisons * 2 / 2**patients)
    if not patients or least <= 0.05:
        return None
    among = f" or fewer in {comparisons} comparisons" if comparisons > 1 else ""
    return (
        f"With {patients} differing patient{'s' * (patients != 1)}{among} the smallest"
        f" p that Wilcoxon's test can give is {least:.3g}: no difference, however"
        " large, reaches 0.05."
    )


def narrow_interval(patients: int) -> str | None:
    """A sentence where the bootstrap interval of so many patients is too narrow."""
    if not 1 < patients < FEWEST_FOR_INTERVAL:
        return None
    return (
        f"Bootstrap intervals from {patients} patients are too narrow; expect"
        f" {FEWEST_FOR_INTERVAL} or more."
    )


def few_folds(folds: int) -> str | None:
    """A sentence where an SD over so many folds says little."""
    if folds >= FEWEST_FOR_SD:
        return None
    if folds == 1:
        return "With 1 fold there is no SD over folds: how results vary is not known."
    return (
        f"An SD over {folds} folds is very uncertain; expect {FEWEST_FOR_SD} or more."
    )


def labels_needed(
    curve: Mapping[float, float], *, full: float, share: float
) -> dict[str, float | None]:
    """How many labelled patients it takes to stay at `share` of full supervision.

    It is the number from which on the curve, straight between neighbouring measured
    numbers, does not fall below share * full again. A first crossing alone would
    reward one lucky small number whose successor is worse.

    Args:
        curve: {labelled patients: mean Dice}; NaN takes no part.
        full: Dice of full supervision.
        share: of `full`, e.g. 0.9.

    Returns:
        {"labels", "low", "high"}: the number lies between the measured `low` and
        `high`. All None where the largest measured number stays below (or nothing is
        measured). `low` alone is None where even the smallest reaches it: then "at most
        `labels`".
    """
    target = share * full
    points = sorted((m, dice) for m, dice in curve.items() if not np.isnan(dice))
    if not points or points[-1][1] < target:
        return {"labels": None, "low": None, "high": None}
    for (m0, dice0), (m1, dice1) in reversed(list(itertools.pairwise(points))):
        if dice0 < target:
            labels = m0 + (m1 - m0) * (target - dice0) / (dice1 - dice0)
            return {"labels": float(labels), "low": m0, "high": m1}
    return {"labels": points[0][0], "low": None, "high": points[0][0]}
