"""A config written for somebody's volumes: its choices, and that it runs as it is."""

import ast
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_nifti import (
    InlinePool,
    call_main,
    clean_process,
    image,
    nifti_tree,
    write,
)
from volume_facts import dataset, facts

from pclseg import choices, templating
from pclseg.cli import init
from pclseg.config import load_config
from pclseg.data import examine, workers
from pclseg.data.check import Checked
from pclseg.data.examine import PROFILE

GIB = 2**30


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data/ of six labelled volumes."""
    nifti_tree(tmp_path / "data")
    monkeypatch.setattr(workers.futures, "ProcessPoolExecutor", InlinePool)
    return tmp_path


def call(place, capsys, *more, out="mine.py"):
    args = [str(place / "data"), "--images=images", "--labels=labels"]
    with clean_process():
        status = init.main([*args, f"--out={place / out}", *more])
        text = capsys.readouterr().err
    assert "Traceback" not in text
    return status, text


@pytest.mark.parametrize("arm", ["pcl", "scratch"])
def test_the_config_runs_as_it_is(place, capsys, arm):
    status, text = call(place, capsys)
    assert status == 0 and f"pclseg train --config={place / 'mine.py'}" in text
    stages = ("pretrain", "finetune") if arm == "pcl" else ("finetune",)
    file = f"{place / 'mine.py'}:arm={arm},labelled=2"
    config = load_config(file)
    assert config.stages == stages and config.arm == arm
    assert config.finetune.model.num_classes == 3
    assert config.data.prepare.slice_axis == 2  # 8 mm, the others 1.5
    status, text = call_main(capsys, f"--config={file}", "--dry_run", "--devices=1")
    assert status == 0, text
    assert "6 volumes, 6 labelled, classes background, label 1, label 2" in text


def test_the_file_is_readable_and_says_why(place, capsys):
    call(place, capsys)
    lines = (place / "mine.py").read_text().splitlines()
    assert max(len(x) for x in lines if str(place) not in x) <= 88
    text = "\n".join(lines)
    for reason in (
        "# Bottom to top: the thickest slices.",
        "# 32 x 32 pixels, a multiple of 16",
        "# Keeps the pixels of the files, which agree.",
        "# 0.35 of a volume's height: 2 slices up and down of 5",
    ):
        assert reason in text, text
    assert not [x for x in lines if x.strip().startswith("# ") and x.endswith("..")]


def test_an_existing_file_is_kept_unless_asked(place, capsys):
    (place / "mine.py").write_text("mine")
    status, text = call(place, capsys)
    assert status == 1 and "exists; --overwrite replaces it" in text
    assert (place / "mine.py").read_text() == "mine"
    assert call(place, capsys, "--overwrite")[0] == 0
    assert "get_config" in (place / "mine.py").read_text()


def test_nothing_is_written_for_data_that_would_not_train(place, capsys):
    write(place / "data" / "images" / "case00.nii.gz", image((20, 18, 4)))
    status, text = call(place, capsys)
    assert (
        status == 1
        and "nothing was written: mend what is marked as error above (1)" in text
    )
    assert not (place / "mine.py").exists()


def test_volumes_without_any_label_are_refused(place, capsys):
    for path in (place / "data" / "labels").iterdir():
        path.unlink()
    args = [str(place / "data"), "--images=images", f"--out={place / 'mine.py'}"]
    with clean_process():
        assert init.main(args) == 1
        assert "0 patients have a label" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["mine", "data", "mine.yaml"])
def test_a_config_ends_in_py(place, capsys, out):
    status, text = call(place, capsys, out=out)
    assert status == 1 and "name a file that ends in .py" in text


@given(
    st.recursive(
        st.text() | st.integers(),
        lambda inner: st.lists(inner).map(tuple),
        max_leaves=5,
    )
)
def test_values_are_written_as_python_that_gives_them_back(value):
    assert ast.literal_eval(templating.as_python(value)) == value


def checked(volumes, values=(0, 1)):
    return Checked(
        dataset=dataset(volumes, values), findings=(), volumes=tuple(volumes)
    )


def labelled(name, **more):
    return facts(name, label="y", label_voxels={0: 9, 1: 9}, **more)


def chosen(volumes, *, size="cpu", memory=16 * GIB, values=(0, 1)):
    return choices.choose(checked(volumes, values), size=size, memory=memory)


def bump(center):
    heights = np.linspace(0, 1, PROFILE)
    return tuple(np.exp(-(((heights - center) / 0.08) ** 2)).tolist())


def test_the_axis_of_thick_slices_is_taken():
    found = chosen([labelled("a", slice_axis=0)])["slice_axis"]
    assert found.value == 0 and "thickest" in found.why


def test_where_all_are_thin_the_axis_along_which_classes_follow_each_other():
    alike, apart = {1: bump(0.5), 2: bump(0.5)}, {1: bump(0.2), 2: bump(0.8)}
    along = {0: alike, 1: apart, 2: alike}
    volumes = [
        labelled(f"v{i}", slice_spacing=1.0, axis_profiles=along) for i in range(3)
    ]
    found = chosen(volumes, values=(0, 1, 2))["slice_axis"]
    assert found.value == 1
    assert "left to right 100%, back to front 0%, bottom to top 100%" in found.why
    one = [dataclasses.replace(v, axis_profiles={0: {1: bump(0.5)}}) for v in volumes]
    assert "prefer no axis" in chosen(one)["slice_axis"].why


def test_pixels_stay_where_they_agree_and_crops_hold_them():
    found = chosen([labelled("a"), labelled("b", plane=(70, 64))])
    assert found["spacing"].value == (0.0, 0.0)
    assert found["crop"].value == 80
    assert found["width"].value == 8  # of a crop of more than 64 pixels


def test_different_pixels_are_resampled_to_the_median():
    volumes = [
        labelled(f"v{i}", plane_spacing=(s, s)) for i, s in enumerate((1, 1.2, 2))
    ]
    assert chosen(volumes)["spacing"].value == (1.2, 1.2)


def test_large_slices_are_coarsened_until_a_crop_shows_most_of_them():
    found = chosen([labelled("a", plane=(512, 512), plane_spacing=(0.75, 0.75))])
    assert found["spacing"].value == (2.4, 2.4)  # 0.6 * 384 mm / 96 pixels
    assert found["crop"].value == 96
    gpu = chosen([labelled("a", plane=(512, 512))], size="gpu")
    assert gpu["spacing"].value == (0.0, 0.0) and gpu["crop"].value == 352


@pytest.mark.parametrize(
    ("slices", "threshold"), [(9, 0.35), (20, 0.17), (35, 0.1), (300, 0.1)]
)
def test_thresholds_lie_between_those_of_the_authors(slices, threshold):
    assert chosen([labelled("a", slices=slices)])["threshold"].value == threshold


def test_batches_shrink_with_the_memory_and_not_below_four():
    whole = choices.kept_bytes(64, 16, 32)
    for memory, size in ((2 * whole, 32), (whole, 16), (whole / 3, 4), (1, 4)):
        many = [labelled("a", slices=99), labelled("b", slices=99)]
        assert chosen(many, memory=memory)["batch_size"].value == size


def test_batches_hold_no_more_slices_than_there_are_to_train_on():
    volumes = [labelled(f"v{i}", slices=5) for i in range(6)]
    found = chosen(volumes)["batch_size"]  # 30 slices, 20 of them in training
    assert found.value == 16 and "of the 20 to train on" in found.why
    uneven = [labelled("a", slices=30), labelled("b", slices=5)]
    assert chosen(uneven)["batch_size"].value == 4  # with the larger one held out


def test_the_memory_of_the_authors_step_is_that_of_the_dry_run():
    assert choices.kept_bytes(352, 48, 32) == pytest.approx(18.8 * GIB, rel=0.01)


@pytest.mark.parametrize(("patients", "folds"), [(2, 2), (5, 2), (8, 4), (80, 5)])
def test_folds_leave_two_patients_to_each(patients, folds):
    assert chosen([labelled(f"v{i}") for i in range(patients)])["folds"].value == folds


def test_few_slices_are_not_gone_through_for_ever():
    few = chosen([labelled("a", slices=32), labelled("b", slices=32)], size="gpu")[
        "pretrain_steps"
    ]
    assert few.value == 300 and few.why.startswith("300 times through 32 slices")
    volumes = [labelled(name, slices=3_200_000) for name in "ab"]
    many = chosen(volumes, size="gpu")["pretrain_steps"]
    assert many.value == 30_000 and many.why.startswith("1 times through 3,200,000")


@pytest.mark.data
def test_hippocampus_is_sliced_from_back_to_front(shared_data, tmp_path, capsys):
    folder = shared_data / "Task04_Hippocampus"
    args = [str(folder), "--images=imagesTr", "--labels=labelsTr", "--size=cpu"]
    with clean_process():
        assert init.main([*args, f"--out={tmp_path / 'h.py'}"]) == 0
    capsys.readouterr()
    config = load_config(str(tmp_path / "h.py"))
    assert config.data.prepare.slice_axis == 1
    assert config.pretrain.data.crop_size == (48, 48)
    assert config.finetune.model.width == 16


def test_labels_of_one_patient_are_refused(place, capsys):
    status, text = call(place, capsys, r"--patient=case(\d)")
    assert status == 1 and "1 patients have a label" in text
    assert not (place / "mine.py").exists()


@pytest.mark.parametrize("name", ["uni\\Ncode", 'three"""quotes', "a b's", "ümläut"])
def test_odd_names_of_folders_are_written_so_that_python_reads_them(
    place, capsys, name
):
    (place / "data").rename(place / name)
    args = [str(place / name), "--images=images", "--labels=labels"]
    with clean_process():
        assert init.main([*args, f"--out={place / 'mine.py'}"]) == 0, name
        capsys.readouterr()
    assert load_config(str(place / "mine.py")).data.raw_dir == str(place / name)


def test_a_colon_in_the_name_is_refused(place, capsys):
    status, text = call(place, capsys, out="a:b.py")
    assert status == 1 and "a colon ends the name of a config" in text


def test_thin_classes_still_tell_the_axis():
    profiles = examine._profiles({1: (np.arange(200) // 7 == 1).astype(int)})
    assert max(profiles[1]) == 1.0


def test_volumes_that_are_flat_are_not_clipped():
    flat = (0.0,) * 10 + (9.0,)
    assert chosen([labelled("a", percentiles=flat)])["clip_percentiles"].value == (
        0.0,
        100.0,
    )
