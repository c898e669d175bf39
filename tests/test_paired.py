"""What CHD, MMWHS and HVSMR share: files found by number, and what is said of them."""

import gzip

import pytest
from tiny_nifti import acdc_tree, chd_tree, hvsmr_tree, mmwhs_tree, pair

from pclseg.data import datasets
from pclseg.errors import UserError

TREES = {"chd": chd_tree, "mmwhs": mmwhs_tree, "hvsmr": hvsmr_tree}
# number, image and label of the second patient, below the tree
SECOND = {
    "chd": ("1002", "ct_1002_image", "ct_1002_label"),
    "mmwhs": ("1002", "ct_train/ct_train_1002_image", "ct_train/ct_train_1002_label"),
    "hvsmr": (
        "1",
        "Training_dataset_sx_cropped/training_sa_crop_pat1",
        "Ground_truth/training_sa_crop_pat1-label",
    ),
}
COUNTS = {"chd": 68, "mmwhs": 20, "hvsmr": 10}
NAMES = pytest.mark.parametrize("name", TREES)


@NAMES
def test_every_image_has_its_label_and_is_one_patient(name, tmp_path, caplog):
    TREES[name](tmp_path)
    cases = datasets.make(name, raw_dir=tmp_path).cases
    number, image, label = SECOND[name]
    assert len(cases) == COUNTS[name]
    assert cases[1].image_path == tmp_path / f"{image}.nii.gz"
    assert cases[1].label_path == tmp_path / f"{label}.nii.gz"
    assert cases[1].name == cases[1].patient == f"{name}{number}"
    assert caplog.text == ""


@NAMES
def test_folders_may_be_called_and_nested_as_they_are(name, tmp_path):
    TREES[name](tmp_path / "real")
    names = [case.name for case in datasets.make(name, raw_dir=tmp_path / "real").cases]
    _, image, _ = SECOND[name]
    path = tmp_path / "real" / f"{image}.nii.gz"
    moved = tmp_path / "real" / "other name" / "deeper" / path.name
    moved.parent.mkdir(parents=True)
    path.rename(moved)
    (tmp_path / "link").symlink_to("real")
    cases = datasets.make(name, raw_dir=tmp_path).cases  # every file on two ways
    assert [case.name for case in cases] == names
    assert cases[1].image_path.samefile(moved)


@NAMES
def test_unpacked_files_are_read_and_leavings_of_other_systems_are_not(name, tmp_path):
    TREES[name](tmp_path)
    _, image, label = SECOND[name]
    for file in (image, label):
        path = tmp_path / f"{file}.nii.gz"
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.rename(path.with_name(f"._{path.name}"))
    cases = datasets.make(name, raw_dir=tmp_path).cases
    assert cases[1].image_path == tmp_path / f"{image}.nii"
    assert len(cases) == COUNTS[name]


@NAMES
def test_links_in_circles_are_followed_once(name, tmp_path):
    TREES[name](tmp_path)
    (tmp_path / "x").symlink_to(".")
    (tmp_path / "y").symlink_to(".")
    cases = datasets.make(name, raw_dir=tmp_path).cases
    assert cases[1].image_path == tmp_path / f"{SECOND[name][1]}.nii.gz"
    assert len(cases) == COUNTS[name]


@NAMES
def test_a_folder_that_is_called_like_a_volume_is_none(name, tmp_path):
    TREES[name](tmp_path)
    path = tmp_path / f"{SECOND[name][1]}.nii"
    packed = path.with_name(f"{path.name}.gz")
    path.mkdir()
    (path / path.name).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    cases = datasets.make(name, raw_dir=tmp_path).cases
    assert cases[1].image_path == path / path.name
    assert len(cases) == COUNTS[name]


@NAMES
@pytest.mark.parametrize("lacking", ["image", "label"])
def test_a_file_that_is_missing_is_named_with_its_folder(name, lacking, tmp_path):
    TREES[name](tmp_path)
    _, image, label = (tmp_path / f"{part}.nii.gz" for part in SECOND[name])
    missing, left = (image, label) if lacking == "image" else (label, image)
    missing.unlink()
    with pytest.raises(UserError) as error:
        datasets.make(name, raw_dir=tmp_path)
    assert str(error.value) == (
        f"{left} stands alone: expected {missing} too; copy it from the download or"
        " take the other out."
    )


@NAMES
def test_without_any_label_the_first_is_asked_for_beside_its_image(name, tmp_path):
    number, image, label = SECOND[name]
    pair(tmp_path, image, label, (0, 1))
    (tmp_path / f"{label}.nii.gz").unlink()
    folder = (tmp_path / image).parent
    expected = folder / f"{label.rpartition('/')[2]}.nii.gz"
    with pytest.raises(UserError, match=rf"expected {expected} too"):
        datasets.make(name, raw_dir=tmp_path)


@NAMES
@pytest.mark.parametrize("part", [1, 2], ids=["image", "label"])
def test_two_files_of_one_patient_are_refused(name, part, tmp_path):
    TREES[name](tmp_path)
    path = tmp_path / f"{SECOND[name][part]}.nii.gz"
    copy = tmp_path / "zz copy" / path.name
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    stem = path.name.removesuffix(".nii.gz")
    with pytest.raises(UserError, match=rf"{path} and {copy} are both {stem}; take"):
        datasets.make(name, raw_dir=tmp_path)


@NAMES
def test_an_empty_folder_and_none_are_told(name, tmp_path):
    with pytest.raises(
        UserError, match=rf"neither {tmp_path} nor .*\.nii\.gz or anoth"
    ):
        datasets.make(name, raw_dir=tmp_path)
    with pytest.raises(
        UserError, match=rf"no folder {tmp_path}/none \({name}: .*raw_d"
    ):
        datasets.make(name, raw_dir=tmp_path / "none")


@NAMES
def test_other_patients_than_the_papers_are_told_and_taken(name, tmp_path, caplog):
    TREES[name](tmp_path)
    number, image, label = SECOND[name]
    for file in (image, label):
        path = tmp_path / f"{file}.nii.gz"
        path.rename(path.with_name(path.name.replace(number, "2003")))
    cases = datasets.make(name, raw_dir=tmp_path).cases
    assert cases[-1].patient == f"{name}2003"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"{name}: {COUNTS[name]} patients, other than the {COUNTS[name]} of the paper"
        f" (missing: {number}; not among them: 2003); folds and drawn patients differ"
        " from the paper's."
    )


def test_no_patient_of_a_dataset_is_called_as_one_of_another(tmp_path):
    seen = []
    for name, write in {**TREES, "acdc": acdc_tree}.items():
        write(tmp_path / name)
        cases = datasets.make(name, raw_dir=tmp_path / name).cases
        seen += sorted({case.patient for case in cases})
    assert len(seen) == len(set(seen)) == sum(COUNTS.values()) + 12
