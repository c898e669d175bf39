"""Who is in which part of a run."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_nifti import config_for, nifti_tree

from pclseg import cohort
from pclseg.data import headers, prepare, splits, tfds_store
from pclseg.data.geometry import prepared_geometry
from pclseg.data.splits import Split
from pclseg.data.tfds_store import CaseInfo
from pclseg.errors import UserError


def info(name, patient, *, labelled, in_series=False, slices=4):
    geometry, shape, spacing = prepared_geometry(
        (10, 8, slices), np.eye(4), slice_axis=2, spacing=()
    )
    return CaseInfo(
        name=name,
        patient=patient,
        frame="",
        shape=shape,
        channels=1,
        spacing=spacing,
        labelled=labelled,
        spacing_known=True,
        in_series=in_series,
        geometry=geometry,
        image_path=f"/{name}.nii.gz",
    )


# As in ACDC: p1 and p3 have a 4-D file, p2 and p4 only the two labelled frames.
INFOS = (
    info("p1_4d_00", "p1", labelled=False),
    info("p1_4d_01", "p1", labelled=False),
    info("p1_ED", "p1", labelled=True, in_series=True),
    info("p1_ES", "p1", labelled=True, in_series=True),
    info("p2_ED", "p2", labelled=True),
    info("p2_ES", "p2", labelled=True),
    info("p3_4d_00", "p3", labelled=False),
    info("p3_ED", "p3", labelled=True, in_series=True),
    info("p4_ED", "p4", labelled=True),
    info("u1", "u1", labelled=False),
)
SPLIT = Split(
    train=("p1", "p2"),
    labelled=("p1",),
    validation=("p3",),
    test=("p4",),
    unlabelled=("u1",),
)


def names_of(subset, *, transductive=False, split=SPLIT):
    rows = cohort.rows_of(INFOS, split, subset, transductive=transductive)
    return [INFOS[row].name for row in rows]


def test_pretraining_sees_frames_of_a_series_but_not_their_labelled_copies():
    expected = ["p1_4d_00", "p1_4d_01", "p2_ED", "p2_ES", "u1"]
    assert names_of("train") == expected


def test_transductive_pretraining_sees_held_out_images_too():
    expected = ["p1_4d_00", "p1_4d_01", "p2_ED", "p2_ES", "p3_4d_00", "p4_ED", "u1"]
    assert names_of("train", transductive=True) == expected


@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize(
    ("subset", "expected"),
    [("labelled", ["p1_ED", "p1_ES"]), ("validation", ["p3_ED"]), ("test", ["p4_ED"])],
)
def test_other_subsets_hold_labelled_volumes(subset, expected, transductive):
    assert names_of(subset, transductive=transductive) == expected


def test_pretraining_does_not_depend_on_the_number_of_labelled_patients():
    more = dataclasses.replace(SPLIT, labelled=("p1", "p2"))
    assert names_of("train", split=more) == names_of("train")
    assert names_of("labelled", split=more) == ["p1_ED", "p1_ES", "p2_ED", "p2_ES"]


def test_unknown_subset_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"known are: train, .*mean 'labelled'\?"):
        names_of("labeled")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/: seven volumes of as many patients, the last one without label."""
    root = tmp_path_factory.mktemp("place")
    nifti_tree(root / "data", volumes=7, labelled=6)
    return root


@pytest.fixture(scope="module")
def planned(place):
    """(dataset, infos, split, splits of every fold) of data/."""
    return cohort.plan_data(config_for(place).data)


def test_splits_are_the_seeded_folds_of_labelled_patients(place, planned):
    _, infos, _, all_splits = planned
    names = [f"case{number:02d}" for number in range(6)]
    expected = splits.make_splits(
        names, ["case06"], folds=5, fold_seed=12345, draw_seed=1234
    )
    assert cohort.make_splits(config_for(place).data, infos) == expected == all_splits


def test_patient_with_one_labelled_volume_is_no_unlabelled_patient(place):
    data = config_for(place).data
    data.split.folds = 2
    made = cohort.make_splits(data, INFOS)
    assert made["unlabelled"] == ["u1"]
    assert sorted(made["folds"][0]["draw"] + made["folds"][0]["validation"]) == [
        "p1",
        "p2",
        "p3",
        "p4",
    ]


def test_one_line_says_who_of_a_split_file_is_left_out(place, tmp_path):
    data = config_for(place).data
    nobody = splits.Split(train=(), labelled=(), validation=(), test=(), unlabelled=())
    assert cohort.remarks(data, INFOS, nobody) == []
    path = tmp_path / "mine.json"
    fold = {"train": ["p9", "p1", "p8"], "validation": ["p3", "p7"]}
    path.write_text(json.dumps({"absent": "leave out", "folds": [fold]}))
    data.split.file = str(path)
    (line,) = cohort.remarks(data, INFOS, nobody)
    assert line == (
        f"split: the dataset lacks patients of {path}, who are left out: 2 of train"
        " (p9, p8), 1 of validation (p7); where one would be labelled, the next one of"
        " the draw takes its place"
    )
    path.write_text(json.dumps({"folds": [{"train": ["p1"], "validation": ["p3"]}]}))
    assert cohort.remarks(data, INFOS, nobody) == []


@pytest.mark.parametrize("fold", range(5))
def test_labelled_subsets_are_nested_and_everybody_else_pretrains(planned, fold):
    _, infos, _, all_splits = planned
    smaller: set[str] = set()
    for labelled in range(1, 5):
        split = splits.select(all_splits, fold=fold, labelled=labelled, holdout=0)
        rows = cohort.rows_of(infos, split, "train", transductive=False)
        patients = {infos[row].patient for row in rows}
        assert patients == {*split.train, "case06"}
        assert not patients & {*split.validation}
        assert smaller < set(split.labelled) <= set(split.train)
        smaller = set(split.labelled)


def test_a_volume_that_no_store_could_hold_is_told_from_its_header(place, monkeypatch):
    monkeypatch.setattr(tfds_store, "MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"case00: /.* has \(.* more than the 2 GiB"):
        cohort.plan_data(config_for(place).data)


def test_store_that_cannot_be_written_is_named(place, planned, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "/somewhere/x.npz")

    monkeypatch.setattr(prepare, "prepare", full)
    with pytest.raises(UserError, match=r"^config.data.store_dir: .*No space left"):
        cohort.prepare_dataset(config_for(place).data, planned[0], print)


def tilted(name, normal):
    """An info whose slices follow each other along `normal`, right, front, up."""
    normal = np.asarray(normal) / np.linalg.norm(normal)
    affine = np.eye(4)
    affine[:3, 2] = 8 * normal
    affine[:3, 0] = np.cross(normal, (0, 0, 1))
    affine[:3, 1] = np.cross(normal, affine[:3, 0])
    geometry, shape, spacing = prepared_geometry(
        (10, 8, 6), affine, slice_axis="auto", spacing=()
    )
    return dataclasses.replace(
        info(name, name, labelled=True), shape=shape, spacing=spacing, geometry=geometry
    )


def test_slices_that_run_another_way_are_told(caplog):
    usual = [tilted(f"p{i}", (0.60, -0.57, -0.56)) for i in range(3)]
    headers._warn_of_directions(usual)
    assert not caplog.records
    for normal, along in (((0.57, -0.60, -0.56), "-0.57"), ((0.1, 0.1, 9.0), "0.01")):
        headers._warn_of_directions([*usual, tilted("other", normal)])
        assert "1 of 4 volumes count slices in another direction" in caplog.text
        assert "such as other" in caplog.text and along in caplog.text
        caplog.clear()
