"""Estimates of one arm at one label count, and of its difference to another."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from pclseg.evaluation import statistics
from pclseg.evaluation.cases import case_values, nan_mean, spread
from pclseg.reports.runs import Run, patient_of_case

SEED, RESAMPLES, LEVEL = 0, 10_000, 0.95  # of the bootstrap
DIGITS = 12  # of a difference; what is beyond is rounding of the means

T = TypeVar("T")
Numbers = dict[str, Any]


def fold_spread(
    runs: Sequence[Run], metric: str, class_name: str | None
) -> dict[str, Any]:
    """{"mean", "sd", "n"} over folds of the mean over cases.

    Args:
        runs: of one arm and label count; those of one fold (other seeds) are averaged.
        metric: a key of METRICS, or one of LEGACY.
        class_name: None for the mean over the classes of each case.
    """
    folds = by_fold(runs, lambda run: _cell_mean(run, metric, class_name))
    return spread([nan_mean(of_seeds) for of_seeds in folds.values()])


def seed_sd(runs: Sequence[Run], metric: str, class_name: str | None) -> float | None:
    """Sample SD over the seeds of a fold, pooled over folds; None for one seed.

    Arguments as in `fold_spread`.
    """
    folds = by_fold(runs, lambda run: _cell_mean(run, metric, class_name))
    squares, freedom = 0.0, 0
    for of_seeds in folds.values():
        known = [value for value in of_seeds if not math.isnan(value)]
        if len(known) > 1:
            squares += float(np.var(known)) * len(known)
            freedom += len(known) - 1
    return math.sqrt(squares / freedom) if freedom else None


def fold_interval(
    runs: Sequence[Run], metric: str, class_name: str | None
) -> list[float] | None:
    """Bootstrap interval over patients of the mean of `fold_spread`.

    A case weighs 1 / (cases of its run * runs of its fold), so that the mean is that
    over folds of the mean over cases, also where folds differ in size.
    """
    scored = by_fold(runs, lambda run: _known(run, metric, class_name))
    values, patients, weights = [], [], []
    for of_seeds in scored.values():
        cells = [cell for cell in of_seeds if cell]
        for cell in cells:
            values += cell.values()
            patients += [patient for patient, _ in cell]
            weights += [1 / (len(cells) * len(cell))] * len(cell)
    return _interval(values, patients, weights)


def case_differences(
    runs: Sequence[Run], baseline: Sequence[Run], metric: str, class_name: str | None
) -> dict[str, float]:
    """{case: runs - baseline}, in the order of the cases' names.

    Compared are equal case, class and fold, seeds averaged. A case counts once, with
    the mean of its differences over classes and folds: a class that one side misses, so
    that it has no distance, is left out on both. Cases without any are NaN.
    """
    ours, theirs = (_averaged(r, metric, class_name) for r in (runs, baseline))
    differences: dict[str, list[float]] = {}
    for key in sorted(ours.keys() & theirs.keys()):
        differences.setdefault(key[0], []).append(ours[key] - theirs[key])
    return {case: _rounded(nan_mean(of)) for case, of in differences.items()}


def over_folds(runs: Sequence[Run], metric: str, class_name: str | None) -> Numbers:
    """All that `comparison.numbers` calls a part; arguments as in `fold_spread`."""
    known = {key for run in runs for key in _known(run, metric, class_name)}
    return {
        **fold_spread(runs, metric, class_name),
        "sd_seeds": seed_sd(runs, metric, class_name),
        "interval": fold_interval(runs, metric, class_name),
        "patients": len({patient for patient, _ in known}),
    }


def tested(
    differences: dict[str, float], patient_of: dict[str, str], better: str
) -> Numbers:
    """All that `comparison.numbers` calls a difference, but for Holm's p.

    Args:
        differences: {case: difference}, NaN where there is none.
        patient_of: {case: patient}.
        better: "higher" or "lower".
    """
    known = {case: d for case, d in differences.items() if not math.isnan(d)}
    patients: dict[str, list[float]] = {}
    for case, difference in known.items():
        patients.setdefault(patient_of[case], []).append(difference)
    means = [_rounded(nan_mean(of_patient)) for of_patient in patients.values()]
    higher, lower = sum(m > 0 for m in means), sum(m < 0 for m in means)
    owners = [patient_of[case] for case in known]
    return {
        **spread(list(known.values())),
        "interval": _interval(list(known.values()), owners, None),
        "patients": len(means),
        "better": higher if better == "higher" else lower,
        "worse": lower if better == "higher" else higher,
        "equal": len(means) - higher - lower,
        "p": statistics.paired_wilcoxon(means),
    }


def by_fold(runs: Iterable[Run], value: Callable[[Run], T]) -> dict[int, list[T]]:
    """{fold: the value of every run in it}."""
    folds: dict[int, list[T]] = {}
    for run in runs:
        folds.setdefault(run["fold"], []).append(value(run))
    return folds


def _rounded(difference: float) -> float:
    """To DIGITS decimals.

    Equal scores of unequally many seeds have means that may differ in the last bit. A
    test of ranks takes that for a difference like any other.
    """
    return round(difference, DIGITS) + 0.0  # + 0.0: no -0.0


def _cell_mean(run: Run, metric: str, class_name: str | None) -> float:
    return nan_mean(case_values(run["rows"], metric, class_name).values())


def _known(
    run: Run, metric: str, class_name: str | None
) -> dict[tuple[str, str], float]:
    """{(patient, case): value} of the cases that have one."""
    patient = patient_of_case(run)
    values = case_values(run["rows"], metric, class_name)
    return {(patient[c], c): v for c, v in values.items() if not math.isnan(v)}


def _interval(
    values: Sequence[float], patients: Sequence[str], weights: Sequence[float] | None
) -> list[float] | None:
    found = statistics.bootstrap_interval(
        values, patients, weights=weights, seed=SEED, resamples=RESAMPLES, level=LEVEL
    )
    return None if found is None else list(found)


def _averaged(
    runs: Sequence[Run], metric: str, class_name: str | None
) -> dict[tuple[str, str, int], float]:
    """{(case, class, fold): mean over seeds}."""
    values: dict[tuple[str, str, int], list[float]] = {}
    for run in runs:
        for row in run["rows"]:
            if class_name in (None, row["class_name"]):
                key = (row["case"], row["class_name"], run["fold"])
                values.setdefault(key, []).append(row[metric])
    return {key: nan_mean(of_seeds) for key, of_seeds in values.items()}
