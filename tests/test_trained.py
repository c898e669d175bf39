"""Label files for images, from a network that is made up."""

import dataclasses
import errno
import json
import logging
import os
import threading
import tracemalloc
from types import SimpleNamespace

import jax
import nibabel as nib
import numpy as np
import pytest
from tiny_nifti import ROOT, clean_process, image, options_of, write

from pclseg import network, predicting, scoring, trained
from pclseg.cli import predict
from pclseg.config import load_config
from pclseg.data import resample
from pclseg.data.prepare import Options
from pclseg.errors import UserError
from pclseg.evaluation import components
from pclseg.predicting import predict_files
from pclseg.trained import Segmenter


def by_brightness(volume):
    """Probabilities of two classes: the mean of the last channel divides them."""
    bright = (volume[..., -1] > 0).astype(np.float32)
    return np.stack([1 - bright, bright], axis=-1)


SEGMENTER = Segmenter(
    predictor=by_brightness,
    options=Options(
        slice_axis=2,
        spacing=(),
        clip_percentiles=(0.0, 100.0),
        integers=False,
        replace_below=(),
        image_order=1,
        label_order=1,
    ),
    class_names=("background", "bright"),
    label_values=(0, 500),
    channels=(),
)


def test_a_label_file_lies_on_its_image_with_the_values_of_training(tmp_path):
    voxels = image((7, 6, 5))
    affine = np.diag([-1.5, 2.0, 4.0, 1.0])
    affine[:3, 3] = (9, -3, 2)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    (target,) = predict_files(SEGMENTER, [tmp_path / "a.nii.gz"], tmp_path / "out")
    label = nib.load(target)
    expected = np.where(voxels > voxels.mean(), 500, 0)
    np.testing.assert_array_equal(np.asanyarray(label.dataobj), expected)
    np.testing.assert_array_equal(label.affine, affine)
    assert label.get_data_dtype() == np.int16


@pytest.mark.parametrize(
    ("spacing", "plane", "apart"),
    [((), (24, 20), 0.0), ((1.5, 3.0), (24, 10), 0.02), ((0.75, 0.5), (48, 60), 0.02)],
)
def test_a_file_sliced_as_stored_gets_its_label_as_stored(
    spacing, plane, apart, tmp_path
):
    seen = []

    def predictor(volume):
        seen.append(volume.shape)
        return by_brightness(volume)

    c, s = np.cos(0.3), np.sin(0.3)
    # Downwards, to the right and, third, to the back: by the header slices are coronal.
    turned = np.array([[0, 1, 0], [-s, 0, -c], [-c, 0, s]])
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag([1.5, 1.5, 4.0])
    z, y, x = np.ogrid[:5, :24, :20]
    bright = (z + x + 2 * y > 30).T
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(bright.astype(np.int16), affine), path)
    options = dataclasses.replace(SEGMENTER.options, slice_axis="file", spacing=spacing)
    segmenter = dataclasses.replace(SEGMENTER, predictor=predictor, options=options)
    (target,) = predict_files(segmenter, [path], tmp_path / "out")
    assert seen == [(5, *plane, 1)]
    label = nib.load(target)
    np.testing.assert_array_equal(label.affine, nib.load(path).affine)
    assert (np.asanyarray(label.dataobj) != 500 * bright).mean() <= apart


def test_a_run_prepares_new_images_as_its_config_says():
    config = load_config(f"{ROOT}/configs/chd_to_mmwhs.py").data.prepare
    saved = json.loads(config.to_json_best_effort())  # lists for tuples
    saved |= {"slice_axis": 2}
    del saved["workers"]
    assert network.options_of("saved", saved) == options_of("chd_to_mmwhs")
    del saved["integers"]
    with pytest.raises(UserError, match=r"saved needs .* 'integers'"):
        network.options_of("saved", saved)


def test_frames_get_a_file_each(tmp_path):
    write(tmp_path / "cine.nii.gz", image((7, 6, 5, 2)))
    targets = predict_files(SEGMENTER, [tmp_path / "cine.nii.gz"], tmp_path)
    names = ["cine_frame00.nii.gz", "cine_frame01.nii.gz"]
    assert [target.name for target in targets] == names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a_0000", "b_0000"], ["a", "b"]),
        (["a_0000", "a_0001"], ["a_0000", "a_0001"]),
        (["a_0000", "b"], ["a_0000", "b"]),
    ],
)
def test_images_named_as_by_nnunet_give_labels_named_so(tmp_path, names, expected):
    paths = [tmp_path / f"{name}.nii.gz" for name in names]
    for path in paths:
        write(path, image((7, 6, 5)))
    targets = predict_files(SEGMENTER, paths, tmp_path / "out")
    assert [target.name for target in targets] == [f"{n}.nii.gz" for n in expected]


def test_of_channels_only_that_of_the_training_is_read(tmp_path):
    voxels = image((7, 6, 5, 2))
    path = tmp_path / "mri.nii.gz"
    write(path, voxels)
    one = dataclasses.replace(SEGMENTER, channels=(1,))
    (target,) = predict_files(one, [path], tmp_path / "out")
    assert target.name == "mri.nii.gz"
    expected = np.where(voxels[..., 1] > voxels[..., 1].mean(), 500, 0)
    np.testing.assert_array_equal(np.asanyarray(nib.load(target).dataobj), expected)
    without = dataclasses.replace(SEGMENTER, channels=(2,))
    with pytest.raises(UserError, match="2 channels, but .* trained on channel 2"):
        predict_files(without, [path], tmp_path / "out")


def test_labels_that_are_there_are_replaced_only_when_asked(tmp_path):
    write(tmp_path / "a.nii.gz", image((7, 6, 5)))
    drawn = tmp_path / "labels" / "a.nii.gz"
    write(drawn, image((7, 6, 5), seed=1))
    before = drawn.read_bytes()
    with pytest.raises(UserError, match=r"a\.nii\.gz exists; .* --overwrite"):
        predict_files(SEGMENTER, [tmp_path / "a.nii.gz"], tmp_path / "labels")
    assert drawn.read_bytes() == before
    predict_files(
        SEGMENTER, [tmp_path / "a.nii.gz"], tmp_path / "labels", overwrite=True
    )
    assert drawn.read_bytes() != before


def test_an_image_is_never_overwritten(tmp_path):
    path = tmp_path / "a.nii.gz"
    write(path, image((7, 6, 5)))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"a\.nii\.gz is one of the images"):
        predict_files(SEGMENTER, [path], tmp_path, overwrite=True)
    assert path.read_bytes() == before


def test_an_image_that_is_named_twice_is_predicted_once(tmp_path):
    write(tmp_path / "a.nii.gz", image((7, 6, 5)))
    paths = [tmp_path / "a.nii.gz"] * 2
    assert len(predict_files(SEGMENTER, paths, tmp_path / "out")) == 1


def test_images_of_one_name_are_called_by_their_folders_too(tmp_path):
    paths = [tmp_path / "x" / "a.nii.gz", tmp_path / "y" / "a.nii.gz"]
    for path in paths:
        write(path, image((7, 6, 5)))
    targets = predict_files(SEGMENTER, paths, tmp_path / "out")
    assert [target.name for target in targets] == ["x_a.nii.gz", "y_a.nii.gz"]


def test_files_of_one_name_are_never_written_over_each_other(tmp_path):
    paths = [tmp_path / "a.nii.gz", tmp_path / "a_probabilities.nii.gz"]
    for path in paths:
        write(path, image((7, 6, 5)))
    out = tmp_path / "out"
    with pytest.raises(UserError, match="would both be written to"):
        predict_files(SEGMENTER, paths, out, probabilities=True)
    predict_files(SEGMENTER, paths[:1], out)
    with pytest.raises(UserError, match=r"a\.nii\.gz exists"):
        predict_files(SEGMENTER, paths[:1], out, probabilities=True)
    predict_files(SEGMENTER, paths[:1], out, probabilities=True, skip=True)
    assert (out / "a_probabilities.nii.gz").is_file()  # was lacking


def test_a_file_that_could_not_be_written_is_told_beside_another_fault(
    tmp_path, monkeypatch, caplog
):
    paths = [tmp_path / f"{name}.nii.gz" for name in "ab"]
    write(paths[0], image((7, 6, 5)))
    paths[1].write_bytes(b"no image")
    (tmp_path / "out" / "a.nii.gz" / "folder").mkdir(parents=True)
    monkeypatch.setattr(logging.getLogger("pclseg"), "propagate", True)
    with pytest.raises(UserError, match=r"b\.nii\.gz: the file cannot be read"):
        predict_files(SEGMENTER, paths, tmp_path / "out", overwrite=True)
    assert "a.nii.gz cannot be written" in caplog.text


def test_a_folder_that_is_a_file_is_told(tmp_path):
    write(tmp_path / "a.nii.gz", image((7, 6, 5)))
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"out.a\.nii\.gz cannot be written"):
        predict_files(SEGMENTER, [tmp_path / "a.nii.gz"], tmp_path / "out")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--images", "none/*.nii.gz"], "'none/*.nii.gz' finds no"),
        (
            ["--images", ".", "--batch_size=0"],
            "batch_size is 0; expected a whole",
        ),
        (["--images", "a.nii.gz"], "is no run directory"),
        (["--images", "scan[1].nii.gz"], "is no run directory"),
        (["--images", "a.nii.gz", "--out=notes.txt"], "notes.txt is a file; name a"),
        (["--images", "a.nii.gz", "--tile=40"], "tile is 40; expected a multiple of"),
        (["--images", "a.nii.gz", "--memory=-1"], "--memory is -1.0; expected GiB"),
        (["--images", "a.nii.gz", "--memory=nan"], "--memory is nan; expected GiB"),
        (["--images", "a.nii.gz", "--tile=16"], "tile is 16; expected a multiple of"),
    ],
)
def test_a_mistake_is_one_line_and_exit_1(
    args, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.nii.gz", "scan[1].nii.gz"):
        write(tmp_path / name, image((7, 6, 5)))
    (tmp_path / "notes.txt").write_text("")
    with clean_process():
        assert predict.main(["--run=run", "--out=out", *args]) == 1
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_volumes_that_are_there_are_skipped_where_asked(tmp_path, caplog):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.nii.gz", image((7, 6, 5)))
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    out = tmp_path / "out"
    predict_files(SEGMENTER, paths[:1], out)
    before = (out / "a.nii.gz").stat().st_mtime_ns
    targets = predict_files(SEGMENTER, paths, out, skip=True)
    assert (out / "a.nii.gz").stat().st_mtime_ns == before
    assert all(target.is_file() for target in targets)


def test_probabilities_lie_on_the_image_too(tmp_path):
    voxels = image((7, 6, 5))
    affine = np.diag([-1.5, 2.0, 4.0, 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    predict_files(
        SEGMENTER, [tmp_path / "a.nii.gz"], tmp_path / "out", probabilities=True
    )
    found = nib.load(tmp_path / "out" / "a_probabilities.nii.gz")
    probs = np.asanyarray(found.dataobj)
    assert probs.shape == (7, 6, 5, 2) and found.get_data_dtype() == np.float32
    np.testing.assert_array_equal(found.affine, affine)
    np.testing.assert_array_equal(probs[..., 1], voxels > voxels.mean())
    np.testing.assert_allclose(probs.sum(axis=-1), 1)
    alone = predict_files(SEGMENTER, [tmp_path / "a.nii.gz"], tmp_path / "alone")
    beside = tmp_path / "out" / "a.nii.gz"
    assert alone[0].read_bytes() == beside.read_bytes()


def test_a_volume_is_predicted_in_blocks_of_slices(tmp_path):
    voxels = image((7, 6, 71))
    write(tmp_path / "a.nii.gz", voxels, spacing=(1, 1, 3))
    seen = []

    def predict(prepared):
        seen.append(len(prepared))
        return by_brightness(prepared)

    segmenter = dataclasses.replace(SEGMENTER, predictor=predict, block=30)
    (target,) = predict_files(segmenter, [tmp_path / "a.nii.gz"], tmp_path / "out")
    assert seen == [30, 30, 11]
    expected = np.where(voxels > voxels.mean(), 500, 0)
    np.testing.assert_array_equal(np.asanyarray(nib.load(target).dataobj), expected)


def test_a_file_that_cannot_be_used_leaves_the_earlier_ones_written(tmp_path):
    paths = [tmp_path / f"{name}.nii.gz" for name in "abcd"]
    for path in paths:
        write(path, image((7, 6, 5)))
    paths[2].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"c: .*c\.nii\.gz: the file cannot be read"):
        predict_files(SEGMENTER, paths, tmp_path / "out")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize("memory", [2**40, 4 * 16 * 210])
def test_the_next_volume_is_read_ahead_only_where_it_fits(
    tmp_path, monkeypatch, memory
):
    for name in "ab":
        write(tmp_path / f"{name}.nii.gz", image((7, 6, 5)))
    events, second_is_read = [], threading.Event()
    prepare = predicting.prepare_case

    def read(case, *args, **options):
        events.append(f"read {case.name}")
        if case.name == "b":
            second_is_read.set()
        return prepare(case, *args, **options)

    def predict(prepared):
        if memory > 2**30 and "predict" not in events:
            assert second_is_read.wait(60)
        events.append("predict")
        return by_brightness(prepared)

    monkeypatch.setattr(predicting, "prepare_case", read)
    segmenter = dataclasses.replace(SEGMENTER, predictor=predict)
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    predict_files(segmenter, paths, tmp_path / "out", memory=memory)
    ahead = ["read a", "read b", "predict", "predict"]
    one_by_one = ["read a", "predict", "read b", "predict"]
    assert events == (ahead if memory > 2**30 else one_by_one)


def written_as(folder, voxels, suffix, slope=None):
    """An oblique file of either kind, scaled where a slope is given."""
    affine = np.diag([-1.0, 2.0, 4.0, 1.0])
    affine[:3, 3], affine[0, 1] = (9, -3, 2), 0.3
    made = nib.Nifti1Image(voxels, affine)
    if slope is not None:
        made.header.set_slope_inter(slope, -7.0)
    folder.mkdir(exist_ok=True)
    nib.save(made, folder / f"a{suffix}")
    return folder / f"a{suffix}"


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize(
    ("suffix", "dtype", "slope", "options"),
    [
        (".nii.gz", np.int16, None, {}),
        (".nii", np.int16, 0.25, {"slice_axis": 0, "clip_percentiles": (1.0, 98.0)}),
        (".nii.gz", np.float64, None, {"spacing": (1.3, 0.7), "image_order": 3}),
        (".nii", np.uint8, None, {"slice_axis": 1, "replace_below": (40.0, 3.0)}),
        (".nii.gz", np.int16, 2.0, {"spacing": (3.0, 3.0), "image_order": 0}),
    ],
)
def test_a_volume_that_memory_cannot_hold_gives_the_same_files(
    tmp_path, suffix, dtype, slope, options, probabilities
):
    voxels = image((23, 18, 11, 2)).astype(dtype)
    path = written_as(tmp_path / "images", voxels, suffix, slope)
    segmenter = dataclasses.replace(
        SEGMENTER,
        options=dataclasses.replace(SEGMENTER.options, **options),
        channels=(0, 1),
        alone=(1,),
        block=4,
    )
    folders = [tmp_path / "memory", tmp_path / "disk"]
    for folder, memory in zip(folders, (2**40, 0), strict=True):
        predict_files(
            segmenter, [path], folder, probabilities=probabilities, memory=memory
        )
    held, streamed = (
        {p.name: nib.load(p) for p in folder.iterdir()} for folder in folders
    )
    assert held.keys() == streamed.keys() and len(held) == 1 + probabilities
    for name, expected in held.items():
        array = np.asanyarray(streamed[name].dataobj)
        np.testing.assert_array_equal(array, np.asanyarray(expected.dataobj))
        assert streamed[name].header == expected.header
    assert [p.name for p in (tmp_path / "images").iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("slice_axis", [0, 2])
@pytest.mark.parametrize(
    ("alone", "probabilities", "spacing"),
    [((), False, ()), ((1,), True, ()), ((), True, (1.2, 1.2))],
)
def test_a_longer_volume_on_disk_takes_no_more_memory(
    tmp_path, monkeypatch, alone, probabilities, spacing, slice_axis
):
    options = dataclasses.replace(
        SEGMENTER.options,
        clip_percentiles=(1.0, 99.0),
        slice_axis=slice_axis,
        spacing=spacing,
    )
    segmenter = dataclasses.replace(SEGMENTER, options=options, alone=alone, block=2)
    monkeypatch.setattr(resample, "_SLICES", 4)
    monkeypatch.setattr(components, "_COUNTED", 2**14)
    most = []
    for times in (1, 4):
        shape = [64, 64, 64]
        shape[slice_axis] *= times
        path = written_as(tmp_path / f"{times}", image(tuple(shape)), ".nii.gz")
        tracemalloc.start()
        try:
            predict_files(
                segmenter,
                [path],
                tmp_path / f"out{times}",
                probabilities=probabilities,
                memory=0,
            )
            most.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert most[1] < 1.1 * most[0]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_disk_without_room_is_told_before_the_volume_is_read(
    tmp_path, monkeypatch, suffix
):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path / f"a{suffix}", image((7, 6, 5)))
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"cannot be written: No space left"):
        predict_files(SEGMENTER, [tmp_path / f"a{suffix}"], tmp_path / "out", memory=0)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_volume_cut_short_is_told_from_the_disk_as_from_memory(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, image((17, 16, 15)))
    path.write_bytes(path.read_bytes()[:-300])
    for memory in (2**40, 0):
        with pytest.raises(UserError, match=r"a\.nii.*cannot be read .*copy or"):
            predict_files(SEGMENTER, [path], tmp_path / "out", memory=memory)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_flat_is_no_volume(tmp_path):
    write(tmp_path / "a.nii", image((9, 7)))
    with pytest.raises(UserError, match=r"shape is \(9, 7\); expected a 3-D volume"):
        predict_files(SEGMENTER, [tmp_path / "a.nii"], tmp_path / "out")


def test_networks_predict_as_their_mean(monkeypatch):
    def constant(_, state, **more):
        return lambda volume: np.full((*volume.shape, 2), state, np.float32)

    monkeypatch.setattr(scoring, "volume_predictor", constant)
    monkeypatch.setattr(trained.building, "build_method", lambda stage: None)
    stage = SimpleNamespace(data=SimpleNamespace(crop_size=(16, 16)))
    networks = [
        SimpleNamespace(stage=stage, state=lambda value=value: value)
        for value in (0.2, 0.6)
    ]
    predict = trained.predictor(networks, batch_size=2)
    volume = np.zeros((2, 3, 4), np.float32)
    np.testing.assert_allclose(predict(volume), 0.4, rtol=1e-6)


def test_out_of_memory_halves_batches_then_tiles_and_says_so(monkeypatch, caplog):
    sizes = []

    def predict_volume(predict, image, *, min_shape, batch_size, tile):
        sizes.append((batch_size, tile))
        if batch_size * (tile or 200) ** 2 > 100**2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return image[..., None]

    monkeypatch.setattr(scoring, "predict_volume", predict_volume)
    monkeypatch.setattr(scoring, "_logits", lambda method: lambda state, x: x)
    predict = scoring.volume_predictor(None, None, crop_size=(64, 64), batch_size=4)
    volume = np.zeros((2, 200, 180), np.float32)
    monkeypatch.setattr(logging.getLogger("pclseg"), "propagate", True)
    predict(volume)
    assert sizes == [(4, None), (2, None), (1, None), (1, 96)]
    assert "going on with 1 at a time in tiles of 96 x 96" in caplog.text
    predict(volume)
    assert sizes[4:] == [(1, 96)]  # kept for the next volume
    with pytest.raises(UserError, match=r"out of memory for a single tile of 96"):
        scoring._halved(1, 96, 200)
