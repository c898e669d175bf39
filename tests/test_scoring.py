"""Scores of a run are those of the files it writes, or of the prepared grid."""

import dataclasses
import functools

import nibabel as nib
import numpy as np
import pytest
from tiny_nifti import write

from pclseg import scoring
from pclseg.data import prepare, tfds_store
from pclseg.data.datasets.base import Case, Dataset
from pclseg.data.geometry import prepared_geometry
from pclseg.data.volume import prepare_label, restore_label
from pclseg.errors import UserError
from pclseg.evaluation.surface import surface_metrics
from pclseg.train.stop import StopFlag

VALUES = (0, 2, 5)
SPACING = (1.0, 1.5, 6.0)  # x, y, z of the files


def brain(seed):
    """An image whose grey values say what its label is, but for some noise."""
    rng = np.random.default_rng(seed)
    places = np.indices((22, 18, 5)) - np.array([11, 9, 2])[:, None, None, None]
    distance = np.sqrt((places**2).sum(axis=0)) + rng.normal(size=(22, 18, 5)) / 3
    label = np.select([distance < 3, distance < 6], [5, 2], 0).astype(np.uint8)
    noise = rng.normal(size=label.shape)
    return (100 * label + 150 * noise + 1000).astype(np.int16), label


@pytest.fixture
def dataset(tmp_path):
    cases = []
    for number in range(3):
        paths = tmp_path / f"image{number}.nii.gz", tmp_path / f"label{number}.nii.gz"
        for path, array in zip(paths, brain(number), strict=True):
            affine = np.diag([-SPACING[0], SPACING[1], SPACING[2], 1.0])
            nib.save(nib.Nifti1Image(array, affine), path)
        cases.append(
            Case(
                name=f"case{number}",
                patient=f"p{number}",
                frame="",
                image_path=paths[0],
                label_path=paths[1],
            )
        )
    return Dataset(
        name="toy",
        cases=tuple(cases),
        class_names=("background", "a", "b"),
        label_values=VALUES,
    )


def stored(dataset, folder, spacing):
    path = prepare.prepare(
        dataset,
        folder,
        slice_axis=2,
        spacing=spacing,
        clip_percentiles=(0.0, 100.0),
        integers=False,
        replace_below=(),
        image_order=1,
        label_order=1,
        workers=1,
        report=lambda line: None,
    )
    return tfds_store.open_store(path)


def by_grey(image):
    """[z, H, W, 1] -> [z, H, W, 3], softly."""
    grey = image[..., :1]
    logits = -((grey - np.quantile(grey, [0.4, 0.8, 0.98])) ** 2)
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def scores(dataset, store, folder, *, grid, block=2):
    cases = {case.name: case for case in dataset.cases}

    def of_file(info):
        return prepare.native_label(cases[info.name], dataset, info.geometry)

    rows, compared = scoring.score_cases(
        by_grey,
        store,
        range(3),
        folder,
        native_label=of_file if grid == "file" else None,
        block=block,
        tolerance_mm=1.0,
        stop=StopFlag(),
    )
    return rows, compared


@pytest.mark.parametrize("spacing", [(), (3.0, 2.5), (0.7, 0.7)])
def test_rows_on_the_grid_of_the_file_are_those_of_what_is_written(
    dataset, tmp_path, spacing
):
    store = stored(dataset, tmp_path / "stores", spacing)
    rows, compared = scores(dataset, store, tmp_path / "out", grid="file")
    assert len(rows) == 6 and np.shape(compared) == (3, 2, 2)
    for row in rows:
        number = row["case"][-1]
        files = (
            tmp_path / f"out/case{number}.nii.gz",
            tmp_path / f"label{number}.nii.gz",
        )
        found, truth = (np.asanyarray(nib.load(file).dataobj) for file in files)
        value = VALUES[row["class"]]
        found, truth = found == value, truth == value
        both = (found & truth).sum()
        assert row["predicted_voxels"] == found.sum() > 0
        assert row["labelled_voxels"] == truth.sum() > 0
        assert row["dice"] == pytest.approx(2 * both / (found.sum() + truth.sum()))
        surfaces = surface_metrics(found, truth, SPACING, tolerance_mm=1.0)
        for name in ("hd95_mm", "asd_mm", "nsd"):
            assert row[name] == pytest.approx(surfaces[name])
        as_predicted = compared[int(number)][row["class"] - 1][0]
        assert as_predicted == pytest.approx(row["dice"])


def test_rows_on_the_prepared_grid_are_of_the_resampled_label(dataset, tmp_path):
    store = stored(dataset, tmp_path / "stores", (3.0, 2.5))
    rows, _ = scores(dataset, store, None, grid="prepared")
    on_file, _ = scores(dataset, store, None, grid="file")
    for row in rows:
        volume = store.volume(int(row["case"][-1]))
        found = by_grey_in_blocks(volume.image) == row["class"]
        truth = volume.label == row["class"]
        assert row["labelled_voxels"] == truth.sum()
        both = (found & truth).sum()
        assert row["dice"] == pytest.approx(2 * both / (found.sum() + truth.sum()))
    assert [row["dice"] for row in rows] != [row["dice"] for row in on_file]
    assert not (tmp_path / "out").exists()


def by_grey_in_blocks(image):
    blocks = [by_grey(image[first : first + 2]) for first in range(0, len(image), 2)]
    return np.concatenate(blocks).argmax(axis=-1)


def test_where_nothing_is_resampled_both_grids_are_one(dataset, tmp_path):
    store = stored(dataset, tmp_path / "stores", ())
    assert scores(dataset, store, None, grid="file") == scores(
        dataset, store, None, grid="prepared"
    )


def test_what_is_perfect_when_prepared_need_not_be_so_in_the_file():
    """The example of docs/statistics.md."""
    rows, columns = np.indices((200, 200)) - 100
    radius = 1.25 * np.hypot(rows, columns)
    ring = ((radius > 20) & (radius < 23))[..., None].repeat(3, axis=2).astype("u1")
    geometry, *_ = prepared_geometry(
        ring.shape, np.diag([1.25, 1.25, 8, 1]), slice_axis=2, spacing=(2.5, 2.5)
    )
    found = prepare_label(ring, geometry, label_values=(0, 1), label_order=1)
    back = restore_label(found, geometry, label_values=(0, 1))
    dice = 2 * (back & ring).sum() / (back.sum() + ring.sum())
    assert dice == pytest.approx(0.81, abs=0.005)


def test_no_more_slices_are_predicted_at_a_time_than_a_block_has(dataset, tmp_path):
    store = stored(dataset, tmp_path / "stores", ())
    seen = []

    def predict(image):
        seen.append(len(image))
        return by_grey(image)

    run = functools.partial(scoring.score_cases, native_label=None, tolerance_mm=1.0)
    run(predict, store, [0], None, block=3, stop=StopFlag())
    assert seen == [3, 2]


def test_a_label_that_is_gone_or_on_another_grid_is_named(dataset, tmp_path):
    store = stored(dataset, tmp_path / "stores", (3.0, 2.5))
    path = tmp_path / "label1.nii.gz"
    write(path, np.zeros((9, 9, 5), np.uint8))
    with pytest.raises(
        UserError, match=r"case1: .*label1.nii.gz: .*resample the label"
    ):
        scores(dataset, store, None, grid="file")
    path.unlink()
    with pytest.raises(UserError, match=r"case1: .*label1.nii.gz: .*does not exist"):
        scores(dataset, store, None, grid="file")
    case = dataclasses.replace(dataset.cases[0], label_path=None)
    with pytest.raises(ValueError, match="case0 has no label"):
        prepare.native_label(case, dataset, store.infos[0].geometry)
