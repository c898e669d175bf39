"""The phantom: deterministic, with the odd volumes it promises, and learnable."""

import nibabel as nib
import numpy as np
import pytest

from pclseg.data.datasets import phantom
from pclseg.data.prepare import Options, prepare_case
from pclseg.errors import UserError

OPTIONS = Options(
    slice_axis="auto",
    spacing=(1.25, 1.25),
    clip_percentiles=(0.0, 100.0),
    integers=False,
    replace_below=(),
    image_order=3,
    label_order=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    phantom.generate(root, volumes=24, seed=0)
    return root


@pytest.fixture(scope="module")
def dataset(folder):
    return phantom.make(raw_dir=folder, volumes=24, seed=0)


@pytest.fixture(scope="module")
def volumes(dataset):
    return [prepare_case(c, OPTIONS, dataset.label_values) for c in dataset.cases]


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_it_has_24_patients_and_one_more_frame(dataset):
    assert dataset.name == "phantom"
    assert len({case.patient for case in dataset.cases}) == 24
    assert len(dataset.cases) == 25
    assert dataset.label_values == (0, 2, 5)
    assert dataset.class_names == ("background", "shell", "core")


def test_files_have_the_promised_grids_and_orientations(folder):
    for index, path in enumerate(sorted((folder / "images").iterdir())):
        image = nib.load(path)
        label = nib.load(folder / "labels" / path.name)
        shape = (64, 64, 24, 2) if index == phantom.FOUR_D else (64, 64, 24)
        assert image.shape == label.shape == shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.header.get_zooms()[:3] == (1.25, 1.25, 5.0)
        code = "LAS" if index == phantom.LAS else "RAS"
        assert "".join(nib.aff2axcodes(image.affine)) == code
        values = set(np.unique(np.asanyarray(label.dataobj)))
        assert values == ({0, 2} if index == phantom.CORELESS else {0, 2, 5})


def test_prepared_volumes_are_24_slices_of_64_by_64(volumes):
    for volume in volumes:
        assert volume.info.shape == (24, 64, 64)
        assert volume.info.spacing == (5.0, 1.25, 1.25)


def test_the_same_arguments_give_the_same_bytes(folder, tmp_path):
    phantom.generate(tmp_path / "again", volumes=24, seed=0)
    assert contents(tmp_path / "again") == contents(folder)


def test_generating_twice_writes_nothing_and_other_arguments_replace(tmp_path):
    phantom.generate(tmp_path, volumes=3, seed=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.gz")}
    phantom.generate(tmp_path, volumes=3, seed=0)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.gz")}
    first = contents(tmp_path)["images/phantom_00.nii.gz"]
    phantom.generate(tmp_path, volumes=2, seed=1)
    assert len(list(tmp_path.rglob("*.gz"))) == 4
    assert contents(tmp_path)["images/phantom_00.nii.gz"] != first


def test_an_interrupted_generation_is_taken_up(tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phantom, "_write", stopped)
        with pytest.raises(KeyboardInterrupt):
            phantom.generate(tmp_path, volumes=2, seed=0)
    phantom.generate(tmp_path, volumes=2, seed=0)
    assert len(phantom.make(raw_dir=tmp_path, volumes=2, seed=0).cases) == 2


def test_what_is_no_phantom_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty and holds no phantom"):
        phantom.generate(tmp_path, volumes=2, seed=0)
    with pytest.raises(UserError, match="give 1 or more"):
        phantom.generate(tmp_path / "new", volumes=0, seed=0)


def test_make_tells_how_to_write_a_missing_phantom(folder, tmp_path):
    with pytest.raises(UserError, match=r"phantom\.generate\(.*volumes=24, seed=0\)"):
        phantom.make(raw_dir=tmp_path, volumes=24, seed=0)
    with pytest.raises(UserError, match="holds no phantom of volumes=24, seed=1"):
        phantom.make(raw_dir=folder, volumes=24, seed=1)


def test_the_las_volume_is_not_mirrored_once_prepared(folder, dataset, volumes):
    """The organ moves to +x with height, in the volume stored LAS too."""
    for volume in (volumes[0], volumes[phantom.LAS]):
        x = [np.argwhere(s > 0)[:, 1].mean() for s in volume.label if (s > 0).any()]
        assert x[-1] > x[0] + 3


def blocks(image):
    """[Z, 8 * 8] means of 8 x 8 pixels: what a coarse look at a slice shows."""
    means = image.reshape(len(image), 8, 8, 8, 8).mean(axis=(2, 4))
    return means.reshape(len(image), -1)


def test_height_shows_in_the_content_of_unseen_patients(volumes):
    """Ridge regression from coarse pixels of 16 patients, tried on the others."""
    height = (np.arange(24) + 1) / 24
    seen = np.concatenate([blocks(v.image[..., 0]) for v in volumes[:17]])
    unseen = np.concatenate([blocks(v.image[..., 0]) for v in volumes[17:]])
    center = seen.mean(axis=0)
    gram = (seen - center).T @ (seen - center) + 10 * np.eye(64)
    target = np.tile(height, 17) - height.mean()
    weights = np.linalg.solve(gram, (seen - center).T @ target)
    guess = (unseen - center) @ weights + height.mean()
    error = np.abs(guess - np.tile(height, 8)).mean()
    chance = np.abs(height - height.mean()).mean()
    assert error < 0.5 * chance


def test_patients_differ_so_that_copying_a_label_is_no_solution(volumes):
    """Dice of the organ, taken over from another patient slice by slice."""
    organs = [volume.label > 0 for volume in volumes]
    dice = [
        2 * (a & b).sum() / (a.sum() + b.sum())
        for i, a in enumerate(organs)
        for j, b in enumerate(organs)
        if volumes[i].info.patient != volumes[j].info.patient
    ]
    assert 0.3 < np.mean(dice) < 0.8


def test_intensity_alone_does_not_tell_the_core(volumes):
    """A vessel above and below the organ is as bright as the core."""
    volume = volumes[0]
    image = volume.image[..., 0]
    core = image[volume.label == 2]
    bright = (image > core.mean() - core.std()) & (image < core.max())
    outside = bright & ~(volume.label > 0).any(axis=(1, 2))[:, None, None]
    assert outside.sum() > 0.2 * len(core)
