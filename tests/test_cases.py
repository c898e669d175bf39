"""Rows per case and class: edges, the CSV file, the summary."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from pclseg.errors import UserError
from pclseg.evaluation import cases
from pclseg.evaluation.surface import surface_metrics

NAMES = ("background", "RV", "LV")


def _info(name="a", spacing_known=True):
    return SimpleNamespace(
        name=name,
        patient="patient,1",
        frame="12",
        spacing=(5.0, 1.25, 1.25),
        spacing_known=spacing_known,
    )


def _volume(**boxes):
    label = np.zeros((4, 10, 10), np.uint8)
    for name, (start, stop) in boxes.items():
        label[1:3, start:stop, start:stop] = NAMES.index(name)
    return label


def _row(case, class_name, dice, hd95, *, predicted=5, labelled=5, nsd=0.5):
    return {
        "case": case,
        "patient": case,
        "frame": "1",
        "class": NAMES.index(class_name),
        "class_name": class_name,
        "dice": dice,
        "hd95_mm": hd95,
        "asd_mm": hd95,
        "nsd": nsd,
        "predicted_voxels": predicted,
        "labelled_voxels": labelled,
        "dice_legacy": 0.25,
        "asd_legacy_voxel": 0.5,
    }


def test_rows_hold_dice_and_distances_of_each_foreground_class():
    label = _volume(RV=(0, 4), LV=(5, 9))
    prediction = _volume(RV=(0, 4), LV=(6, 10))
    rv, lv = cases.case_rows(_info(), prediction, label, NAMES, tolerance_mm=2)
    assert list(rv) == list(cases.COLUMNS)
    assert (rv["case"], rv["patient"], rv["frame"]) == ("a", "patient,1", "12")
    assert (rv["class"], rv["class_name"], rv["dice"], rv["nsd"]) == (1, "RV", 1, 1)
    assert (rv["hd95_mm"], rv["asd_mm"]) == (0, 0)
    assert lv["dice"] == 2 * 9 / (16 + 16)
    assert lv["predicted_voxels"] == lv["labelled_voxels"] == 2 * 16
    expected = surface_metrics(
        prediction == 2, label == 2, (5.0, 1.25, 1.25), tolerance_mm=2
    )
    assert {key: lv[key] for key in expected} == expected


def test_unknown_spacing_leaves_only_dice():
    label = _volume(RV=(0, 4), LV=(5, 9))
    rows = cases.case_rows(
        _info(spacing_known=False), label, label, NAMES, tolerance_mm=2
    )
    assert [row["dice"] for row in rows] == [1, 1]
    assert [row["asd_legacy_voxel"] for row in rows] == [0, 0]
    assert all(math.isnan(row[m]) for row in rows for m in ("hd95_mm", "asd_mm", "nsd"))
    assert cases.exclusions(rows)["spacing_unknown"] == 2


def test_empty_masks_are_told_apart():
    both, one = cases.case_rows(
        _info(), _volume(), _volume(LV=(1, 3)), NAMES, tolerance_mm=2
    )
    assert all(math.isnan(both[m]) for m in cases.METRICS)
    assert (one["dice"], one["nsd"]) == (0, 0)
    assert math.isnan(one["hd95_mm"]) and math.isnan(one["asd_mm"])
    expected = {"both_empty": 1, "one_empty": 1, "spacing_unknown": 0}
    assert cases.exclusions([both, one]) == expected


def test_a_missed_class_of_unknown_spacing_counts_where_its_nsd_is_missing():
    (row,) = cases.case_rows(
        _info(spacing_known=False),
        _volume(),
        _volume(RV=(1, 3)),
        NAMES[:2],
        tolerance_mm=2,
    )
    assert row["dice"] == 0 and math.isnan(row["nsd"])
    expected = {"both_empty": 0, "one_empty": 0, "spacing_unknown": 1}
    assert cases.exclusions([row]) == expected


def test_file_gives_back_the_rows_bit_for_bit(tmp_path):
    rows = [
        _row("a", "RV", 1 / 3, math.pi),
        _row('b, "c"', "LV", math.nan, math.nan, predicted=0, nsd=math.nan),
    ]
    cases.write_cases(tmp_path / "cases.csv", rows)
    # repr of a float is exact, and shows NaN and int for what they are.
    assert repr(cases.read_cases(tmp_path / "cases.csv")) == repr(rows)
    last = (tmp_path / "cases.csv").read_text().splitlines()[-1]
    assert last == '"b, ""c""","b, ""c""",1,2,LV,,,,,0,5,0.25,0.5'


def test_legacy_scores_are_those_of_the_authors_where_a_mask_is_empty():
    names = ("background", "RV", "LV", "a", "b")
    label = _volume(RV=(0, 4), LV=(5, 9))
    prediction = _volume(RV=(0, 4))
    prediction[0, :2] = 3
    rows = cases.case_rows(_info(), prediction, label, names, tolerance_mm=2)
    found = {row["class_name"]: (row["dice_legacy"], row["dice"]) for row in rows}
    assert found["RV"] == (1, 1)
    assert found["LV"] == (0, 0)  # missed
    assert found["a"] == (1, 0)  # only predicted
    assert found["b"][0] == 0 and math.isnan(found["b"][1])  # in neither
    assert [row["asd_legacy_voxel"] for row in rows] == [0, 0, 0, 0]


def test_file_of_an_earlier_run_has_no_legacy_scores(tmp_path):
    path = tmp_path / "cases.csv"
    columns = [key for key in cases.COLUMNS if key not in cases.LEGACY]
    path.write_text(",".join(columns) + "\na,p,1,1,RV,0.5,2,1,0.25,7,9\n")
    (row,) = cases.read_cases(path)
    assert (row["dice"], row["labelled_voxels"]) == (0.5, 9)
    assert list(row) == list(cases.COLUMNS)
    assert all(math.isnan(row[metric]) for metric in cases.LEGACY)
    assert cases.summarise([row])["overall"]["dice_legacy"]["n"] == 0


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "cases.csv"
    cases.write_cases(path, [_row("a", "RV", 0.5, 1.0)])
    with pytest.raises(KeyError):
        cases.write_cases(path, [_row("b", "RV", 0.5, 1.0), {"case": "c"}])
    assert [row["case"] for row in cases.read_cases(path)] == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["cases.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,dice\na,1\n", "lacks the columns patient"),
        ("", "lacks the columns case"),
        (",".join(cases.COLUMNS) + "\na,p,1,1,RV,high,,,,1,1,,\n", "broken row .*high"),
        (",".join(cases.COLUMNS) + "\na,p,1\n", "broken row"),
        (
            ",".join(cases.COLUMNS) + "\na,p,1,1,RV,inf,,,,1,1,,\n",
            "dice of case 'a' is",
        ),
        (",".join(cases.COLUMNS) + "\na,p,1,1,RV,-3,,,,1,1,,\n", "dice of case 'a' is"),
        (
            ",".join(cases.COLUMNS) + "\na,p,1,1,RV,1,-1,,,1,1,,\n",
            "hd95_mm of case 'a'",
        ),
        (
            ",".join(cases.COLUMNS) + "\na,p,1,1,RV,1,,inf,,1,1,,\n",
            "asd_mm of case 'a'",
        ),
        (
            ",".join(cases.COLUMNS) + "\na,p,1,1,RV,1,,,1.5,1,1,,\n",
            "nsd of case 'a' is",
        ),
        (
            ",".join(cases.COLUMNS) + "\na,p,1,1,RV,1,,,,1,1,1.5,\n",
            "dice_legacy of case 'a' is",
        ),
        (
            ",".join(cases.COLUMNS) + 2 * "\na,p,1,1,RV,1,,,,1,1,,",
            "'a' has class 'RV' tw",
        ),
        ("x" * 200_000, "broken row"),
    ],
    ids=[
        *("other", "empty", "word", "short", "dice inf", "dice < 0", "hd95 < 0"),
        *("asd inf", "nsd > 1", "legacy > 1", "twice", "huge cell"),
    ],
)
def test_a_file_that_is_no_table_of_cases_is_named(tmp_path, text, message):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(UserError, match=f"cases.csv .*{message}"):
        cases.read_cases(tmp_path / "cases.csv")
    with pytest.raises(UserError, match="nowhere.csv cannot be read"):
        cases.read_cases(tmp_path / "nowhere.csv")


def test_summary_is_mean_sample_sd_and_counts():
    rows = [
        _row("a", "RV", 0.8, 2.0),
        _row("a", "LV", 0.6, 4.0),
        _row("b", "RV", 0.0, math.nan, predicted=0, nsd=0.0),
        _row("b", "LV", 0.4, 8.0),
        _row("c", "RV", math.nan, math.nan, predicted=0, labelled=0, nsd=math.nan),
        _row("c", "LV", 0.5, math.nan, nsd=math.nan),
    ]
    summary = cases.summarise(rows)
    assert summary["cases"] == 3
    rv = summary["classes"]["RV"]
    assert rv["dice"] == pytest.approx({"mean": 0.4, "sd": 0.8 / 2**0.5, "n": 2})
    assert rv["hd95_mm"] == {"mean": 2.0, "sd": None, "n": 1}
    assert (rv["both_empty"], rv["one_empty"], rv["spacing_unknown"]) == (1, 1, 0)
    # Over classes first: a 0.7, b 0.2, c 0.5 (its LV alone).
    dice = [0.7, 0.2, 0.5]
    expected = {"mean": np.mean(dice), "sd": np.std(dice, ddof=1), "n": 3}
    assert summary["overall"]["dice"] == pytest.approx(expected)
    assert summary["overall"]["hd95_mm"]["mean"] == pytest.approx((3 + 8) / 2)
    assert summary["overall"]["hd95_mm"]["n"] == 2
    counts = {k: summary["overall"][k] for k in ("both_empty", "one_empty")}
    assert counts == {"both_empty": 1, "one_empty": 1}
    assert summary["overall"]["spacing_unknown"] == 1
    legacy = {"mean": 0.25, "sd": 0.0, "n": 3}  # every row has one, also an empty one
    assert summary["overall"]["dice_legacy"] == rv["dice_legacy"] == legacy


def test_missing_more_organs_never_raises_dice_or_nsd():
    # What HD95 does (it falls from 6 to 2) is why the counts stand beside it.
    found = [_row("a", "RV", 0.8, 2.0), _row("b", "RV", 0.3, 10.0, nsd=0.1)]
    missed = [found[0], _row("b", "RV", 0.0, math.nan, predicted=0, nsd=0.0)]
    before, after = (cases.summarise(rows)["overall"] for rows in (found, missed))
    assert after["dice"]["mean"] < before["dice"]["mean"]
    assert after["nsd"]["mean"] < before["nsd"]["mean"]
    assert (before["hd95_mm"]["n"], after["hd95_mm"]["n"]) == (2, 1)
    assert after["one_empty"] == 1


def test_summary_is_strict_json_even_without_a_number():
    rows = [_row("a", "RV", math.nan, math.nan, predicted=0, labelled=0, nsd=math.nan)]
    for some in (rows, []):
        json.dumps(cases.summarise(some), allow_nan=False)
    empty = {"mean": None, "sd": None, "n": 0}
    assert cases.summarise(rows)["classes"]["RV"]["dice"] == empty


def test_worst_median_and_best_case():
    dice = {"a": 0.5, "b": 0.9, "c": 0.1, "d": 0.7, "e": math.nan}
    rows = [_row(case, "RV", value, 1.0) for case, value in dice.items()]
    expected = {"worst": "c", "median": "a", "best": "b"}
    assert cases.worst_median_best(rows) == expected
    assert cases.worst_median_best(rows[-1:]) == {}
