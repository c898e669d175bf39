"""The dataset files: what they find, how they pair it, and what they say is missing."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from pclseg.data import datasets, prepare
from pclseg.data.datasets import acdc, base, msd, nifti
from pclseg.errors import UserError


def volume(path, value=0, shape=(4, 5, 3)):
    """Writes an image, or with 4 axes a series, whose content depends on its value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = (np.arange(np.prod(shape)).reshape(shape) * (value + 1)) % 97
    nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), path)


def label(path, values=(0, 1), shape=(4, 5, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.resize(np.asarray(values, np.int16), shape)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def pairs(dataset):
    """{image file: label file or None}"""
    return {
        case.image_path.name: case.label_path and case.label_path.name
        for case in dataset.cases
    }


# What all share.


def test_natural_order_counts_digits_as_numbers():
    names = ["case_10", "case_9", "case_04", "Case_1", "case_4b", "case"]
    ordered = sorted(names, key=base.natural_key)
    assert ordered == ["Case_1", "case", "case_04", "case_4b", "case_9", "case_10"]


def test_label_values_are_scanned_with_0_first(tmp_path):
    label(tmp_path / "a.nii.gz", (5, 2))
    label(tmp_path / "b.nii.gz", (-1, 420))
    (tmp_path / "broken.nii.gz").write_bytes(b"no gzip")
    assert base.scan_label_values(base.nifti_files(tmp_path)) == (0, -1, 2, 5, 420)


def test_scaled_label_values_count_as_whole_as_they_do_when_loaded(tmp_path):
    scaled = nib.Nifti1Image(np.resize(np.arange(4.0), (4, 5, 3)), np.eye(4))
    scaled.set_data_dtype(np.int16)  # with a slope, so 1 is read as 0.99998
    nib.save(scaled, tmp_path / "a.nii.gz")
    assert 1 not in scaled.from_filename(tmp_path / "a.nii.gz").get_fdata()
    assert base.scan_label_values([tmp_path / "a.nii.gz"]) == (0, 1, 2, 3)


def test_files_that_hold_no_label_values_are_passed_over(tmp_path):
    label(tmp_path / "a.nii.gz", (0, 2))
    volume(tmp_path / "b.nii.gz")
    colours = np.zeros((4, 5, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "colours.nii.gz")
    odd = np.asarray([[[np.nan, np.inf, 0.5]]])
    nib.save(nib.Nifti1Image(odd, np.eye(4)), tmp_path / "odd.nii.gz")
    content = bytearray(gzip.decompress((tmp_path / "odd.nii.gz").read_bytes()))
    content[108:112] = np.float32(np.inf).tobytes()  # vox_offset
    (tmp_path / "offset.nii").write_bytes(content)
    paths = [tmp_path / name for name in ("colours.nii.gz", "odd.nii.gz", "offset.nii")]
    assert base.scan_label_values([tmp_path / "a.nii.gz", *paths]) == (0, 2)
    assert base.num_frames(tmp_path / "offset.nii") == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("α", "α"),
        ("张三 1", "张三_1"),
        ("Mu\u0308ller", "M\u00fcller"),
        ("_a/b:c*.", "a_b_c"),
        ("$", ""),
    ],
)
def test_names_keep_the_letters_of_all_scripts(text, name):
    assert base.safe_name(text) == name


def test_a_file_without_letter_or_digit_in_its_name_is_refused(tmp_path):
    volume(tmp_path / "$.nii.gz")
    with pytest.raises(UserError, match=r"'', made from .*\$\.nii\.gz, cannot name"):
        nifti.make(raw_dir=tmp_path, images="*")


def test_datasets_are_the_files_of_the_folder():
    assert {"acdc", "msd", "nifti", "phantom"} <= set(datasets.names())
    assert "base" not in datasets.names()


def test_an_unknown_dataset_lists_all_and_names_the_nearest(tmp_path):
    expected = r"'adcd'; known datasets are: acdc, .*\. Did you mean 'acdc'\?"
    with pytest.raises(UserError, match=expected):
        datasets.make("adcd", raw_dir=tmp_path)


def test_an_unknown_option_lists_all_and_names_the_nearest(tmp_path):
    expected = r"no option .*image; .* are: images, .*\. Did you mean 'images'\?"
    with pytest.raises(UserError, match=expected):
        datasets.make("nifti", raw_dir=tmp_path, image="*.nii.gz")


def test_a_class_name_that_is_repeated_is_refused(tmp_path):
    case = base.Case(
        name="a", patient="p", frame="", image_path=tmp_path, label_path=None
    )
    with pytest.raises(UserError, match=r"class_names repeats one: \('b', 'a', 'a'\)"):
        base.Dataset(
            name="x",
            cases=(case,),
            class_names=("b", "a", "a"),
            label_values=(0, 1, 2),
        )


def test_two_volumes_of_one_name_are_refused(tmp_path):
    case = base.Case(
        name="a", patient="p", frame="", image_path=tmp_path, label_path=None
    )
    with pytest.raises(UserError, match="2 volumes would be called 'a'"):
        base.Dataset(
            name="x", cases=(case, case), class_names=("b",), label_values=(0,)
        )


# ACDC.


def patient(root, number, frames=(1, 12), series=0):
    name = f"patient{number:03d}"
    folder = root / "training" / name
    for frame in frames:
        volume(folder / f"{name}_frame{frame:02d}.nii.gz")
        label(folder / f"{name}_frame{frame:02d}_gt.nii.gz", (0, 1, 2, 3))
    if series:
        volume(folder / f"{name}_4d.nii.gz", shape=(4, 5, 3, series))
    lines = f"Group: DCM\nES: {frames[1]}\nNbFrame: 30\nED: {frames[0]}\n"
    (folder / "Info.cfg").write_text(lines)  # ES before ED: order must not matter
    return folder


@pytest.mark.parametrize("inner", ["", "training"])
def test_acdc_finds_ed_and_es_by_key_and_every_4d_frame(tmp_path, inner):
    patient(tmp_path, 10)
    patient(tmp_path, 2, frames=(4, 11), series=3)
    (tmp_path / "training" / "notes").mkdir()
    found = acdc.make(raw_dir=tmp_path / inner)
    assert [case.name for case in found.cases] == [
        "patient002_4d_frame00",
        "patient002_4d_frame01",
        "patient002_4d_frame02",
        "patient002_frame04",
        "patient002_frame11",
        "patient010_frame01",
        "patient010_frame12",
    ]
    assert [case.time_index for case in found.cases] == [0, 1, 2, *[None] * 4]
    assert [case.frame for case in found.cases] == "00 01 02 ED ES ED ES".split()
    assert [case.label_path is None for case in found.cases] == [True] * 3 + [False] * 4
    assert [case.in_series for case in found.cases] == (
        [False] * 3 + [True] * 2 + [False] * 2
    )
    assert {case.patient for case in found.cases} == {"patient002", "patient010"}
    assert found.label_values == (0, 1, 2, 3)
    assert found.class_names[1] == "right ventricle"


def test_acdc_reads_unpacked_files_too(tmp_path):
    folder = patient(tmp_path, 1)
    for path in folder.glob("*.nii.gz"):
        nib.save(nib.load(path), folder / path.name.removesuffix(".gz"))
        path.unlink()
    assert len(acdc.make(raw_dir=tmp_path).cases) == 2


def test_acdc_marks_patients_of_median_spacing(tmp_path):
    patient(tmp_path, 1)
    patient(tmp_path, 2)
    (tmp_path / "spacing.csv").write_text(
        "patient,sx_mm,spacing_from\n"
        "patient001,1.5,median (unknown)\npatient002,1.4,fingerprint\n"
    )
    found = acdc.make(raw_dir=tmp_path)
    assert [case.spacing_known for case in found.cases] == [False, False, True, True]


def test_acdc_is_found_from_inside_of_training(tmp_path, monkeypatch):
    folder = patient(tmp_path, 1)
    (tmp_path / "spacing.csv").write_text("patient,spacing_from\npatient001,median\n")
    for place, raw_dir in ((folder.parent, "."), (folder, "..")):
        monkeypatch.chdir(place)
        found = acdc.make(raw_dir=raw_dir)
        assert [case.spacing_known for case in found.cases] == [False, False]


def test_acdc_reads_tables_as_other_programs_write_them(tmp_path):
    folder = patient(tmp_path, 1)
    (folder / "Info.cfg").write_bytes(b"\xef\xbb\xbfED: 1\nES: 12\nGroup: M\xfcller\n")
    (tmp_path / "spacing.csv").write_text("patient,spacing_from\npatient001\n\n")
    assert all(case.spacing_known for case in acdc.make(raw_dir=tmp_path).cases)
    (tmp_path / "spacing.csv").write_text("")
    with pytest.raises(UserError, match=r"spacing\.csv needs .* it has none"):
        acdc.make(raw_dir=tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "Info.cfg").unlink(), "patient001/Info.cfg is missi"),
        (
            lambda folder: (folder / "Info.cfg").write_text("ED: 1\n"),
            "Info.cfg has no line 'ES: <frame number>'",
        ),
        (
            lambda folder: (folder / "patient001_frame12_gt.nii.gz").unlink(),
            "training/patient001 lacks patient001_frame12_gt.nii.gz",
        ),
        (
            lambda folder: folder.rename(folder.with_name("p1")),
            "training holds no patient folder",
        ),
        (
            lambda folder: folder.parent.rename(folder.parent.with_name("train")),
            "there is no folder .*/training",
        ),
    ],
)
def test_acdc_names_what_is_missing(tmp_path, spoil, message):
    spoil(patient(tmp_path, 1))
    with pytest.raises(UserError, match=message):
        acdc.make(raw_dir=tmp_path)


# Medical Segmentation Decathlon, nnU-Net.


def task(root, suffix="", train=(1, 2, 10), test=(3,), values=(0, 1, 2)):
    for number in train:
        volume(root / "imagesTr" / f"organ_{number}{suffix}.nii.gz", number)
        label(root / "labelsTr" / f"organ_{number}.nii.gz", values)
    for number in test:
        volume(root / "imagesTs" / f"organ_{number}{suffix}.nii.gz", number)
    (root / "imagesTr" / "._organ_1.nii.gz").write_bytes(b"of macOS")
    return root


ORGANS = {
    f"organ_{n}.nii.gz": (f"organ_{n}.nii.gz" if n != 3 else None)
    for n in (1, 2, 3, 10)
}


def index(root, **content):
    (root / "dataset.json").write_text(json.dumps(content))


def test_msd_without_json_scans_the_labels(tmp_path):
    found = msd.make(raw_dir=task(tmp_path / "Task99_Organ", values=(0, 4, 2)))
    assert pairs(found) == ORGANS
    assert [case.name for case in found.cases] == [
        "organ_1",
        "organ_2",
        "organ_10",
        "organ_3",
    ]
    assert [case.patient for case in found.cases] == [c.name for c in found.cases]
    assert found.label_values == (0, 2, 4)
    assert found.class_names == ("background", "label 2", "label 4")
    assert found.name == "task99_organ"


def test_msd_with_json_takes_its_lists_and_names(tmp_path):
    task(tmp_path)
    index(
        tmp_path,
        labels={"0": "background", "2": "tumour", "1": "liver"},
        training=[
            {
                "image": f"./imagesTr/organ_{n}.nii.gz",
                "label": f"./labelsTr/organ_{n}.nii.gz",
            }
            for n in (10, 2, 1)
        ],
        test=["./imagesTs/organ_3.nii.gz"],
    )
    found = msd.make(raw_dir=tmp_path)
    assert pairs(found) == ORGANS
    assert found.label_values == (0, 1, 2)
    assert found.class_names == ("background", "liver", "tumour")


def test_an_nnunet_raw_folder_is_read(tmp_path):
    task(tmp_path, suffix="_0000")
    index(
        tmp_path,
        channel_names={"0": "CT"},
        labels={"background": 0, "liver": 1, "tumour": 2},
        numTraining=3,
        file_ending=".nii.gz",
    )
    found = msd.make(raw_dir=tmp_path)
    assert pairs(found) == {
        name.replace(".nii", "_0000.nii"): other for name, other in ORGANS.items()
    }
    assert {case.name for case in found.cases} == {f"organ_{n}" for n in (1, 2, 3, 10)}
    assert found.class_names == ("background", "liver", "tumour")


@pytest.mark.parametrize("stray", [False, True])
def test_an_nnunet_raw_folder_of_version_1_is_read(tmp_path, stray):
    task(tmp_path, suffix="_0000")
    index(
        tmp_path,
        modality={"0": "CT"},
        labels={"0": "background", "1": "liver", "2": "tumour"},
        training=[
            {
                "image": f"./imagesTr/organ_{n}.nii.gz",
                "label": f"./labelsTr/organ_{n}.nii.gz",
            }
            for n in (1, 2, 10)
        ],
        test=["./imagesTs/organ_3.nii.gz"],
    )
    if stray:
        label(tmp_path / "labelsTr" / "organ_4.nii.gz")
        with pytest.raises(UserError, match=r"organ_4\.nii\.gz has no image"):
            msd.make(raw_dir=tmp_path)
        return
    found = msd.make(raw_dir=tmp_path)
    assert {case.name for case in found.cases} == {f"organ_{n}" for n in (1, 2, 3, 10)}
    assert pairs(found)["organ_10_0000.nii.gz"] == "organ_10.nii.gz"
    assert found.class_names == ("background", "liver", "tumour")


def test_empty_entries_of_dataset_json_are_as_none(tmp_path):
    index(task(tmp_path), labels=None, training=None, test=None)
    assert pairs(msd.make(raw_dir=tmp_path)) == ORGANS


def test_a_case_number_of_four_digits_is_no_channel(tmp_path):
    for number in (0, 1, 2):
        volume(tmp_path / "imagesTr" / f"lung_{number:04d}.nii.gz")
        label(tmp_path / "labelsTr" / f"lung_{number:04d}.nii.gz")
    assert len(msd.make(raw_dir=tmp_path).cases) == 3


def test_channels_must_be_chosen_from(tmp_path):
    task(tmp_path, suffix="_0000", test=())
    for number in (1, 2, 10):
        volume(tmp_path / "imagesTr" / f"organ_{number}_0001.nii.gz")
    with pytest.raises(UserError, match=r"2 channels .*options\.channels=\(0,\)"):
        msd.make(raw_dir=tmp_path)
    found = msd.make(raw_dir=tmp_path, channels=(1,))
    assert "organ_10_0001.nii.gz" in pairs(found)
    with pytest.raises(UserError, match=r"channels is \(2,\), but organ_1 .* \[0, 1\]"):
        msd.make(raw_dir=tmp_path, channels=(2,))
    both = msd.make(raw_dir=tmp_path, channels=(1, 0))
    for case in both.cases:
        assert [path.name for path, _ in case.channels] == [
            f"{case.name}_0001.nii.gz",
            f"{case.name}_0000.nii.gz",
        ]
    (tmp_path / "imagesTr" / "organ_2_0001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"organ_2 has the channels \[0\]"):
        msd.make(raw_dir=tmp_path, channels=(0, 1))


def test_channels_of_a_4d_image_must_be_chosen_from(tmp_path):
    volume(tmp_path / "imagesTr" / "a.nii.gz", shape=(4, 5, 3, 4))
    label(tmp_path / "labelsTr" / "a.nii.gz")
    with pytest.raises(UserError, match=r"a\.nii\.gz has 4 channels; choose with"):
        msd.make(raw_dir=tmp_path)
    assert msd.make(raw_dir=tmp_path, channels=(2,)).cases[0].time_index == 2
    (case,) = msd.make(raw_dir=tmp_path, channels=(3, 0)).cases
    assert [index for _, index in case.channels] == [3, 0]
    with pytest.raises(UserError, match=r"channels is \(4,\)"):
        msd.make(raw_dir=tmp_path, channels=(4,))
    for odd in ((0, 0), (-1,), 0, "0", (True,), (0.0,)):
        with pytest.raises(UserError, match="expected different numbers from 0"):
            msd.make(raw_dir=tmp_path, channels=odd)


def test_an_image_of_the_training_folder_without_label_is_unlabelled(tmp_path):
    task(tmp_path, test=())
    (tmp_path / "labelsTr" / "organ_2.nii.gz").unlink()
    assert pairs(msd.make(raw_dir=tmp_path))["organ_2.nii.gz"] is None


def test_a_missing_image_of_nnunet_is_named_with_its_channel(tmp_path):
    task(tmp_path, suffix="_0000", test=())
    (tmp_path / "imagesTr" / "organ_2_0000.nii.gz").unlink()
    expected = r"organ_2\.nii\.gz has no image: .*imagesTr/organ_2_0000\.nii\.gz;"
    with pytest.raises(UserError, match=expected):
        msd.make(raw_dir=tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "imagesTr" / "organ_2.nii.gz").unlink(),
            "labelsTr/organ_2.nii.gz has no image: expected .*imagesTr/organ_2.nii.gz",
        ),
        (
            lambda root: (root / "imagesTr").rename(root / "images"),
            "there is no folder .*imagesTr",
        ),
        (
            lambda root: (root / "dataset.json").write_text("{"),
            "dataset.json is not valid JSON",
        ),
        (lambda root: index(root, labels={"a": [1, 2]}), "one whole number with each"),
        (lambda root: index(root, labels={"ignore": 3}), "'ignore' label"),
        (
            lambda root: index(root, training=["./imagesTr/organ_1.nii.gz"]),
            "an entry of 'training' is",
        ),
        (
            lambda root: index(root, training=[{"image": "no.nii", "label": "a.nii"}]),
            "lists .*no.nii, which does not exist",
        ),
        (lambda root: index(root, labels=5), "one whole number with each"),
        (lambda root: index(root, training=5), "an entry of 'training' is 5"),
        (
            lambda root: index(root, training=[{"image": 5, "label": "a.nii"}]),
            "an entry of 'training' is {'image': 5",
        ),
        (
            lambda root: index(
                root, training=[{"image": "a", "label": "a"}], test=[None]
            ),
            "an entry of 'test' is None; expected \"./imagesTs",
        ),
    ],
)
def test_msd_names_what_is_wrong(tmp_path, spoil, message):
    spoil(task(tmp_path))
    with pytest.raises(UserError, match=message):
        msd.make(raw_dir=tmp_path)


# Patterns.


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/case_{}.nii.gz", "labels/case_{}.nii.gz"),
        ("case_{}_image.nii.gz", "case_{}_label.nii.gz"),
        ("images/case_{}_0000.nii.gz", "labels/case_{}.nii.gz"),
        ("img{}.nii.gz", "label{}.nii.gz"),
        ("volume-{}.nii", "segmentation-{}.nii"),
        ("case_{}.nii.gz", "case_{}_gt.nii.gz"),
        ("sub-{}/img.nii.gz", "sub-{}/seg.nii.gz"),
        ("imagesTr/p{}/t2.nii.gz", "labelsTr/p{}/t2.nii.gz"),
        ("sub{}/ses1/t1.nii.gz", "sub{}/ses1/seg.nii.gz"),
        ("B_{0}/B_{0}_t1.nii.gz", "B_{0}/B_{0}_seg.nii.gz"),
        (
            "sub-{0}/ses-a/anat/sub-{0}_ses-a_run-2_T2w.nii.gz",
            "derivatives/hand/sub-{0}/ses-a/anat/"
            "sub-{0}_ses-a_run-2_space-orig_desc-tumour_dseg.nii.gz",
        ),
    ],
)
def test_images_and_labels_are_paired_by_what_their_names_share(tmp_path, image, mask):
    for number in (1, 2, 10, 11):
        volume(tmp_path / image.format(number))
        if number != 11:
            label(tmp_path / mask.format(number))
    found = nifti.make(
        raw_dir=tmp_path, images=image.format(*"**"), labels=mask.format(*"**")
    )
    expected = [
        (
            tmp_path / image.format(number),
            None if number == 11 else tmp_path / mask.format(number),
        )
        for number in (1, 2, 10, 11)
    ]
    assert [(case.image_path, case.label_path) for case in found.cases] == expected
    assert len({case.patient for case in found.cases}) == 4


def test_bids_sessions_and_runs_are_told_apart_and_patients_are_the_subjects(tmp_path):
    for subject, session in (("01", "a"), ("01", "b"), ("02", "a")):
        name = f"sub-{subject}_ses-{session}"
        folder = f"sub-{subject}/ses-{session}/anat"
        for run in (1, 2):
            volume(tmp_path / folder / f"{name}_run-{run}_bold.nii.gz")
            mask = tmp_path / "derivatives" / "hand" / folder
            label(mask / f"{name}_run-{run}_desc-hand_dseg.nii.gz")
        volume(tmp_path / folder / f"{name}_T1w.nii.gz")
    found = nifti.make(
        raw_dir=tmp_path,
        images="sub-*/**/*_bold.nii.gz",
        labels="derivatives/hand/**/*_dseg.nii.gz",
        patient=r"(sub-[^_/]+)",
    )
    assert {case.patient for case in found.cases} == {"sub-01", "sub-02"}
    assert len(found.cases) == 6
    for case in found.cases:
        assert case.label_path.name.startswith(case.name.removesuffix("bold"))


def test_match_pairs_names_that_share_only_a_number(tmp_path):
    for number in ("07", "08"):
        volume(tmp_path / "images" / f"scan_A_{number}_t2.nii.gz")
        label(tmp_path / "labels" / f"reader2-{number}.nii.gz")
    options = dict(raw_dir=tmp_path, images="images", labels="labels")
    with pytest.raises(UserError, match=r"reader2-07.* matches no image \(the nearest"):
        nifti.make(**options)
    found = nifti.make(**options, match=r"[-_](\d\d)\b|[-_](\d\d)_")
    assert pairs(found) == {
        f"scan_A_{number}_t2.nii.gz": f"reader2-{number}.nii.gz"
        for number in ("07", "08")
    }


@pytest.mark.parametrize(
    "images", ["data/*", "link/*", "link/../data/*", "**/*", "twice"]
)
def test_a_file_is_taken_once_however_it_is_spelled(tmp_path, images):
    volume(tmp_path / "data" / "a.nii.gz")
    label(tmp_path / "data" / "a_seg.nii.gz")
    (tmp_path / "link").symlink_to("data")
    twice = ["data/a*", f"{tmp_path}/link/*"]
    found = nifti.make(
        raw_dir=tmp_path,
        images=twice if images == "twice" else images,
        labels=["data/*_seg.nii.gz", f"{tmp_path}/data/../link/*_seg.nii.gz"],
    )
    (case,) = found.cases
    assert case.name.endswith("a")
    assert pairs(found) == {"a.nii.gz": "a_seg.nii.gz"}


def test_a_label_with_several_images_in_its_folder_is_an_error(tmp_path):
    for number in (1, 2):
        for kind in ("t1", "t2"):
            volume(tmp_path / f"B_{number}" / f"B_{number}_{kind}.nii.gz")
        label(tmp_path / f"B_{number}" / f"B_{number}_seg.nii.gz")
    with pytest.raises(UserError, match=r"B_1_seg.* matches both .*B_1_t1.*B_1_t2"):
        nifti.make(raw_dir=tmp_path, images="*/*_t?.nii.gz", labels="*/*_seg.nii.gz")


def test_one_label_without_image_is_named_though_all_lie_in_one_folder(tmp_path):
    for name in ("a", "b", "c"):
        volume(tmp_path / f"{name}.nii.gz")
    for name in ("a", "b", "d"):
        label(tmp_path / f"{name}_seg.nii.gz")
    with pytest.raises(UserError, match=r"d_seg\.nii\.gz matches no image .*; narrow"):
        nifti.make(raw_dir=tmp_path, images="*", labels="*_seg*")


def test_a_label_without_image_is_an_error(tmp_path):
    volume(tmp_path / "images" / "a.nii.gz")
    label(tmp_path / "labels" / "a.nii.gz")
    label(tmp_path / "labels" / "b.nii.gz")
    with pytest.raises(UserError, match=r"labels/b\.nii\.gz matches no image .*match"):
        nifti.make(raw_dir=tmp_path, images="images", labels="labels")


def test_an_ambiguous_label_is_an_error(tmp_path):
    volume(tmp_path / "images" / "a_0000.nii.gz")
    volume(tmp_path / "images" / "a_0001.nii.gz")
    label(tmp_path / "labels" / "a.nii.gz")
    expected = r"labels/a\.nii\.gz matches both .*a_0000\.nii\.gz and .*a_0001"
    with pytest.raises(UserError, match=expected):
        nifti.make(raw_dir=tmp_path, images="images", labels="labels")


def test_two_labels_of_one_image_are_an_error(tmp_path):
    volume(tmp_path / "a.nii.gz")
    label(tmp_path / "a_seg.nii.gz")
    label(tmp_path / "a_mask.nii.gz")
    with pytest.raises(UserError, match="both match .*a.nii.gz"):
        nifti.make(
            raw_dir=tmp_path, images="a.nii.gz", labels=("*_seg.*", "*_mask.nii.gz")
        )


def test_a_4d_file_is_frames_of_one_patient(tmp_path):
    volume(tmp_path / "cine.nii.gz", shape=(4, 5, 3, 2))
    label(tmp_path / "cine_label.nii.gz", shape=(4, 5, 3, 2))
    volume(tmp_path / "single.nii.gz", shape=(4, 5, 3, 1))
    found = nifti.make(raw_dir=tmp_path, images="*.nii.gz", labels="*_label.nii.gz")
    assert [(c.name, c.patient, c.time_index) for c in found.cases] == [
        ("cine_frame00", "cine", 0),
        ("cine_frame01", "cine", 1),
        ("single", "single", None),
    ]


def test_a_4d_image_needs_a_label_for_each_frame(tmp_path):
    volume(tmp_path / "cine.nii.gz", shape=(4, 5, 3, 2))
    label(tmp_path / "cine_label.nii.gz")
    with pytest.raises(UserError, match=r"has 2 frame\(s\) and its label .* has 1"):
        nifti.make(raw_dir=tmp_path, images="cine.nii.gz", labels="*_label.nii.gz")


def test_patients_come_from_a_pattern(tmp_path):
    for name in ("s1_v1", "s1_v2", "s2_v1"):
        volume(tmp_path / f"{name}.nii.gz")
    options = dict(raw_dir=tmp_path, images="*")
    for pattern in (r"(s\d)_v", r"(?P<patient>s\d)_(v\d)"):
        found = nifti.make(**options, patient=pattern)
        assert [case.patient for case in found.cases] == ["s1", "s1", "s2"]
    with pytest.raises(UserError, match="without a group"):
        nifti.make(**options, patient=r"s\d")
    with pytest.raises(UserError, match="finds nothing in .*s2_v1.nii.gz"):
        nifti.make(**options, patient=r"(s1)")
    with pytest.raises(UserError, match="not a regular expression"):
        nifti.make(**options, patient="(")


def test_patients_come_from_a_table(tmp_path):
    for name in ("a", "b"):
        volume(tmp_path / f"{name}.nii.gz")
    table = tmp_path / "patients.csv"
    options = dict(raw_dir=tmp_path, images="*", patient_csv="patients.csv")
    table.write_text("\ufefffile,patient\na.nii.gz,p1\nb,p1\n", encoding="utf-8")
    assert {case.patient for case in nifti.make(**options).cases} == {"p1"}
    table.write_text("file,patient\na.nii.gz,p1\n")
    with pytest.raises(UserError, match="has no patient for .*b.nii.gz"):
        nifti.make(**options)
    table.write_text("file,patient\na,p1\na,p2\nb,p1\n")
    with pytest.raises(UserError, match="gives a two patients"):
        nifti.make(**options)
    table.write_text("name;patient\n")
    with pytest.raises(UserError, match=r"needs .* file and patient .*name;patient\."):
        nifti.make(**options)
    table.write_text("file , patient\na,p\nb ,p \n\n")
    assert {case.patient for case in nifti.make(**options).cases} == {"p"}
    table.write_text("file,patient\na,p\nb\n")
    with pytest.raises(UserError, match="has no patient for .*b.nii.gz"):
        nifti.make(**options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "needs the columns file and patient .* it has none"),
        ("file,patient\na,Müller\n".encode("latin-1"), "save it as CSV in UTF-8"),
        ("file,patient\na,p\n".encode("utf-16"), "save it as CSV in UTF-8"),
        (b"file,patient\na," + b"x" * 200000, "save it as CSV in UTF-8"),
    ],
    ids=["empty", "latin-1", "utf-16", "no CSV"],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, content, message):
    volume(tmp_path / "a.nii.gz")
    (tmp_path / "patients.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"patients\.csv .*{message}"):
        nifti.make(raw_dir=tmp_path, images="*", patient_csv="patients.csv")


def test_given_values_and_names_are_taken(tmp_path):
    volume(tmp_path / "a.nii.gz")
    found = nifti.make(
        raw_dir=tmp_path,
        images=["*.nii.gz"],
        label_values=(0, 205),
        class_names=("background", "myocardium"),
    )
    assert found.label_values == (0, 205)
    with pytest.raises(UserError, match="has 1 names for the 2 label values"):
        nifti.make(
            raw_dir=tmp_path, images="*", label_values=(0, 205), class_names=("a",)
        )


def test_a_pattern_that_finds_nothing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"images: 'x/\*\.nii\.gz' finds no .* from "):
        nifti.make(raw_dir=tmp_path, images="x/*.nii.gz")
    with pytest.raises(UserError, match="there is no folder .*none"):
        nifti.make(raw_dir=tmp_path / "none", images="*")


# The same volumes through every door.


def test_patterns_nnunet_and_msd_prepare_the_same_arrays(tmp_path):
    task(tmp_path / "msd")
    index(
        tmp_path / "msd",
        labels={"0": "background", "1": "a", "2": "b"},
        training=[
            {
                "image": f"./imagesTr/organ_{n}.nii.gz",
                "label": f"./labelsTr/organ_{n}.nii.gz",
            }
            for n in (1, 2, 10)
        ],
        test=["./imagesTs/organ_3.nii.gz"],
    )
    task(tmp_path / "nnunet", suffix="_0000")
    index(
        tmp_path / "nnunet",
        channel_names={"0": "CT"},
        labels={"background": 0, "a": 1, "b": 2},
    )
    doors = [
        msd.make(raw_dir=tmp_path / "msd"),
        msd.make(raw_dir=tmp_path / "nnunet"),
        nifti.make(
            raw_dir=tmp_path / "nnunet", images="images*/*.nii.gz", labels="labelsTr/*"
        ),
    ]
    options = prepare.Options(
        slice_axis="auto",
        spacing=(1.1, 1.1),
        clip_percentiles=(0.0, 100.0),
        integers=False,
        replace_below=(),
        image_order=3,
        label_order=1,
    )
    for dataset in doors:
        assert {case.name for case in dataset.cases} >= {"organ_1", "organ_10"}
        assert len(dataset.cases) == 4
        for case in dataset.cases:
            file = case.image_path.name.replace("_0000", "")
            same = next(c for c in doors[0].cases if c.image_path.name == file)
            ours = prepare.prepare_case(case, options, dataset.label_values)
            theirs = prepare.prepare_case(same, options, doors[0].label_values)
            np.testing.assert_array_equal(ours.image, theirs.image)
            assert (ours.label is None) == (theirs.label is None)
            if ours.label is not None:
                np.testing.assert_array_equal(ours.label, theirs.label)


# The real sets.


@pytest.mark.data
def test_the_real_acdc_has_80_patients_of_two_frames(shared_data):
    found = acdc.make(raw_dir=shared_data / "ACDC")
    assert len(found.cases) == 160
    assert len({case.patient for case in found.cases}) == 80
    unknown = {case.patient for case in found.cases if not case.spacing_known}
    assert len(unknown) == 20
    assert {"patient002", "patient003"} <= unknown
    assert "patient005" not in unknown


@pytest.mark.data
def test_the_real_hippocampus_task_has_three_classes(shared_data):
    found = msd.make(raw_dir=shared_data / "Task04_Hippocampus")
    assert len(found.cases) == 200
    assert found.label_values == (0, 1, 2)
    assert found.cases[0].name == "hippocampus_003"
    assert all(case.label_path is not None for case in found.cases)
