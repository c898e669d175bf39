"""HVSMR: what its labels mean, and the steps from a file to what is trained on."""

import numpy as np
import pytest
from scipy import ndimage
from tiny_nifti import image, options_of, pair, write, z_score

from pclseg.data.datasets import hvsmr
from pclseg.data.prepare import prepare_case
from pclseg.errors import UserError


def prepared(root, voxels, values=(0, 1, 2), spacing=(0.7, 0.7, 0.8)):
    """The only volume of a folder, as configs/acdc_to_hvsmr.py prepares it."""
    name = "training_sa_crop_pat3"
    write(root / f"{name}.nii.gz", voxels, spacing=spacing)
    labels = np.resize(np.asarray(values, np.int16), voxels.shape)
    write(root / f"{name}-label.nii.gz", labels, spacing=spacing)
    dataset = hvsmr.make(raw_dir=root)
    options = options_of("acdc_to_hvsmr")
    return prepare_case(dataset.cases[0], options, dataset.label_values)


def test_labels_are_the_three_classes_as_they_are(tmp_path):
    volume = prepared(tmp_path, image((7, 6, 4)))
    expected = np.resize([0, 1, 2], (7, 6, 4)).transpose(2, 1, 0)
    np.testing.assert_array_equal(volume.label, expected)
    names = hvsmr.make(raw_dir=tmp_path).class_names
    assert names == ("background", "myocardium", "blood pool")


@pytest.mark.parametrize("value", [3, -1, 255])
def test_any_other_label_is_refused_with_its_file(value, tmp_path):
    expected = rf"hvsmr3: .*pat3-label\.nii\.gz: label value {value} .* \(0, 1, 2\)"
    with pytest.raises(UserError, match=expected):
        prepared(tmp_path, image((7, 6, 4)), (0, 1, value))


def test_only_the_cropped_short_axis_version_counts(tmp_path):
    for kind in ("axial_full", "axial_crop", "sa_crop"):
        pair(tmp_path, f"training_{kind}_pat0", f"training_{kind}_pat0-label", (0, 1))
    (case,) = hvsmr.make(raw_dir=tmp_path).cases
    assert case.image_path.name == "training_sa_crop_pat0.nii.gz"
    assert case.label_path.name == "training_sa_crop_pat0-label.nii.gz"


def test_steps_are_resampling_clipping_z_score_in_real_numbers(tmp_path):
    voxels = image((14, 10, 5))
    volume = prepared(tmp_path, voxels, spacing=(0.9, 0.9, 0.8))
    shape = (5, 13, 18)  # 10 * 0.9 / 0.7 = 12.9, 14 * 0.9 / 0.7 = 18
    assert volume.info.shape == shape
    zyx = voxels.transpose(2, 1, 0).astype(np.float64)
    factors = np.array(shape) / zyx.shape
    zoomed = ndimage.zoom(zyx, factors, order=3, mode="nearest", grid_mode=True)
    zoomed = np.clip(zoomed, zyx.min(), zyx.max())
    expected = z_score(np.clip(zoomed, *np.percentile(zoomed, (1, 99))))
    np.testing.assert_allclose(volume.image[..., 0], expected, atol=1e-5)
