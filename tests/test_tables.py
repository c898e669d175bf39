"""Comparisons of runs against hand-worked numbers; run directories; rendering."""

import json
import math

import numpy as np
import pytest

from pclseg.errors import UserError
from pclseg.evaluation import cases
from pclseg.reports import comparison, estimates, runs, tables

NAMES = ("RV", "LV")


def _row(case, class_name, dice, hd95=1.0, *, predicted=5):
    return {
        "case": case,
        "patient": case,
        "frame": "1",
        "class": NAMES.index(class_name) + 1,
        "class_name": class_name,
        "dice": dice,
        "hd95_mm": hd95,
        "asd_mm": hd95 / 2,
        "nsd": dice,
        "predicted_voxels": predicted,
        "labelled_voxels": 5,
        "dice_legacy": math.nan,
        "asd_legacy_voxel": math.nan,
    }


def _run(arm, fold, dice, *, labelled=2, seed=0, **more):
    """`dice`: {case: (RV, LV)}."""
    rows = [
        _row(case, name, value)
        for case, values in dice.items()
        for name, value in zip(NAMES, values, strict=True)
    ]
    return runs.Run(
        arm=arm,
        labelled=labelled,
        labelled_patients=[f"labelled_{number}" for number in range(labelled)],
        fold=fold,
        seed=seed,
        rows=rows,
        **more,
    )


SCRATCH = [
    _run("scratch", 0, {"a": (0.2, 0.4), "b": (0.4, 0.6)}),
    _run("scratch", 1, {"c": (0.5, 0.7)}),
]
PCL = [
    _run("pcl", 0, {"a": (0.6, 0.4), "b": (0.5, 0.8)}),
    _run("pcl", 1, {"c": (0.4, 0.7)}),
]


def _line(table, arm, labelled="2"):
    (row,) = [r for r in table.rows if r[0] == labelled and r[1] == arm]
    return dict(zip(table.columns, row, strict=True))


def _compare(runs, baseline=None):
    return tables.render(comparison.numbers(runs, baseline=baseline))


def _dice(runs, baseline=None):
    return _compare(runs, baseline).tables[0]


def _difference(*args):
    return cases.spread(list(estimates.case_differences(*args).values()))


def test_mean_and_sd_are_over_folds():
    folds = [(0.6 + 0.5) / 2, 0.4]
    expected = {"mean": np.mean(folds), "sd": np.std(folds, ddof=1), "n": 2}
    assert estimates.fold_spread(PCL, "dice", "RV") == pytest.approx(expected)
    folds = [(0.5 + 0.65) / 2, 0.55]  # classes of a case first
    expected = {"mean": np.mean(folds), "sd": np.std(folds, ddof=1), "n": 2}
    assert estimates.fold_spread(PCL, "dice", None) == pytest.approx(expected)


def test_seeds_of_a_fold_are_averaged_before_the_sd():
    again = [_run("pcl", 0, {"a": (0.8, 0.4), "b": (0.7, 0.8)}, seed=1)]
    folds = [(0.55 + 0.75) / 2, 0.4]
    expected = {"mean": np.mean(folds), "sd": np.std(folds, ddof=1), "n": 2}
    assert estimates.fold_spread(PCL + again, "dice", "RV") == pytest.approx(expected)


def test_difference_is_paired_over_cases():
    differences = [0.4, 0.1, -0.1]
    expected = {"mean": np.mean(differences), "sd": np.std(differences, ddof=1), "n": 3}
    assert _difference(PCL, SCRATCH, "dice", "RV") == pytest.approx(expected)
    differences = [0.2, 0.15, -0.05]
    expected = {"mean": np.mean(differences), "sd": np.std(differences, ddof=1), "n": 3}
    assert _difference(PCL, SCRATCH, "dice", None) == pytest.approx(expected)


def test_difference_uses_only_cases_of_both_sides_and_equal_folds():
    other = [
        _run("pcl", 0, {"a": (0.6, 0.4), "z": (1, 1)}),
        _run("pcl", 2, {"c": (1, 1)}),
    ]
    found = _difference(other, SCRATCH, "dice", "RV")
    assert found == {"mean": pytest.approx(0.4), "sd": None, "n": 1}
    assert _difference(other, SCRATCH[1:], "dice", "RV")["n"] == 0


def test_a_test_case_of_every_fold_counts_once():
    ours = [_run("pcl", fold, {"t": (0.5 + fold / 10, 0)}) for fold in range(3)]
    theirs = [_run("scratch", fold, {"t": (0.2, 0)}) for fold in range(3)]
    found = _difference(ours, theirs, "dice", "RV")
    assert found == {"mean": pytest.approx(0.4), "sd": None, "n": 1}


def test_missing_an_organ_gives_no_better_distance_in_the_paired_mean():
    # Alone, the mean HD95 over classes falls from 6 to 2 as the far LV is missed.
    found = [_row("a", "RV", 0.8, 2.0), _row("a", "LV", 0.5, 10.0)]
    missed = [found[0], _row("a", "LV", 0.0, math.nan, predicted=0)]
    run = {"labelled": 2, "labelled_patients": "xy", "fold": 0, "seed": 0}
    theirs = [runs.Run(arm="scratch", rows=found, **run)]
    ours = [runs.Run(arm="pcl", rows=missed, **run)]
    difference = _difference(ours, theirs, "hd95_mm", None)
    assert difference == {"mean": 0, "sd": None, "n": 1}
    line = _line(_compare(theirs + ours).tables[2], "pcl")
    assert (line["LV"], line["left out"]) == ("-", "1 one empty")


def test_table_shows_arms_differences_and_counts():
    table = _dice(SCRATCH + PCL)
    assert [row[1] for row in table.rows] == ["scratch", "pcl", "pcl - scratch"]
    pcl = _line(table, "pcl")
    assert [pcl[key] for key in tables.FACTS] == ["2", "pcl", "2", "1", "3"]
    assert (pcl["RV"], pcl["left out"]) == ("0.475 ± 0.106", "0")
    assert _line(table, "pcl - scratch")["RV"] == "+0.133 ± 0.252 (n 3)"


def test_one_fold_has_no_sd_and_an_incomplete_metric_says_so():
    assert _line(_dice(SCRATCH[:1]), "scratch")["RV"] == "0.300"
    half = [*SCRATCH[:1], _run("scratch", 1, {"c": (math.nan, 0.7)})]
    assert _line(_dice(half), "scratch")["RV"] == "0.300 (n 1)"


def test_seeds_get_a_column_where_there_are_several():
    again = [_run("pcl", 0, {"a": (0.8, 0.4), "b": (0.7, 0.8)}, seed=1)]
    shown = _compare(SCRATCH + PCL + again)
    line = _line(shown.tables[0], "pcl")
    # Seeds of fold 0 have 0.575 and 0.675, fold 1 has one.
    assert (line["SD over seeds"], line["seeds"]) == ("0.071", "2")
    assert _line(shown.tables[0], "scratch")["SD over seeds"] == "-"
    assert all(len(row) == len(t.columns) for t in shown.tables for row in t.rows)
    assert tables.SEEDS_LEGEND in shown.legend
    assert "SD over seeds" not in _dice(SCRATCH + PCL).columns


def test_differences_have_interval_patients_and_p():
    table = _compare(SCRATCH + PCL, baseline="scratch").tables[1]
    start = "Differences to scratch: Dice per case, mean over the classes"
    assert table.title == f"{start} (higher is better)"
    line = _line(table, "pcl")
    # +0.2, +0.15 and -0.05, of which the least and the greatest mean of a resample.
    assert line["mean"] == "+0.100"
    assert line["95% interval"] == "[-0.050, +0.200]"
    assert [line[key] for key in ("patients", "better", "worse")] == ["3", "2", "1"]
    assert (line["p"], line["p (Holm)"]) == ("0.5000", "0.5000")  # 4 of 8 signs
    assert line["folds better"] == "1 of 2"
    nearer = [row | {"hd95_mm": 0.5} for row in PCL[0]["rows"]]
    distances = _compare([*SCRATCH, PCL[0] | {"rows": nearer}, PCL[1]])
    line = _line(distances.tables[3], "pcl")  # lower is better; fold 1 is equal
    assert [line[key] for key in ("mean", "better", "worse")] == ["-0.33", "2", "0"]
    assert line["folds better"] == "1 of 2"


def test_label_efficiency_has_a_column_per_label_count():
    most = ["x"] * 20
    more = [run | {"labelled": 0, "labelled_patients": most} for run in SCRATCH]
    shown = _compare(SCRATCH + more + PCL)
    (table,) = [t for t in shown.tables if t.title.startswith("Label efficiency")]
    scratch, pcl = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert scratch["M = 2"] == scratch["M = all"]
    assert scratch["M = 2"].startswith("0.500 ± 0.141 [0.3")
    assert pcl["M = all"] == "-"
    assert (scratch["labels for 90%"], pcl["labels for 95%"]) == ("at most 2",) * 2
    alone = _compare(SCRATCH + PCL)
    assert not [t for t in alone.tables if t.title.startswith("Label efficiency")]


def test_labels_needed_without_full_supervision_are_not_shown():
    more = [run | {"labelled": 6} for run in SCRATCH]
    shown = _compare(SCRATCH + more)
    assert shown.tables[-1].rows[0][-2:] == ("-", "-")
    assert any("No run of scratch has all labels" in line for line in shown.legend)


def test_rows_are_sorted_by_label_count_with_the_baseline_first():
    more = [run | {"labelled": m} for m in (0, 10) for run in PCL + SCRATCH]
    comparison = _compare(more + PCL + SCRATCH, baseline="scratch")
    arms = ["scratch", "pcl", "pcl - scratch"]
    assert [row[:2] for row in comparison.tables[0].rows] == [
        (m, a) for m in ("2", "10", "all") for a in arms
    ]
    assert [row[:2] for row in comparison.tables[1].rows] == [
        (m, "pcl") for m in ("2", "10", "all")
    ]


def test_no_difference_where_the_baseline_lacks_the_label_count():
    comparison = _compare(SCRATCH + [run | {"labelled": 6} for run in PCL])
    assert [row[1] for row in comparison.tables[0].rows] == ["scratch", "pcl"]
    assert any("pcl with 6 labelled has no difference" in s for s in comparison.legend)


def test_pooled_dice_of_the_authors_has_its_own_table():
    pooled = [
        {"dice_pooled_best": 0.5 + f, "dice_pooled_last": 0.4} for f in (0.0, 0.1)
    ]
    runs = [r | {"pooled": p} for r, p in zip(SCRATCH, pooled, strict=True)]
    table = _compare(runs + PCL).tables[-1]
    assert "Pooled Dice of the authors" in table.title
    line = _line(table, "scratch")
    assert (line["best epoch"], line["last epoch"]) == (
        "0.550 ± 0.071",
        "0.400 ± 0.000",
    )
    assert _line(table, "pcl")["best epoch"] == "-"


def test_transductive_runs_are_stamped_and_kept_apart():
    stamped = [run | {"transductive": True} for run in PCL]
    comparison = _compare(SCRATCH + PCL + stamped, baseline="scratch")
    arms = {row[1] for row in comparison.tables[0].rows}
    assert {"pcl", "pcl [transductive]"} <= arms
    for text in (tables.as_text(comparison), tables.as_markdown(comparison)):
        assert tables.TRANSDUCTIVE_LEGEND in text
    assert tables.TRANSDUCTIVE_LEGEND not in _compare(PCL).legend


@pytest.mark.parametrize(
    ("runs", "baseline", "message"),
    [
        ([], None, "no run to compare"),
        (SCRATCH, "skratch", "no arm of these runs.*Did you mean 'scratch'"),
        (SCRATCH + SCRATCH[:1], None, "two runs are arm 'scratch', 2 labelled, fold 0"),
        (
            [
                _run("x", 0, {"a": (1, 1)}, tolerance_mm=1.0),
                _run("x", 1, {"b": (1, 1)}, tolerance_mm=2.0),
            ],
            None,
            "tolerances of 1.0 and 2.0 mm",
        ),
        (
            [
                _run("x", 0, {"a": (1, 1)}, grid="the grid of the files"),
                _run("x", 1, {"b": (1, 1)}, grid="a prepared grid of 2 x 2 mm"),
            ],
            None,
            "scored on a prepared grid of 2 x 2 mm and on the grid of the files",
        ),
        (
            [
                *SCRATCH,
                SCRATCH[0] | {"arm": "x", "rows": [_row("a", "RV", 1)]},
            ],
            None,
            "arm 'x', 2 labelled, fold 0, seed 0 has the classes RV, but .* RV, LV",
        ),
    ],
    ids=["none", "baseline", "twice", "tolerance", "grid", "classes"],
)
def test_runs_that_cannot_be_compared_are_named(runs, baseline, message):
    with pytest.raises(UserError, match=message):
        _compare(runs, baseline=baseline)


def test_markdown_is_a_table_even_with_bars_in_names():
    bar = [run | {"arm": "a|b"} for run in SCRATCH]
    comparison = _compare(bar)
    block = tables.as_markdown(comparison).split("\n\n")[1].splitlines()
    assert block[1].startswith("| --- | --- |")
    bars = {line.replace("\\|", "").count("|") for line in block}
    assert bars == {len(comparison.tables[0].columns) + 1}


def test_scores_as_of_ssl4mis_have_their_own_table_and_no_test():
    def scored(runs, dice, asd):
        legacy = {"dice_legacy": dice, "asd_legacy_voxel": asd}
        return [run | {"rows": [row | legacy for row in run["rows"]]} for run in runs]

    runs = [*scored(SCRATCH, 0.5, 1.25), *PCL]  # those of PCL are of earlier files
    numbers = comparison.numbers(runs, baseline="scratch")
    assert set(numbers["metrics"]) == {"dice", "hd95_mm", "asd_mm", "nsd"}
    found = tables.render(numbers)
    table = found.tables[-1]
    assert "SSL4MIS" in table.title
    line = _line(table, "scratch")
    assert (line["legacy Dice"], line["legacy ASD"]) == ("0.500 ± 0.000", "1.25 ± 0.00")
    assert _line(table, "pcl")["legacy Dice"] == "-"
    assert tables.LEGACY_LEGEND in found.legend
    without = _compare(SCRATCH + PCL)
    assert all("SSL4MIS" not in table.title for table in without.tables)
    assert tables.LEGACY_LEGEND not in without.legend


def test_text_columns_are_aligned():
    text = tables.as_text(_compare(SCRATCH + PCL))
    title, head, rule, *rows = text.split("\n\n")[0].splitlines()
    assert title == "Dice per case (higher is better)"
    assert set(rule) == {"-"} and len(rule) >= max(map(len, [head, *rows]))
    column = head.index("RV")
    assert all(row[column - 1] == " " and row[column] in "0+" for row in rows)


def write_run(folder, run, *, init_from="pretrain", transductive=False):
    """A run directory as a finished training leaves it."""
    folder.mkdir(parents=True)
    split = {"labelled": run["labelled"], "fold": run["fold"]}
    config = {
        "arm": run["arm"],
        "seed": run["seed"],
        "data": {"name": "acdc", "split": split, "transductive": transductive},
        "stages": ["finetune"],
        "finetune": {"init_from": init_from, "data": {}},
        "evaluate": {"tolerance_mm": 2.0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    pooled = {"mean": 0.25, "classes": {"RV": 0.2, "LV": 0.3}}
    summary = {
        "dice_pooled_best": pooled,
        "dice_pooled_last": None,
        "labelled_patients": list(run["labelled_patients"]),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    cases.write_cases(folder / "cases.csv", run["rows"])
    return folder


def as_before_the_legacy_scores(workdir):
    """Leaves a `cases.csv` as an earlier version wrote it."""
    path = workdir / "cases.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    assert tuple(lines[0][-2:]) == cases.LEGACY
    path.write_text("".join(",".join(line[:-2]) + "\n" for line in lines))
    return workdir


def test_run_directory_is_read_back(tmp_path):
    run = runs.read_run(write_run(tmp_path / "run", SCRATCH[1]))
    assert repr({key: run[key] for key in SCRATCH[1]}) == repr(SCRATCH[1])  # NaN
    assert run["pooled"] == {"dice_pooled_best": 0.25}
    assert run["tolerance_mm"] == 2
    assert not run["transductive"]


@pytest.mark.parametrize(
    ("evaluate", "spacing", "grid"),
    [
        ({"grid": "file"}, [2.5, 2.5], "the grid of the files"),
        ({"grid": "prepared"}, [2.5, 1.0], "a prepared grid of 2.5 x 1 mm"),
        ({}, [2.5, 2.5], "a prepared grid of 2.5 x 2.5 mm"),  # of an earlier version
        ({"grid": "prepared"}, [], "the grid of the files"),
        ({"grid": "prepared"}, [0.0, 0.0], "the grid of the files"),
    ],
)
def test_the_grid_that_was_scored_on_is_read_and_told(
    tmp_path, evaluate, spacing, grid
):
    folder = write_run(tmp_path / "run", SCRATCH[1])
    config = json.loads((folder / "config.json").read_text())
    config["evaluate"] |= evaluate
    config["data"]["prepare"] = {"spacing": spacing}
    (folder / "config.json").write_text(json.dumps(config))
    run = runs.read_run(folder)
    assert run["grid"] == grid
    assert f"Scored on {grid}." in _compare([run]).legend


def test_a_stage_that_ended_on_a_warning_is_told(tmp_path):
    """The log of a run is long, and its scores are read without it."""
    folders = [write_run(tmp_path / f"{i}", run) for i, run in enumerate(PCL)]
    config = json.loads((folders[0] / "config.json").read_text())
    config["stages"] = ["pretrain", "finetune"]
    config["pretrain"] = {"init_from": "", "data": {"subset": "train"}}
    for folder in folders:
        fold = json.loads((folder / "config.json").read_text())["data"]["split"]["fold"]
        config["data"]["split"]["fold"] = fold
        (folder / "config.json").write_text(json.dumps(config))
        for stage, warning in (("pretrain", "it collapsed."), ("finetune", None)):
            (folder / stage).mkdir()
            done = {"steps": 7, "warning": warning}
            (folder / stage / "done.json").write_text(json.dumps(done))
    (folders[1] / "pretrain" / "done.json").write_text('{"steps": 7}')  # as before
    first, second = map(runs.read_run, folders)
    assert first["warnings"] == {"pretrain": "it collapsed."}
    assert second["warnings"] == {}
    legend = _compare([first, second]).legend
    said = [line for line in legend if "collapsed" in line]
    assert said == [
        "Mind: pcl ended pretrain on a warning in 1 of 2 runs, first with 2 labelled,"
        " fold 0, seed 0: it collapsed."
    ]
    for damaged in ("[]", "3", '{"steps": 7, "warning": ["a"]}', '{"warning": null}'):
        (folders[0] / "finetune" / "done.json").write_text(damaged)
        with pytest.raises(UserError, match=r"done\.json (has|lacks|is|holds)"):
            runs.read_run(folders[0])


def test_only_a_run_with_pretraining_can_be_transductive(tmp_path):
    pcl = write_run(tmp_path / "pcl", PCL[0], transductive=True)
    scratch = write_run(tmp_path / "s", SCRATCH[0], transductive=True, init_from="")
    assert runs.read_run(pcl)["transductive"]
    assert not runs.read_run(scratch)["transductive"]


def test_a_run_from_scratch_that_learns_from_unlabelled_images_is_transductive(
    tmp_path,
):
    path = write_run(tmp_path / "tcsm", SCRATCH[0], transductive=True, init_from="")
    config = json.loads((path / "config.json").read_text())
    for size, expected in ((0, False), (4, True)):
        config["finetune"]["data"] = {"unlabelled_batch_size": size}
        (path / "config.json").write_text(json.dumps(config))
        assert runs.read_run(path)["transductive"] is expected


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "is no run directory: it has no config.json"),
        ("summary.json", "is not finished: it has no summary.json"),
        ("cases.csv", "is not finished: it has no cases.csv"),
    ],
)
def test_unfinished_run_is_named(tmp_path, missing, message):
    folder = write_run(tmp_path / "run", SCRATCH[0])
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"run {message}"):
        runs.read_run(folder)


def test_empty_folder_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        runs.read_run(tmp_path)


def test_run_that_scores_a_patient_it_learned_from_is_refused(tmp_path):
    seen = SCRATCH[0] | {"labelled_patients": ["x", "b"]}
    with pytest.raises(UserError, match="patient 'b' is among the cases .* labelled_"):
        runs.read_run(write_run(tmp_path / "run", seen))


def test_an_arm_that_looks_like_a_transductive_one_is_refused(tmp_path):
    named = SCRATCH[0] | {"arm": "pcl [transductive]"}
    with pytest.raises(UserError, match="has the arm 'pcl .transductive.'; expected"):
        runs.read_run(write_run(tmp_path / "run", named))


def test_run_without_cases_and_foreign_config_are_named(tmp_path):
    empty = write_run(tmp_path / "empty", SCRATCH[0] | {"rows": []})
    with pytest.raises(UserError, match="cases.csv holds no case"):
        runs.read_run(empty)
    foreign = write_run(tmp_path / "foreign", SCRATCH[0])
    (foreign / "config.json").write_text('{"data": {}}')
    with pytest.raises(UserError, match="foreign/config.json lacks 'arm'"):
        runs.read_run(foreign)
