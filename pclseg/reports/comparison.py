"""All statistics of a comparison of runs, as one object that JSON can hold."""

import math
from collections.abc import Iterator, Sequence

from pclseg.errors import UserError
from pclseg.evaluation import statistics
from pclseg.evaluation.cases import (
    LEGACY,
    case_values,
    exclusions,
    nan_mean,
    spread,
)
from pclseg.named import nearest
from pclseg.reports.estimates import (
    LEVEL,
    RESAMPLES,
    SEED,
    Numbers,
    by_fold,
    case_differences,
    fold_spread,
    over_folds,
    tested,
)
from pclseg.reports.runs import (
    POOLED,
    Run,
    check_alike,
    class_names,
    folds_of,
    label,
    patient_of_case,
    shown,
)

METRICS = {"dice": "higher", "hd95_mm": "lower", "asd_mm": "lower", "nsd": "higher"}
SHARES = (0.9, 0.95)  # of the Dice of full supervision

Group = tuple[str, int]  # arm as shown, labelled patients as asked for
Groups = dict[Group, list[Run]]


def numbers(runs: Sequence[Run], *, baseline: str | None) -> Numbers:
    """Everything that can be said of runs, unrounded; None where there is no number.

    Args:
        runs: any number, in any order; arms appear in the order of their first run.
        baseline: arm that the others are compared with; None for the arm of the first
            run.

    Returns:
        A dict, fit for JSON:

        - "baseline": str; "arms": [str], the baseline first, "[transductive]" added to
          those whose training saw held-out images; "classes": [str];
          "label_counts": [int], ascending, 0 (all training patients) last; "runs": int;
          "tolerance_mm": float or None; "grid": str or None, what cases are scored on;
          "transductive": bool, of any run;
          "bootstrap": {"seed", "resamples", "level"}.
        - "groups": [group], by label count, then arm. group: {"arm", "labelled" (0 is
          all), "labelled_patients" (their number, mean over folds), "folds": [int],
          "seeds": [int], "cases": int, "patients": int, "left_out": {reason: rows}}.
        - "metrics": {"dice", "hd95_mm", "asd_mm", "nsd": {"better": "higher" or
          "lower", "groups": [...], "differences": [...]}}.
          - Its "groups" are in the order of "groups" above: {"arm", "labelled",
            "overall": part, "classes": {name: part}, "cells": [{"fold", "seed",
            "overall": spread, "classes": {name: spread}}]}. "overall" takes the mean
            over the classes of a case first. spread: {"mean", "sd", "n"}, here over
            cases, as in `summary.json`. part: {"mean", "sd", "n" over folds (seeds of
            a fold averaged first), "sd_seeds" (SD over the seeds of a fold, pooled over
            folds; None for one seed), "interval": [low, high] of that mean or None,
            "patients": int with a value}.
          - Its "differences" are of every arm to the baseline at the same label count:
            {"arm", "labelled", "overall": difference, "classes": {name: spread over
            cases}, "folds": [{"fold", and the keys of spread over its cases}] of shared
            folds}. difference: {"mean", "sd", "n" over cases, "interval": [low, high]
            or None, "patients", "better", "worse", "equal": int, "p": two-sided or
            None, "p_holm": over "differences"}.
        - "pooled": {"dice_pooled_best", "dice_pooled_last": [spread over folds]} in the
          order of "groups": the authors' metric. None where no run has it.
        - "legacy": {"dice_legacy", "asd_legacy_voxel": [spread over folds]}, likewise:
          as SSL4MIS and ACTION score, mean over the classes. Nothing is tested by it.
        - "label_efficiency": {"full": Dice of the baseline with all labels or None,
          "shares": [float], "curves": [{"arm", "points": [{"labelled",
          "labelled_patients", and the keys of part, of the Dice}], "needed": [{"share",
          "labels", "low", "high"}] as `statistics.labels_needed`, [] without "full"}]}.
        - "warnings": [str], sentences on what these numbers cannot tell.

    Raises:
        UserError: no run, an unknown baseline, the same cell twice, or runs of other
            data, classes, cases, draws or NSD tolerance.
    """
    if not runs:
        raise UserError("there is no run to compare; give at least one run directory.")
    check_alike(runs)
    arms = _arms(runs, baseline)
    groups = _groups(runs, arms)
    classes = class_names(runs[0])
    metrics = {metric: _metric(metric, groups, arms[0], classes) for metric in METRICS}
    facts = [_facts(group, of_group) for group, of_group in groups.items()]
    efficiency = _label_efficiency(facts, metrics["dice"]["groups"], arms)
    return {
        "baseline": arms[0],
        "arms": arms,
        "classes": classes,
        "label_counts": list(dict.fromkeys(labelled for _, labelled in groups)),
        "runs": len(runs),
        "tolerance_mm": runs[0].get("tolerance_mm"),
        "grid": runs[0].get("grid"),
        "transductive": any(run.get("transductive", False) for run in runs),
        "bootstrap": {"seed": SEED, "resamples": RESAMPLES, "level": LEVEL},
        "groups": facts,
        "metrics": metrics,
        "pooled": _pooled(groups),
        "legacy": _legacy(groups),
        "label_efficiency": efficiency,
        "warnings": _warnings(groups, arms[0], metrics, efficiency),
    }


def _arms(runs: Sequence[Run], baseline: str | None) -> list[str]:
    """Arms as shown, the baseline first."""
    arms = list(dict.fromkeys(map(label, runs)))
    baseline = arms[0] if baseline is None else baseline
    if baseline not in arms:
        raise UserError(
            f"--baseline {baseline!r} is no arm of these runs; they have:"
            f" {', '.join(arms)}.{nearest(baseline, arms)}"
        )
    return sorted(arms, key=lambda arm: arm != baseline)  # stable


def _groups(runs: Sequence[Run], arms: Sequence[str]) -> Groups:
    """By label count, all labels last, then by arm."""
    groups: Groups = {}
    seen = set()
    for run in runs:
        group = (label(run), run["labelled"])
        cell = (*group, run["fold"], run["seed"])
        if cell in seen:
            raise UserError(
                f"two runs are arm {cell[0]!r}, {shown(cell[1])} labelled, fold"
                f" {cell[2]}, seed {cell[3]}; expected one: leave one out, or name"
                " their config.arm differently."
            )
        seen.add(cell)
        groups.setdefault(group, []).append(run)
    order = sorted(groups, key=lambda g: (g[1] or math.inf, arms.index(g[0])))
    return {group: groups[group] for group in order}


def _facts(group: Group, runs: Sequence[Run]) -> Numbers:
    rows = [row for run in runs for row in run["rows"]]
    return {
        "arm": group[0],
        "labelled": group[1],
        "labelled_patients": _patients_labelled(runs),
        "folds": folds_of(runs),
        "seeds": sorted({run["seed"] for run in runs}),
        "cases": len({row["case"] for row in rows}),
        "patients": len({row["patient"] for row in rows}),
        "left_out": exclusions(rows),
    }


def _patients_labelled(runs: Sequence[Run]) -> float:
    """Mean over folds, since with all labels the folds differ by one."""
    folds = by_fold(runs, lambda run: float(len(run["labelled_patients"])))
    return nan_mean([nan_mean(of_seeds) for of_seeds in folds.values()])


def _metric(
    metric: str, groups: Groups, baseline: str, classes: Sequence[str]
) -> Numbers:
    differences = [
        _difference(group, runs, groups[baseline, group[1]], metric, classes)
        for group, runs in groups.items()
        if group[0] != baseline and (baseline, group[1]) in groups
    ]
    tests = [difference["overall"] for difference in differences]
    for test, p in zip(tests, statistics.holm([t["p"] for t in tests]), strict=True):
        test["p_holm"] = p
    return {
        "better": METRICS[metric],
        "groups": [_group(g, runs, metric, classes) for g, runs in groups.items()],
        "differences": differences,
    }


def _group(
    group: Group, runs: Sequence[Run], metric: str, classes: Sequence[str]
) -> Numbers:
    return {
        "arm": group[0],
        "labelled": group[1],
        "overall": over_folds(runs, metric, None),
        "classes": {name: over_folds(runs, metric, name) for name in classes},
        "cells": [_cell(run, metric, classes) for run in runs],
    }


def _cell(run: Run, metric: str, classes: Sequence[str]) -> Numbers:
    def over_cases(class_name: str | None) -> Numbers:
        return spread(list(case_values(run["rows"], metric, class_name).values()))

    return {
        "fold": run["fold"],
        "seed": run["seed"],
        "overall": over_cases(None),
        "classes": {name: over_cases(name) for name in classes},
    }


def _difference(
    group: Group,
    runs: Sequence[Run],
    baseline: Sequence[Run],
    metric: str,
    classes: Sequence[str],
) -> Numbers:
    def of_cases(class_name: str | None) -> dict[str, float]:
        return case_differences(runs, baseline, metric, class_name)

    patient_of = {c: p for run in runs for c, p in patient_of_case(run).items()}
    return {
        "arm": group[0],
        "labelled": group[1],
        "overall": tested(of_cases(None), patient_of, METRICS[metric]),
        "classes": {name: spread(list(of_cases(name).values())) for name in classes},
        "folds": [
            {"fold": fold, **_fold_difference(runs, baseline, metric, fold)}
            for fold in sorted({*folds_of(runs)} & {*folds_of(baseline)})
        ],
    }


def _fold_difference(
    runs: Sequence[Run], baseline: Sequence[Run], metric: str, fold: int
) -> Numbers:
    ours, theirs = ([r for r in of if r["fold"] == fold] for of in (runs, baseline))
    return spread(list(case_differences(ours, theirs, metric, None).values()))


def _pooled(groups: Groups) -> Numbers | None:
    if not any(run.get("pooled") for runs in groups.values() for run in runs):
        return None

    def mean_of_folds(runs: Sequence[Run], key: str) -> Numbers:
        folds = by_fold(runs, lambda run: run.get("pooled", {}).get(key, math.nan))
        return spread([nan_mean(of_seeds) for of_seeds in folds.values()])

    return {
        key: [mean_of_folds(runs, key) for runs in groups.values()] for key in POOLED
    }


def _legacy(groups: Groups) -> Numbers | None:
    found = {
        metric: [fold_spread(runs, metric, None) for runs in groups.values()]
        for metric in LEGACY
    }
    return found if any(part["n"] for of in found.values() for part in of) else None


def _label_efficiency(
    facts: Sequence[Numbers], dice: Sequence[Numbers], arms: Sequence[str]
) -> Numbers:
    points: dict[str, list[Numbers]] = {arm: [] for arm in arms}
    for fact, of_group in zip(facts, dice, strict=True):
        keys = ("labelled", "labelled_patients")
        point = {key: fact[key] for key in keys} | of_group["overall"]
        points[fact["arm"]].append(point)
    supervised = [p["mean"] for p in points[arms[0]] if not p["labelled"]]
    full = supervised[0] if supervised else None
    return {
        "full": full,
        "shares": list(SHARES),
        "curves": [
            {"arm": arm, "points": of_arm, "needed": _needed(of_arm, full)}
            for arm, of_arm in points.items()
        ],
    }


def _needed(points: Sequence[Numbers], full: float | None) -> list[Numbers]:
    if full is None:
        return []
    curve = {
        point["labelled_patients"]: point["mean"]
        for point in points
        if point["mean"] is not None
    }
    return [
        {"share": share, **statistics.labels_needed(curve, full=full, share=share)}
        for share in SHARES
    ]


def _warnings(
    groups: Groups, baseline: str, metrics: Numbers, efficiency: Numbers
) -> list[str]:
    return [
        *_ended_on_a_warning(groups),
        *_other_folds(groups),
        *_without_baseline(groups, baseline),
        *_small_numbers(groups, metrics),
        *_one_training(groups),
        *_other_seeds(groups, baseline),
        *_without_full_supervision(groups, baseline, efficiency),
    ]


def _small_numbers(groups: Groups, metrics: Numbers) -> list[str]:
    """Each sentence once, whichever metric or arm it is about."""
    parts = [g["overall"] for m in metrics.values() for g in m["groups"]]
    tests = [d["overall"] for m in metrics.values() for d in m["differences"]]
    found = [
        statistics.few_patients(n, comparisons=k)
        for n, k in sorted({pair for m in metrics.values() for pair in _powers(m)})
    ]
    every = {part["patients"] for part in [*parts, *tests]}
    found += map(statistics.narrow_interval, sorted(every))
    folds = {len(folds_of(runs)) for runs in groups.values()}
    found += map(statistics.few_folds, sorted(folds))
    return [sentence for sentence in found if sentence]


def _powers(metric: Numbers) -> Iterator[tuple[int, int]]:
    """(patients that differ, how many differences have at most as many)."""
    tests = [d["overall"] for d in metric["differences"]]
    patients = [test["better"] + test["worse"] for test in tests]  # equal ones drop out
    for n in patients:
        yield n, sum(0 < other <= n for other in patients)


def _one_training(groups: Groups) -> Iterator[str]:
    alone = [
        f"{arm} with {shown(labelled)} labelled"
        for (arm, labelled), runs in groups.items()
        if any(len(seeds) == 1 for seeds in _seeds(runs).values())
    ]
    if alone:
        which = "" if len(alone) == len(groups) else f" of {', '.join(alone)}"
        yield (
            f"One training a fold{which}: intervals and p tell what other patients"
            " would change, not what another seed or draw of labels would."
        )


def _other_seeds(groups: Groups, baseline: str) -> Iterator[str]:
    for (arm, labelled), runs in groups.items():
        ours, theirs = _seeds(runs), _seeds(groups.get((baseline, labelled), []))
        shared = sorted(ours.keys() & theirs.keys())
        other = [str(fold) for fold in shared if ours[fold] != theirs[fold]]
        if other:
            yield (
                f"{arm} with {shown(labelled)} labelled has other seeds than {baseline}"
                f" in fold {', '.join(other)}: their difference is one of seeds too."
            )


def _seeds(runs: Sequence[Run]) -> dict[int, list[int]]:
    """{fold: its seeds, ascending}."""
    return {f: sorted(s) for f, s in by_fold(runs, lambda run: run["seed"]).items()}


def _ended_on_a_warning(groups: Groups) -> Iterator[str]:
    """A sentence for every arm and stage of it, with the words of its first run."""
    of_arm: dict[str, list[Run]] = {}
    for (arm, _), runs in groups.items():
        of_arm.setdefault(arm, []).extend(runs)
    for arm, runs in of_arm.items():
        found: dict[str, list[tuple[Run, str]]] = {}
        for run in runs:
            for stage, warning in run.get("warnings", {}).items():
                found.setdefault(stage, []).append((run, warning))
        for stage, warned in found.items():
            first, warning = warned[0]
            yield (
                f"{arm} ended {stage} on a warning in {len(warned)} of {len(runs)}"
                f" runs, first with {shown(first['labelled'])} labelled, fold"
                f" {first['fold']}, seed {first['seed']}: {warning}"
            )


def _other_folds(groups: Groups) -> Iterator[str]:
    """A sentence for every group that lacks a fold of another."""
    every = folds_of(run for runs in groups.values() for run in runs)
    for (arm, labelled), runs in groups.items():
        missing = [str(fold) for fold in every if fold not in folds_of(runs)]
        if missing:
            yield (
                f"{arm} with {shown(labelled)} labelled has no run of fold"
                f" {', '.join(missing)}: its means are over other patients than those"
                " of other lines; differences are over shared folds only."
            )


def _without_baseline(groups: Groups, baseline: str) -> Iterator[str]:
    for arm, labelled in groups:
        runs = groups.get((baseline, labelled))
        if runs is None:
            yield (
                f"{arm} with {shown(labelled)} labelled has no difference: {baseline}"
                " has no run there."
            )
        elif not {*folds_of(runs)} & {*folds_of(groups[arm, labelled])}:
            yield (
                f"{arm} with {shown(labelled)} labelled has no difference: it shares no"
                f" fold with {baseline}."
            )


def _without_full_supervision(
    groups: Groups, baseline: str, efficiency: Numbers
) -> Iterator[str]:
    if efficiency["full"] is None and len({labelled for _, labelled in groups}) > 1:
        yield (
            f"No run of {baseline} has all labels (config.data.split.labelled = 0), so"
            " the labels needed for a share of full supervision are not known."
        )
