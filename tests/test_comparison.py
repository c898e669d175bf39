"""All statistics of a comparison, recomputed from cases.csv in another way."""

import csv
import itertools
import json
import math
import statistics as plain

import numpy as np
import pytest
from scipy import stats
from test_tables import NAMES, PCL, SCRATCH, _run, write_run

from pclseg.cli import table
from pclseg.errors import UserError
from pclseg.reports import comparison, estimates, runs, tables

METRICS = {
    "dice": 1,
    "hd95_mm": -1,
    "asd_mm": -1,
    "nsd": 1,
}  # sign: which way is better
FOLDS = {0: ("p1", "p2", "p3"), 1: ("p4", "p5"), 2: ("p6", "p7", "p8")}
SEEDS = {"scratch": (0,), "pcl": (0, 1), "gcl": (0,)}
TRAINED = {2: 2, 6: 6, 0: 20}


def _rows(patients, rng):
    for patient, frame in itertools.product(patients, ("1", "2")):
        if (patient, frame) == ("p4", "2"):
            continue  # patients differ in their number of cases
        for number, name in enumerate(NAMES, start=1):
            dice, distance = rng.uniform(0.2, 0.9), rng.uniform(1, 9)
            missed = rng.uniform() < 0.15
            yield {
                "case": f"{patient}_{frame}",
                "patient": patient,
                "frame": frame,
                "class": number,
                "class_name": name,
                "dice": 0.0 if missed else dice,
                "hd95_mm": math.nan if missed else distance,
                "asd_mm": math.nan if missed else distance / 3,
                "nsd": 0.0 if missed else dice / 2,
                "predicted_voxels": 0 if missed else 5,
                "labelled_voxels": 5,
                "dice_legacy": 0.0 if missed else dice,
                "asd_legacy_voxel": 0.0 if missed else distance / 4,
            }


def _make_runs(folder):
    rng = np.random.default_rng(5)
    for arm, labelled, fold in itertools.product(SEEDS, TRAINED, FOLDS):
        if (arm, labelled, fold) == ("gcl", 6, 2):
            continue  # an unfinished fold
        for seed in SEEDS[arm]:
            run = runs.Run(
                arm=arm,
                labelled=labelled,
                labelled_patients=[f"t{n}" for n in range(TRAINED[labelled])],
                fold=fold,
                seed=seed,
                rows=list(_rows(FOLDS[fold], rng)),
            )
            path = folder / f"{arm}_m{labelled}_f{fold}_s{seed}"
            yield (arm, labelled, fold, seed), write_run(path, run)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(numbers in the JSON file, {run: {(case, class): {metric: value}}})."""
    folder = tmp_path_factory.mktemp("runs")
    paths = dict(_make_runs(folder))
    out = folder / "out" / "numbers.json"
    arguments = [*map(str, paths.values()), "--baseline=scratch", f"--json={out}"]
    assert table.main(arguments) == 0
    scores = {}
    for key, path in paths.items():
        with open(path / "cases.csv", newline="") as file:
            scores[key] = {
                (r["case"], r["class_name"]): {
                    m: float(r[m]) if r[m] else None for m in METRICS
                }
                for r in csv.DictReader(file)
            }
    # NaN is no JSON.
    return json.loads(out.read_text(), parse_constant=pytest.fail), scores


def mean(values):
    known = [value for value in values if value is not None]
    return plain.fmean(known) if known else None


def cell_cases(cell, metric, name):
    """{case: value} of one run: of one class, or the mean over its classes."""
    cases = dict.fromkeys(case for case, _ in cell)
    return {c: mean(cell[c, n][metric] for n in name or NAMES) for c in cases}


def runs_of(scores, arm, labelled):
    """{fold: {seed: cell}}."""
    found = {}
    for (a, m, fold, seed), cell in scores.items():
        if (a, m) == (arm, labelled):
            found.setdefault(fold, {})[seed] = cell
    return found


def spread(values):
    known = [value for value in values if value is not None]
    return {
        "mean": mean(known),
        "sd": plain.stdev(known) if len(known) > 1 else None,
        "n": len(known),
    }


def naive_interval(weighted, settings):
    """`weighted`: {patient: [(weight, value)]}; one resample after the other."""
    totals = {p: sum(w * v for w, v in of) for p, of in sorted(weighted.items())}
    weights = {p: sum(w for w, _ in of) for p, of in sorted(weighted.items())}
    size = len(totals)
    rng = np.random.default_rng(settings["seed"])
    means = []
    for _ in range(settings["resamples"]):
        times = rng.multinomial(size, [1 / size] * size)
        means.append(times @ [*totals.values()] / (times @ [*weights.values()]))
    outside = (1 - settings["level"]) / 2
    return [np.quantile(means, outside), np.quantile(means, 1 - outside)]


def patient(case):
    return case.split("_")[0]


def parts(group):
    """(class names that count, part) of a group or difference."""
    yield None, group["overall"]
    for name, part in group["classes"].items():
        yield (name,), part


def groups(numbers):
    for metric in METRICS:
        for group in numbers["metrics"][metric]["groups"]:
            yield metric, group


def test_cells_are_means_and_sds_over_cases(compared):
    numbers, scores = compared
    for metric, group in groups(numbers):
        for cell in group["cells"]:
            key = (group["arm"], group["labelled"], cell["fold"], cell["seed"])
            for name, found in parts(cell):
                cases = cell_cases(scores[key], metric, name)
                assert found == pytest.approx(spread(cases.values()))


def test_means_sds_and_patients_of_groups(compared):
    numbers, scores = compared
    for metric, group in groups(numbers):
        folds = runs_of(scores, group["arm"], group["labelled"])
        for name, found in parts(group):
            cells = {
                fold: [cell_cases(c, metric, name) for c in seeds.values()]
                for fold, seeds in folds.items()
            }
            means = {f: [mean(c.values()) for c in of] for f, of in cells.items()}
            expected = spread([mean(of_fold) for of_fold in means.values()])
            assert {k: found[k] for k in expected} == pytest.approx(expected)
            scored = [c for of in cells.values() for cell in of for c in cell.items()]
            known = {patient(case) for case, value in scored if value is not None}
            assert found["patients"] == len(known)
            if group["arm"] == "pcl":  # two seeds: the SD of each fold is |a - b|/√2
                squares = [(a - b) ** 2 / 2 for a, b in means.values()]
                assert found["sd_seeds"] == pytest.approx(math.sqrt(mean(squares)))
            else:
                assert found["sd_seeds"] is None


def test_intervals_of_groups_are_of_the_mean_over_folds(compared):
    numbers, scores = compared
    group = numbers["metrics"]["hd95_mm"]["groups"][1]
    assert (group["arm"], group["labelled"]) == ("pcl", 2)
    weighted = {}
    for seeds in runs_of(scores, "pcl", 2).values():
        for cell in seeds.values():
            cases = cell_cases(cell, "hd95_mm", None)
            known = {c: v for c, v in cases.items() if v is not None}
            for case, value in known.items():
                weight = 1 / len(seeds) / len(known)
                weighted.setdefault(patient(case), []).append((weight, value))
    found = group["overall"]
    assert found["interval"] == pytest.approx(
        naive_interval(weighted, numbers["bootstrap"])
    )
    every = [pair for of_patient in weighted.values() for pair in of_patient]
    centre = sum(w * v for w, v in every) / sum(w for w, _ in every)
    assert centre == pytest.approx(found["mean"])


def naive_differences(scores, metric, arm, labelled, name):
    """{case: mean over its classes and folds of (arm - scratch)}, seeds averaged."""
    ours, theirs = (runs_of(scores, a, labelled) for a in (arm, "scratch"))
    found = {}
    for fold in ours.keys() & theirs.keys():
        for case, of in next(iter(ours[fold].values())):
            if name in (None, (of,)):
                a, b = (
                    mean(cell[case, of][metric] for cell in side[fold].values())
                    for side in (ours, theirs)
                )
                both = a is not None and b is not None
                found.setdefault(case, []).append(a - b if both else None)
    return {case: mean(values) for case, values in found.items()}


def test_differences_and_their_tests(compared):
    numbers, scores = compared
    for metric, sign in METRICS.items():
        differences = numbers["metrics"][metric]["differences"]
        assert len(differences) == 6
        for difference in differences:
            about = (scores, metric, difference["arm"], difference["labelled"])
            for name, found in parts(difference):
                expected = spread(naive_differences(*about, name).values())
                assert {k: found[k] for k in expected} == pytest.approx(expected)
            for fold in difference["folds"]:
                one = {key: c for key, c in scores.items() if key[2] == fold["fold"]}
                expected = naive_differences(one, *about[1:], None)
                assert fold["mean"] == pytest.approx(mean(expected.values()))
            found, of_patients = difference["overall"], {}
            for case, value in naive_differences(*about, None).items():
                if value is not None:
                    of_patients.setdefault(patient(case), []).append((1, value))
            means = [plain.fmean(v for _, v in of) for of in of_patients.values()]
            assert found["patients"] == len(means) == (5, 8)[len(means) > 5]
            assert found["better"] == sum(sign * m > 0 for m in means)
            assert found["worse"] == sum(sign * m < 0 for m in means)
            assert found["equal"] == 0
            assert found["p"] == pytest.approx(stats.wilcoxon(means).pvalue)
            if metric == "dice":
                assert found["interval"] == pytest.approx(
                    naive_interval(of_patients, numbers["bootstrap"])
                )
        p = np.array([d["overall"]["p"] for d in differences])
        for place, difference in enumerate(differences):
            order = [*np.argsort(p, kind="stable")]
            steps = [min(1, (6 - j) * p[order[j]]) for j in range(6)]
            expected = max(steps[: order.index(place) + 1])
            assert difference["overall"]["p_holm"] == pytest.approx(expected)


def test_label_efficiency_is_the_dice_against_the_labels(compared):
    numbers, _ = compared
    dice = numbers["metrics"]["dice"]["groups"]
    by_group = {(g["arm"], g["labelled"]): g["overall"] for g in dice}
    found = numbers["label_efficiency"]
    full = by_group["scratch", 0]["mean"]
    assert found["full"] == full and numbers["label_counts"] == [2, 6, 0]
    for curve in found["curves"]:
        labels, values = [], []
        for point in curve["points"]:
            part = by_group[curve["arm"], point["labelled"]]
            assert part.items() <= point.items()
            assert point["labelled_patients"] == TRAINED[point["labelled"]]
            labels.append(point["labelled_patients"])
            values.append(point["mean"])
        assert [needed["share"] for needed in curve["needed"]] == [0.9, 0.95]
        for needed in curve["needed"]:
            _check_needed(needed, labels, values, needed["share"] * full)


def _check_needed(needed, labels, values, target):
    """On a fine grid: the first place after which the line stays at the target."""
    grid = np.linspace(2, 20, 18_001)
    below = np.flatnonzero(np.interp(grid, labels, values) < target)
    if not len(below):
        assert needed["labels"] == 2 and needed["low"] is None
    elif below[-1] == len(grid) - 1:
        assert needed["labels"] is None
    else:
        assert needed["labels"] == pytest.approx(grid[below[-1] + 1], abs=0.002)
        assert needed["low"] <= needed["labels"] <= needed["high"]


def test_facts_of_groups(compared):
    numbers, scores = compared
    assert numbers["arms"] == ["scratch", "pcl", "gcl"]
    assert numbers["runs"] == len(scores) == 9 + 18 + 8
    assert [(g["labelled"], g["arm"]) for g in numbers["groups"]] == [
        (m, arm) for m in (2, 6, 0) for arm in ("scratch", "pcl", "gcl")
    ]
    for facts in numbers["groups"]:
        of_group = runs_of(scores, facts["arm"], facts["labelled"])
        assert facts["folds"] == sorted(of_group)
        assert facts["seeds"] == list(SEEDS[facts["arm"]])
        cases = {c for seeds in of_group.values() for c, _ in seeds[0]}
        assert (facts["cases"], facts["patients"]) == (
            len(cases),
            len(set(map(patient, cases))),
        )


def test_what_is_missing_or_small_is_said(compared):
    numbers, _ = compared
    said = "\n".join(numbers["warnings"])
    assert "gcl with 6 labelled has no run of fold 2" in said
    # 5 others have 8, so come first
    assert "With 5 differing patients the smallest p" in said
    assert "from 8 patients are too narrow" in said
    assert "SD over 2 folds" in said and "SD over 3 folds" not in said
    assert "One training a fold of scratch with 2 labelled, gcl with 2" in said
    assert "pcl with 2 labelled has other seeds than scratch in fold 0, 1, 2" in said
    assert "gcl with 2 labelled has other seeds" not in said


def test_order_of_the_runs_changes_no_number(compared, tmp_path):
    made = [runs.read_run(path) for _, path in _make_runs(tmp_path)]
    again = comparison.numbers(made[::-1], baseline="scratch")
    for metric in METRICS:
        ours, theirs = (
            {
                (d["arm"], d["labelled"], key): d["overall"][key]
                for d in numbers["metrics"][metric]["differences"]
                for key in ("mean", "sd", "n", "better", "worse", "p", "p_holm")
            }
            for numbers in (again, compared[0])
        )
        assert ours == pytest.approx(theirs)


def test_a_json_file_gives_the_same_tables(compared, tmp_path):
    made = [runs.read_run(path) for _, path in _make_runs(tmp_path)]
    numbers = comparison.numbers(made, baseline="scratch")
    assert list(NAMES) == numbers["classes"] != sorted(NAMES)  # the file sorts its keys
    assert tables.render(compared[0]) == tables.render(numbers)


def test_identical_arms_differ_by_nothing():
    copy = [run | {"arm": "copy"} for run in SCRATCH]
    numbers = comparison.numbers(SCRATCH + copy, baseline="scratch")
    (difference,) = numbers["metrics"]["dice"]["differences"]
    found = difference["overall"]
    assert (found["mean"], found["p"], found["p_holm"]) == (0, 1, 1)
    assert (found["better"], found["worse"], found["equal"]) == (0, 0, 3)
    assert found["interval"] == [0, 0]


def test_equal_scores_of_unequally_many_seeds_differ_by_nothing():
    dice = {f"case{n}": (0.7, 0.7) for n in range(25)}
    seeds = [_run("pcl", 0, dice, seed=seed) for seed in range(3)]
    numbers = comparison.numbers([_run("scratch", 0, dice), *seeds], baseline=None)
    found = numbers["metrics"]["dice"]["differences"][0]["overall"]
    assert (found["better"], found["worse"], found["equal"]) == (0, 0, 25)
    assert (found["p"], found["interval"]) == (1, [0, 0])


def test_cases_of_a_patient_that_cancel_out_are_no_difference():
    of_cases = {"a": 0.1, "b": 0.2, "c": -0.3}
    assert 0 < abs(np.mean([*of_cases.values()])) < 1e-15  # what rounding leaves
    found = estimates.tested(of_cases, dict.fromkeys(of_cases, "p"), "higher")
    assert (found["better"], found["worse"], found["equal"]) == (0, 0, 1)


def test_arms_without_a_shared_fold_have_no_difference():
    apart = [*SCRATCH[:1], *PCL[1:]]
    numbers = comparison.numbers(apart, baseline="scratch")
    (difference,) = numbers["metrics"]["dice"]["differences"]
    found = difference["overall"]
    assert (difference["folds"], found["n"], found["p"]) == ([], 0, None)
    assert any("shares no fold with scratch" in w for w in numbers["warnings"])
    assert tables.render(numbers).tables[1].rows[0][2:] == (
        *("-", "-", "0", "0", "0", "-", "-", "0 of 0"),
    )


def test_a_metric_that_no_case_has_is_none():
    unknown = [
        run | {"rows": [row | {"hd95_mm": math.nan} for row in run["rows"]]}
        for run in SCRATCH + PCL
    ]
    numbers = comparison.numbers(unknown, baseline="scratch")
    distance = numbers["metrics"]["hd95_mm"]
    nothing = {"mean": None, "sd": None, "n": 0, "interval": None, "patients": 0}
    assert nothing.items() <= distance["groups"][0]["overall"].items()
    assert (nothing | {"p": None, "p_holm": None}).items() <= distance["differences"][
        0
    ]["overall"].items()
    assert not any("With 0 " in sentence for sentence in numbers["warnings"])
    assert tables.render(numbers).tables[3].rows[0][2] == "-"


def test_one_training_a_fold_is_said():
    said = comparison.numbers(SCRATCH + PCL, baseline=None)["warnings"]
    assert any(sentence.startswith("One training a fold") for sentence in said)


def _shifted(arm, folds, shift):
    """Runs over the patients of folds, all better by a number of their own."""
    for fold, patients in folds.items():
        yield _run(
            arm,
            fold,
            {f"p{n}": (0.5 + shift * (1 + n / 100), 0.5) for n in patients},
        )


def test_few_patients_are_only_warned_of_where_holm_cannot_reach_significance():
    small, large = {0: range(6)}, {0: range(6), 1: range(6, 30)}
    made = [*_shifted("scratch", large, 0), *_shifted("a", large, 0.1)]
    made += _shifted("b", small, 0.1)
    numbers = comparison.numbers(made, baseline=None)
    tests = [d["overall"] for d in numbers["metrics"]["dice"]["differences"]]
    assert [(t["patients"], t["p_holm"] < 0.05) for t in tests] == [(30, 1), (6, 1)]
    assert not any("smallest p" in sentence for sentence in numbers["warnings"])
    numbers = comparison.numbers([*made, *_shifted("c", small, 0.2)], baseline=None)
    said = "\n".join(numbers["warnings"])
    assert "With 6 differing patients or fewer in 2 comparisons the smallest p" in said


OTHER = {
    "other cases": (
        {"rows": PCL[0]["rows"][:2]},
        r"'pcl', 2 labelled, fold 0, seed 0 and arm 'scratch', 2 .* score other cases:"
        r" 1 are not in both, as 'b'",
    ),
    "other patients": (
        {"rows": [row | {"patient": "x"} for row in PCL[0]["rows"]]},
        "score other cases",
    ),
    "other draw": (
        {"labelled_patients": ["u", "v"]},
        "'pcl', 2 labelled.* other labelled patients than arm 'scratch' there",
    ),
    "other data set": ({"dataset": "acdc"}, "is of dataset 'acdc', but the first run"),
}


@pytest.mark.parametrize(("change", "message"), OTHER.values(), ids=OTHER)
def test_runs_that_are_no_pair_are_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        comparison.numbers([*SCRATCH, PCL[0] | change], baseline=None)
    assert "\n" not in str(error.value)


def test_other_draws_of_other_seeds_are_compared():
    other = [
        run | {"seed": 1, "labelled_patients": ["u", "v"]} for run in SCRATCH + PCL
    ]
    numbers = comparison.numbers(SCRATCH + PCL + other, baseline=None)
    assert numbers["metrics"]["dice"]["differences"][0]["overall"]["n"] == 3
