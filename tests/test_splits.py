"""Folds and draws: the ids of the authors' protocol, nesting, and users' files."""

import json
import random

import pytest
from tiny_nifti import ROOT, chd_tree, hvsmr_tree, mmwhs_tree

from pclseg import cohort
from pclseg.config import load_config
from pclseg.data import datasets, splits
from pclseg.data.datasets import acdc
from pclseg.errors import UserError

# Ids of the published protocol (KFold seed 12345, draw seed 1234): per fold the
# validation patients, then the first patients of the draw.
ACDC = [
    (
        "5 10 14 21 26 29 34 36 41 43 50 52 61 64 66 70 76 79 87 89",
        "73 18 1 15 95 6 13 16 58 39",
    ),
    (
        "1 3 7 9 18 27 31 38 40 46 47 48 51 53 55 58 72 77 88 93",
        "74 20 2 16 95 8 15 17 62 39",
    ),
    (
        "13 17 19 20 22 23 25 28 33 49 59 63 69 75 80 84 85 86 90 96",
        "70 16 1 12 94 5 11 14 56 40",
    ),
    (
        "4 6 16 24 32 45 54 56 57 62 65 67 68 71 73 91 92 94 95 97",
        "70 18 1 14 90 7 13 15 52 36",
    ),
    (
        "2 8 11 12 15 30 35 37 39 42 44 60 74 78 81 82 83 98 99 100",
        "69 20 1 17 92 6 16 18 57 40",
    ),
]
CHD_IDS = (
    "1001 1002 1004 1007 1008 1010 1012 1016 1021 1022 1024 1026 1027 1028 1029 1030"
    " 1032 1033 1035 1036 1037 1039 1040 1041 1042 1043 1044 1046 1048 1053 1056 1059"
    " 1060 1061 1062 1066 1070 1072 1074 1077 1079 1080 1081 1083 1085 1088 1089 1090"
    " 1091 1092 1098 1099 1101 1102 1103 1106 1109 1111 1113 1114 1116 1117 1122 1124"
    " 1125 1126 1127 1128"
)
CHD = [
    (
        "1008 1012 1040 1060 1066 1081 1083 1090 1091 1099 1101 1113 1116 1117",
        "1124 1059 1022 1001 1016 1085 1004 1102 1106 1128",
    ),
    (
        "1004 1021 1027 1037 1039 1042 1043 1044 1048 1056 1079 1085 1088 1089",
        "1124 1074 1022 1001 1012 1099 1007 1109 1113 1128",
    ),
    (
        "1001 1007 1010 1030 1036 1041 1059 1061 1102 1106 1109 1111 1114 1126",
        "1122 1070 1024 1002 1021 1088 1008 1098 1101 1128",
    ),
    (
        "1016 1022 1024 1026 1028 1032 1033 1035 1046 1074 1077 1098 1125",
        "1117 1072 1021 1001 1010 1091 1004 1103 1109 1122",
    ),
    (
        "1002 1029 1053 1062 1070 1072 1080 1092 1103 1122 1124 1127 1128",
        "1113 1059 1021 1001 1012 1085 1007 1098 1101 1114",
    ),
]
MMWHS = [
    ("1004 1009 1014 1017", "1019 1002 1001 1020 1012 1018 1016 1015 1007 1011"),
    ("1001 1011 1013 1016", "1019 1003 1002 1020 1012 1018 1017 1015 1007 1010"),
    ("1007 1008 1012 1018", "1019 1002 1001 1020 1013 1017 1016 1015 1006 1011"),
    ("1010 1015 1019 1020", "1017 1002 1001 1018 1011 1016 1014 1013 1006 1009"),
    ("1002 1003 1005 1006", "1019 1004 1001 1020 1014 1018 1017 1016 1010 1013"),
]
HVSMR = [
    ("0 7", "9 1 8 6 5 3"),
    ("3 9", "8 0 7 6 5 2"),
    ("4 6", "9 0 8 7 5 2"),
    ("1 8", "9 0 7 6 5 3"),
    ("2 5", "9 0 8 7 6 3"),
]
PROTOCOL = {
    "acdc": ([str(i) for i in range(1, 101)], ACDC),
    "chd": (CHD_IDS.split(), CHD),
    "mmwhs": ([str(i) for i in range(1001, 1021)], MMWHS),
    "hvsmr": ([str(i) for i in range(10)], HVSMR),
}
# The draw as places in the ordered training list, by dataset and fold.
DRAW_PLACES = {
    ("acdc", 0): "56 14 0 11 74 4 10 12 45 30 2 3 69 44 61 59 19 5 76 71 7 54 77 32 31"
    " 15 75 42 34 29 53 38 43 62 79 37 67 17 35 49",
    ("chd", 0): "49 28 7 0 5 37 2 42 44 53 6 22 15 1 40 39 46 30 29 9 45 11 51 27 50 16"
    " 41 31 47 21 17 14 25 19 24 52 38 8 20 10",
    ("chd", 4): "49 28 7 0 5 37 2 42 44 50 6 22 15 1 41 40 43 30 29 9 45 11 52 51 16 47"
    " 53 32 48 21 17 14 26 19 38 54 18 39 8 20",
    ("mmwhs", 0): "14 1 0 15 9 13 12 11 5 8",
    ("hvsmr", 0): "7 0 6 5 4 2",
}
SSL4MIS = ROOT / "configs" / "splits" / "acdc_ssl4mis.json"
BY_GROUP = SSL4MIS.with_name("acdc_by_group.json")
# What the copy of ACDC lacks that has 80 patients.
MISSING = "1 4 13 19 22 31 33 36 43 44 46 54 68 71 80 83 84 90 98 99"
LABELLED = ["a1", "a2", "a3", "a4", "a5"]
UNLABELLED = ["u1", "u2"]


def make(patients, unlabelled=(), folds=5):
    return splits.make_splits(
        patients, unlabelled, folds=folds, fold_seed=12345, draw_seed=1234
    )


@pytest.mark.parametrize("name", PROTOCOL)
def test_folds_and_draws_have_the_published_ids(name):
    patients, expected = PROTOCOL[name]
    made = make(patients)["folds"]
    assert [fold["validation"] for fold in made] == [v.split() for v, _ in expected]
    for fold, (validation, draw) in zip(made, expected, strict=True):
        assert fold["draw"][: len(draw.split())] == draw.split()
        assert fold["train"] == [p for p in patients if p not in validation.split()]


@pytest.mark.parametrize(
    ("name", "tree"),
    [("chd", chd_tree), ("mmwhs", mmwhs_tree), ("hvsmr", hvsmr_tree)],
)
def test_files_of_the_real_names_give_the_published_folds(name, tree, tmp_path):
    tree(tmp_path)
    cases = datasets.make(name, raw_dir=tmp_path).cases
    made = make([case.patient for case in reversed(cases)])["folds"]
    ids, expected = PROTOCOL[name]
    assert [case.patient for case in cases] == [f"{name}{i}" for i in ids]
    for fold, (validation, draw) in zip(made, expected, strict=True):
        assert fold["validation"] == [f"{name}{i}" for i in validation.split()]
        drawn = [f"{name}{i}" for i in draw.split()]
        assert fold["draw"][: len(drawn)] == drawn


@pytest.mark.parametrize(("name", "fold"), DRAW_PLACES)
def test_draws_take_the_published_places_of_the_training_list(name, fold):
    made = make(PROTOCOL[name][0])["folds"][fold]
    places = [int(place) for place in DRAW_PLACES[name, fold].split()]
    assert made["draw"][: len(places)] == [made["train"][place] for place in places]


@pytest.mark.parametrize("name", PROTOCOL)
def test_every_subset_equals_the_authors_own_draw_of_that_size(name):
    for fold in make(PROTOCOL[name][0])["folds"]:
        for size in range(1, len(fold["train"]) + 1):
            random.seed(1234)
            assert random.sample(fold["train"], size) == fold["draw"][:size]


@pytest.mark.parametrize(("patients", "folds"), [(2, 2), (7, 3), (11, 4), (9, 9)])
def test_folds_cut_the_patients_in_even_parts(patients, folds):
    names = [f"p{i}" for i in range(patients)]
    made = make(names, folds=folds)["folds"]
    validation = [p for fold in made for p in fold["validation"]]
    assert sorted(validation) == sorted(names)
    sizes = [len(fold["validation"]) for fold in made]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", PROTOCOL)
def test_folds_do_not_depend_on_the_order_of_the_patients(name):
    patients = PROTOCOL[name][0]
    mixed = random.Random(0).sample(patients, len(patients))
    assert make(mixed) == make(patients)


def test_other_seeds_give_other_folds_and_other_draws():
    names = [f"p{i}" for i in range(20)]
    arguments = dict(folds=5, fold_seed=0, draw_seed=0)
    base = splits.make_splits(names, (), **arguments)
    assert base == splits.make_splits(names, (), **arguments)
    other = splits.make_splits(names, (), **{**arguments, "fold_seed": 1})
    assert other["folds"][0]["validation"] != base["folds"][0]["validation"]
    other = splits.make_splits(names, (), **{**arguments, "draw_seed": 1})
    assert other["folds"][0]["validation"] == base["folds"][0]["validation"]
    assert other["folds"][0]["draw"] != base["folds"][0]["draw"]


def test_unlabelled_patients_stay_out_of_the_folds_and_repeats_count_once():
    made = make(["a1", "a1", "a2", "a3"], ["u1", "a2", "u1"], folds=3)
    assert made["unlabelled"] == ["u1"]
    assert sorted(p for f in made["folds"] for p in f["validation"]) == [
        "a1",
        "a2",
        "a3",
    ]


@pytest.mark.parametrize(
    ("patients", "folds", "seed", "words"),
    [
        (4, 5, 0, ["folds is 5", "4 labelled patients", "2 to 4"]),
        (4, 1, 0, ["folds is 1"]),
        (1, 5, 0, ["2 patients with labels", "has 1"]),
        (4, 2, -1, ["fold_seed is -1"]),
    ],
)
def test_impossible_folds_are_explained(patients, folds, seed, words):
    names = [f"p{i}" for i in range(patients)]
    with pytest.raises(UserError) as error:
        splits.make_splits(names, (), folds=folds, fold_seed=seed, draw_seed=0)
    assert all(word in str(error.value) for word in words)


def test_select_nests_the_labelled_subsets():
    made = make(LABELLED, UNLABELLED)
    chosen = [
        splits.select(made, fold=1, labelled=size, holdout=0) for size in (1, 2, 4)
    ]
    for small, large in zip(chosen, chosen[1:], strict=False):
        assert small.labelled == large.labelled[: len(small.labelled)]
    assert set(chosen[-1].labelled) == set(chosen[-1].train)
    assert chosen[0].unlabelled == ("u1", "u2")
    assert chosen[0].test == ()
    assert not set(chosen[0].train) & set(chosen[0].validation)


@pytest.mark.parametrize(
    ("fold", "labelled", "words"),
    [
        (5, 1, ["fold is 5", "0 to 4"]),
        (-1, 1, ["fold is -1"]),
        (0, 5, ["labelled is 5", "fold 0 has 4", "1 to 4"]),
        (0, -1, ["labelled is -1", "or 0 for all"]),
    ],
)
def test_select_states_what_there_is(fold, labelled, words):
    with pytest.raises(UserError) as error:
        splits.select(make(LABELLED), fold=fold, labelled=labelled, holdout=0)
    assert all(word in str(error.value) for word in words)


def test_pretraining_sees_validation_and_test_only_when_transductive():
    split = splits.Split(
        train=("a", "b"),
        labelled=("b",),
        validation=("v",),
        test=("t",),
        unlabelled=("u",),
    )
    assert splits.pretraining_patients(split, transductive=False) == ("a", "b", "u")
    everyone = splits.pretraining_patients(split, transductive=True)
    assert sorted(everyone) == ["a", "b", "t", "u", "v"]


def write(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_made_file_reads_back_as_it_was(tmp_path):
    made = make(LABELLED, UNLABELLED)
    assert splits.read_splits(write(tmp_path, made), LABELLED, UNLABELLED) == made


def test_a_short_file_is_completed(tmp_path):
    fold = {"train": ["a2", "a3", "a1"], "validation": ["a4"]}
    path = write(tmp_path, {"folds": [fold], "test": ["a5"]})
    read = splits.read_splits(path, LABELLED, UNLABELLED, draw_seed=7)
    draw = random.Random(7).sample(fold["train"], 3)
    assert read["folds"] == [{**fold, "draw": draw}]
    assert (read["unlabelled"], read["draw_seed"]) == (UNLABELLED, 7)
    assert splits.select(read, fold=0, labelled=1, holdout=0).test == ("a5",)


def test_numbers_are_taken_as_ids(tmp_path):
    path = write(tmp_path, {"folds": [{"train": [1001], "validation": [1002]}]})
    read = splits.read_splits(path, ["1001", "1002"], ())
    assert read["folds"][0]["train"] == ["1001"]


def test_a_labelled_patient_may_serve_as_an_unlabelled_one(tmp_path):
    fold = {"train": ["a1"], "validation": ["a2"]}
    path = write(tmp_path, {"folds": [fold], "unlabelled": ["a3", "u1"]})
    read = splits.read_splits(path, LABELLED, UNLABELLED)
    assert read["unlabelled"] == ["a3", "u1"]


def one_fold(**changes):
    return {"folds": [{"train": ["a1", "a2"], "validation": ["a3"], **changes}]}


def leaving_out(**changes):
    return {"absent": "leave out", **one_fold(**changes)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{no json", ["no JSON file", "line 1"]),
        ([], ["list", '"folds"']),
        ({}, ["'folds' is missing"]),
        ({"folds": []}, ["'folds' is missing or empty"]),
        ({"folds": [3]}, ["fold 0 is no object"]),
        ({"folds": [{"train": ["a1"]}]}, ["fold 0 lacks the key 'validation'"]),
        (one_fold(train=[]), ["fold 0, 'train' is empty"]),
        (one_fold(validation=[]), ["fold 0, 'validation' is empty"]),
        (one_fold(draw=[]), ["fold 0, 'draw' is empty"]),
        (one_fold(train="a1"), ["'train' is not a list"]),
        (one_fold(train=[["a1"]]), ["'train' is not a list"]),
        (one_fold(train=["patient1"]), ["'patient1' is not in the dataset"]),
        (one_fold(train=["a11", "a2"]), ["'a11'", "Did you mean 'a1'?"]),
        (one_fold(train=["a1", "a3"]), ["'a3'", "'train'", "'validation'"]),
        (one_fold(train=["a1", "a1"]), ["'a1' is named twice"]),
        (one_fold(train=["a1", "u1"]), ["'u1' has no label", "'unlabelled'"]),
        (one_fold(draw=["a4"]), ["'a4'", "'draw' but not in 'train'"]),
        ({**one_fold(), "test": ["a3"]}, ["'a3'", "'validation'", "'test'"]),
        ({**one_fold(), "test": ["u1"]}, ["'test'", "'u1' has no label"]),
        ({**one_fold(), "unlabelled": ["a1"]}, ["'a1'", "'train'", "'unlabelled'"]),
        ({**one_fold(), "draw_seed": "x"}, ["'draw_seed' is 'x'"]),
        ({**one_fold(), "tests": ["a4"]}, ["'tests'", "Did you mean 'test'?"]),
        (one_fold(test=["a4"]), ["fold 0", "'test'", "train, validation, draw"]),
        ({**one_fold(), "absent": "drop"}, ["'drop'", "'refuse' or 'leave out'"]),
        ({**one_fold(train=["a1", "b"]), "absent": "refuse"}, ["'b' is not in the"]),
        (leaving_out(train=["b", "c"]), ["fold 0", "none of the patients of 'train'"]),
        (leaving_out(validation=["b"]), ["fold 0", "patients of 'validation'"]),
        (leaving_out(train=["a1", "b"], draw=["b"]), ["fold 0", "patients of 'draw'"]),
        ({**leaving_out(), "test": ["b"]}, ["none of the patients of 'test'"]),
        ({**leaving_out(), "unlabelled": ["b"]}, ["patients of 'unlabelled'"]),
        (leaving_out(train=["a1", "b", "b"]), ["'b' is named twice"]),
        (leaving_out(train=["a1", "b"], draw=["c"]), ["'c'", "but not in 'train'"]),
        ({**leaving_out(train=["a1", "b"]), "test": ["b"]}, ["'b'", "'train'"]),
        (leaving_out(train=["a1", "u1"]), ["'u1' has no label"]),
        ({**one_fold(), "strata": ["x"]}, ["'strata' does not give"]),
        ({**one_fold(), "strata": {"a1": 1}}, ["'strata' does not give"]),
        ({**one_fold(), "strata": {"a1": "x"}}, ["fold 0", "'a2' has no group"]),
    ],
)
def test_a_wrong_file_is_explained_in_one_line(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        splits.read_splits(path, LABELLED, UNLABELLED)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = write(tmp_path, "\ufeff" + json.dumps(one_fold()))
    assert splits.read_splits(path, LABELLED, ())["folds"][0]["validation"] == ["a3"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json .*No such file"):
        splits.read_splits(tmp_path / "absent.json", LABELLED, UNLABELLED)


def test_without_labels_all_patients_serve_pretraining():
    made = splits.make_splits([], ["b", "a"], folds=5, fold_seed=0, draw_seed=0)
    assert made["folds"] == [{"train": [], "validation": [], "draw": []}]
    split = splits.select(made, fold=0, labelled=2, holdout=0)
    assert splits.pretraining_patients(split, transductive=False) == ("a", "b")
    assert split.labelled == ()


def test_no_number_of_labelled_patients_means_all_of_the_fold():
    made = make(LABELLED)
    split = splits.select(made, fold=0, labelled=0, holdout=0)
    assert sorted(split.labelled) == sorted(split.train)


def test_holdout_is_the_end_of_the_draw_and_nobody_else_is_validated():
    made = make(LABELLED)
    draw = made["folds"][1]["draw"]
    split = splits.select(made | {"test": ["t"]}, fold=1, labelled=1, holdout=2)
    assert split.validation == tuple(draw[-2:])
    assert split.test == ()
    assert split.labelled == tuple(draw[:1])
    assert set(split.train) == set(draw[:-2])


def test_all_labels_leave_out_the_holdout():
    made = make(LABELLED)
    draw = made["folds"][0]["draw"]
    split = splits.select(made, fold=0, labelled=0, holdout=1)
    assert split.labelled == tuple(draw[:-1])


def test_holdout_that_leaves_too_few_is_refused():
    made = make(LABELLED)
    size = len(made["folds"][0]["draw"])
    with pytest.raises(UserError, match=f"expected 0 to {size - 1}"):
        splits.select(made, fold=0, labelled=1, holdout=size)
    with pytest.raises(UserError, match="expected 1 to 1, or 0 for all"):
        splits.select(made, fold=0, labelled=2, holdout=size - 1)


def test_absent_patients_leave_every_list_and_the_next_of_the_draw_move_up(tmp_path):
    fold = {"train": ["b", "a2", "a1"], "validation": ["a3", "c"]}
    path = write(
        tmp_path,
        {
            **leaving_out(**fold, draw=["b", "a1", "a2"]),
            "test": ["d", "a4"],
            "unlabelled": ["u2", "e"],
        },
    )
    read = splits.read_splits(path, LABELLED, UNLABELLED)
    assert "absent" not in read
    kept = {"train": ["a2", "a1"], "validation": ["a3"], "draw": ["a1", "a2"]}
    assert read["folds"] == [kept]
    assert (read["test"], read["unlabelled"]) == (["a4"], ["u2"])
    assert splits.select(read, fold=0, labelled=1, holdout=0).labelled == ("a1",)
    with pytest.raises(UserError, match="labelled is 3; fold 0 has 2 .* to train on"):
        splits.select(read, fold=0, labelled=3, holdout=0)
    absent = {"train": ["b"], "validation": ["c"], "test": ["d"], "unlabelled": ["e"]}
    assert splits.left_out(path, LABELLED + UNLABELLED, fold=0) == absent


def test_who_is_left_out_is_of_the_fold_and_nobody_of_a_complete_dataset(tmp_path):
    folds = one_fold(train=["a1", 7])["folds"] + one_fold(validation=["a4"])["folds"]
    path = write(tmp_path, {"absent": "leave out", "folds": folds})
    assert splits.left_out(path, LABELLED, fold=0) == {"train": ["7"]}
    assert splits.left_out(path, LABELLED, fold=1) == {}


def test_a_draw_that_is_not_in_the_file_does_not_depend_on_who_is_absent(tmp_path):
    path = write(tmp_path, leaving_out(train=["a1", "a2", "b", "a4", "a5"]))
    complete = splits.read_splits(path, [*LABELLED, "b"], ())["folds"][0]["draw"]
    left = splits.read_splits(path, LABELLED, ())["folds"][0]["draw"]
    assert left == [patient for patient in complete if patient != "b"]


def in_groups(strata, **changes):
    return {**leaving_out(**changes), "strata": strata}


def test_groups_take_turns_in_a_draw_and_each_keeps_its_order(tmp_path):
    names = [f"{group}{number}" for group in "abc" for number in range(4)] + ["a9"]
    strata = {name: name[0] for name in names}
    path = write(tmp_path, in_groups(strata, train=names, validation=["v"]))
    draw = splits.read_splits(path, [*names, "v"], ())["folds"][0]["draw"]
    plain = random.Random(1234).sample(names, len(names))
    assert sorted(draw) == sorted(names)
    for turn in range(4):
        assert {*map(strata.get, draw[3 * turn : 3 * turn + 3])} == set("abc")
    for group in "abc":
        own = [[p for p in order if strata[p] == group] for order in (draw, plain)]
        assert own[0] == own[1]
    assert draw[0] == plain[0]
    # Who is absent changes neither the turns nor anybody's place in the own group.
    here = [name for name in names if name not in ("a1", "b0", "c3")]
    left = splits.read_splits(path, [*here, "v"], ())["folds"][0]["draw"]
    for turn in range(3):
        assert {*map(strata.get, left[3 * turn : 3 * turn + 3])} == set("abc")
    for group in "abc":
        own = [p for p in draw if p in here and strata[p] == group]
        assert [p for p in left if strata[p] == group] == own


def test_a_draw_of_the_file_stays_as_it_is_with_groups(tmp_path):
    draw = ["a2", "a1"]
    path = write(tmp_path, in_groups({"a1": "x", "a2": "y"}, draw=draw))
    assert splits.read_splits(path, LABELLED, ())["folds"][0]["draw"] == draw


def patients(numbers):
    return [f"patient{int(number):03d}" for number in numbers.split()]


ACDC_PATIENTS = list(acdc.TRAINING_PATIENTS)


def test_the_split_of_ssl4mis_has_its_sizes_and_its_labelled_patients():
    read = splits.read_splits(SSL4MIS, ACDC_PATIENTS, ())
    (fold,) = read["folds"]
    assert (len(fold["train"]), len(fold["validation"])) == (70, 10)
    assert fold["validation"] == patients("2 19 28 30 39 45 78 82 85 87")
    assert read["test"] == patients(
        "1 7 8 11 13 22 24 33 52 59 64 65 66 68 75 80 81 83 84 93"
    )
    everyone = fold["train"] + fold["validation"] + read["test"]
    assert sorted(everyone) == ACDC_PATIENTS
    for labelled, expected in (
        (1, "99"),
        (3, "99 38 50"),
        (7, "99 38 50 100 58 21 49"),
    ):
        split = splits.select(read, fold=0, labelled=labelled, holdout=0)
        assert split.labelled == tuple(patients(expected))


def test_the_rest_of_its_draw_is_seeded():
    read = splits.read_splits(SSL4MIS, ACDC_PATIENTS, ())
    (fold,) = read["folds"]
    rest = sorted(set(fold["train"]) - set(fold["draw"][:7]))
    assert read["draw_seed"] == 1234
    assert fold["draw"][7:] == random.Random(1234).sample(rest, 63)


def test_the_split_of_ssl4mis_on_a_copy_with_80_patients():
    copy = sorted(set(ACDC_PATIENTS) - set(patients(MISSING)))
    check_80_patients(splits.read_splits(SSL4MIS, copy, ()))
    assert splits.left_out(SSL4MIS, copy, fold=0) == {
        "train": patients("4 31 36 43 44 46 54 71 90 98 99"),
        "validation": ["patient019"],
        "test": patients("1 13 22 33 68 80 83 84"),
    }


def check_80_patients(read):
    (fold,) = read["folds"]
    sizes = (len(fold["train"]), len(fold["validation"]), len(read["test"]))
    assert sizes == (59, 9, 12)
    assert fold["draw"][:6] == patients("38 50 100 58 21 49")
    assert sorted(fold["draw"]) == sorted(fold["train"])


def test_acdc_by_group_has_the_authors_folds_and_even_draws():
    made = splits.make_splits(
        ACDC_PATIENTS, (), folds=5, fold_seed=12345, draw_seed=1234
    )
    for missing in ("", MISSING):
        copy = sorted(set(ACDC_PATIENTS) - set(patients(missing)))
        read = splits.read_splits(BY_GROUP, copy, ())
        for fold, authors in zip(read["folds"], made["folds"], strict=True):
            for side in ("train", "validation"):
                assert fold[side] == [p for p in authors[side] if p in copy]
            for labelled in (5, 10):
                groups = [(int(p[-3:]) - 1) // 20 for p in fold["draw"][:labelled]]
                assert sorted(groups) == sorted([0, 1, 2, 3, 4] * (labelled // 5))


@pytest.mark.data
def test_the_split_of_ssl4mis_fits_the_real_headers(shared_data):
    data = load_config(f"{ROOT}/configs/scratch_acdc.py").data
    data.raw_dir, data.split.file = str(shared_data / "ACDC"), str(SSL4MIS)
    data.split.labelled = 3
    _, infos, split, all_splits = cohort.plan_data(data)
    check_80_patients(all_splits)
    assert split.labelled == tuple(patients("38 50 100"))
    volumes = [
        len(cohort.rows_of(infos, split, subset, transductive=False))
        for subset in ("train", "validation", "test")
    ]
    assert volumes == [2 * 59, 2 * 9, 2 * 12]
    (line,) = cohort.remarks(data, infos, split)
    assert "1 of validation (patient019), 8 of test" in line
