"""Whose a volume is, and which names look like scans of one patient."""

import pytest
from tiny_nifti import ROOT, image, label, write
from volume_facts import dataset, facts

from pclseg import cohort
from pclseg.config import load_config
from pclseg.data import fitness, splits
from pclseg.data.datasets import msd
from pclseg.data.patients import look_alike
from pclseg.errors import UserError

ACDC = [f"patient{n:03d}_frame{f:02d}" for n in (1, 2, 10) for f in (1, 12)]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (ACDC, [ACDC[0:2], ACDC[2:4], ACDC[4:6]]),
        (["sub-01_ses-1_T1w", "sub-01_ses-2_T2w", "sub-02_T1w"], [0, 1]),
        (["sub-01/anat", "sub-1_x", "sub-011_x"], []),
        (["a_tp1", "a_tp2", "a", "b_tp1"], [2, 0, 1]),
        (["x-ED", "x-ES", "y-ED"], [0, 1]),
        (["a.Visit2", "a.visit3", "c"], [0, 1]),
        (["scan_run1", "scan_run2"], []),  # of one base, which names no patient
        (["liver_1", "liver_2", "liver_3"], []),
        (["hippocampus_001", "hippocampus_002"], []),
        (["speed_1", "speed_2", "frames3", "frames4"], []),
        (["case_t1", "case_t2", "other"], []),
        ([], []),
    ],
)
def test_scans_of_one_patient_are_told_by_their_names(names, groups):
    if groups and isinstance(groups[0], int):
        groups = [[names[number] for number in groups]]
    assert look_alike(names) == groups
    assert look_alike([*names[::-1], *names]) == groups  # in any order, any count


def nnunet(root, names):
    for seed, name in enumerate(names):
        write(root / f"imagesTr/{name}_0000.nii.gz", image((12, 10, 4), seed=seed))
        write(root / f"labelsTr/{name}.nii.gz", label((12, 10, 4)))
    return root


def test_frames_of_a_patient_in_an_nnunet_folder_can_be_one_patients(tmp_path):
    root = nnunet(tmp_path / "Dataset027_ACDC", ACDC)
    by_file = msd.make(raw_dir=root)
    assert [case.patient for case in by_file.cases] == ACDC
    found = msd.make(raw_dir=root, patient=r"(patient\d+)")
    assert [case.patient for case in found.cases] == [name[:10] for name in ACDC]
    assert [case.name for case in found.cases] == ACDC
    rows = "".join(f"{name}_0000.nii.gz,{name[:10]}\n" for name in ACDC)
    (root / "who.csv").write_text("file,patient\n" + rows)
    assert msd.make(raw_dir=root, patient_csv="who.csv") == found
    with pytest.raises(UserError, match="patient: .*finds nothing in .*patient001"):
        msd.make(raw_dir=root, patient="(sub-.)")
    with pytest.raises(UserError, match="one of config.data.options.patient and"):
        msd.make(raw_dir=root, patient="(p)", patient_csv="who.csv")


def alike(volumes):
    found = fitness.findings(dataset(volumes), volumes, fitness.Plans())
    return [str(each) for each in found if "look like one" in each.what]


def test_check_warns_of_patients_that_look_like_one():
    by_file = [facts(name) for name in ACDC]
    by_patient = [facts(name, patient=name[:10]) for name in ACDC]
    assert not alike(by_patient)
    (line,) = alike(by_file)
    assert line.startswith("patients patient001_frame01, patient001_frame12 look")
    assert "and 2 more such groups" in line and "options.patient" in line


def split(**parts):
    names = ("train", "labelled", "validation", "test", "unlabelled")
    return splits.Split(**{name: tuple(parts.get(name, ())) for name in names})


def test_a_run_warns_where_they_are_on_both_sides():
    data = load_config(f"{ROOT}/configs/pcl_acdc.py").data
    one_side = split(train=ACDC[:4], validation=ACDC[4:])
    assert cohort.remarks(data, [], one_side) == []
    for apart in (
        split(train=ACDC[:3], validation=ACDC[3:]),
        split(train=ACDC[:2], unlabelled=ACDC[2:3], test=ACDC[3:]),
    ):
        (line,) = cohort.remarks(data, [], apart)
        assert f"{ACDC[2]}, to train on, and {ACDC[3]}, held out, look like one" in line
