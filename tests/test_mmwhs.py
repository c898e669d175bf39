"""MMWHS: what its labels mean, and the steps from a file to what is trained on."""

import numpy as np
import pytest
from scipy import ndimage
from tiny_nifti import options_of, pair, write, z_score

from pclseg.data.datasets import mmwhs
from pclseg.data.prepare import prepare_case
from pclseg.data.volume import restore_label
from pclseg.errors import UserError

CLASSES = (0, 205, 420, 500, 550, 600, 820, 850)


def prepared(root, voxels, values, spacing=(1.0, 1.0, 2.0)):
    """(volume, lines told) as configs/chd_to_mmwhs.py prepares [X, Y, Z] arrays."""
    pair(root, "ct_train_1001_image", "ct_train_1001_label", (0,))
    write(root / "ct_train_1001_image.nii.gz", voxels, spacing=spacing)
    write(root / "ct_train_1001_label.nii.gz", values, spacing=spacing)
    dataset = mmwhs.make(raw_dir=root)
    lines = []
    volume = prepare_case(
        dataset.cases[0],
        options_of("chd_to_mmwhs"),
        dataset.label_values,
        strays=dataset.strays,
        note=lines.append,
    )
    return volume, lines


def noise(shape):
    return np.random.default_rng(0).integers(-1000, 1500, shape).astype(np.int16)


def test_seven_values_are_the_classes_in_order_and_come_back(tmp_path):
    values = np.resize(np.array(CLASSES, np.int16), (6, 5, 4))
    volume, lines = prepared(tmp_path, noise(values.shape), values)
    ids = np.resize(np.arange(8), (6, 5, 4)).transpose(2, 1, 0)
    np.testing.assert_array_equal(volume.label, ids)
    back = restore_label(volume.label, volume.info.geometry, label_values=CLASSES)
    np.testing.assert_array_equal(back, values)
    names = mmwhs.make(raw_dir=tmp_path).class_names
    assert names[1:4] == ("myocardium", "left atrium", "left ventricle")
    assert lines == []


def test_421_is_taken_for_420_and_told(tmp_path):
    values = np.resize(np.array([0, 420, 421, 500, 0], np.int16), (6, 5, 4))
    volume, lines = prepared(tmp_path, noise(values.shape), values)
    np.testing.assert_array_equal(
        volume.label.transpose(2, 1, 0) == 2, (values == 420) | (values == 421)
    )
    path = tmp_path / "ct_train_1001_label.nii.gz"
    assert lines == [
        f"mmwhs1001: {path}: 24 voxels hold a label value from 421 to 421, which is no"
        " class's; they are taken for 420."
    ]


def test_other_values_above_100_are_background(tmp_path):
    values = np.resize(np.array([0, 205, 101, 900, 32000], np.int16), (6, 5, 4))
    volume, lines = prepared(tmp_path, noise(values.shape), values)
    expected = (values == 205).astype(int).transpose(2, 1, 0)
    np.testing.assert_array_equal(volume.label, expected)
    assert lines == []


@pytest.mark.parametrize("value", [1, 100])
def test_a_small_value_that_is_no_class_is_refused(value, tmp_path):
    values = np.resize(np.array([0, 205, value], np.int16), (6, 5, 4))
    with pytest.raises(UserError, match=rf"1001_label.*: label value {value} \(40 vox"):
        prepared(tmp_path, noise(values.shape), values)


def resampled(array, shape, order):
    """Of [Z, H, W]: the whole volume at once, smoothed before it shrinks."""
    factors = np.array(array.shape) / shape
    smooth = ndimage.gaussian_filter(
        array.astype(np.float64), np.maximum(0, (factors - 1) / 2), mode="nearest"
    )
    zoomed = ndimage.zoom(smooth, 1 / factors, order=order, mode="nearest", grid_mode=1)
    return np.clip(zoomed, array.min(), array.max())


def test_steps_are_resampling_integers_clipping_replacing_z_score(tmp_path):
    voxels = noise((20, 16, 6))
    voxels[:7] = -3024  # outside of the field of view
    values = np.zeros(voxels.shape, np.int16)
    values[3:11, 4:12] = 500
    volume, _ = prepared(tmp_path, voxels, values, spacing=(0.6, 0.5, 2.0))
    zyx, shape = voxels.transpose(2, 1, 0), (6, 8, 12)
    assert volume.info.shape == shape
    whole = resampled(zyx, shape, 3).astype(np.int16)
    low, high = np.percentile(whole, (1, 99)).astype(np.int16)
    clipped = np.clip(whole, low, high)
    assert (clipped < -2000).any()
    clipped[clipped < -2000] = -1110
    np.testing.assert_allclose(volume.image[..., 0], z_score(clipped), atol=1e-5)
    share = resampled((values == 500).astype(float).transpose(2, 1, 0), shape, 1)
    # of two shares that sum to 1 the larger, the background on a tie
    clear = np.abs(share - 0.5) > 1e-9
    np.testing.assert_array_equal(
        volume.label[clear], np.where(share > 0.5, 3, 0)[clear]
    )
