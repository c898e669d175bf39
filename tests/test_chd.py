"""CHD: what its labels mean, and the steps from a file to what is trained on."""

import numpy as np
import pytest
from tiny_nifti import options_of, pair, write, z_score

from pclseg.data.datasets import chd
from pclseg.data.prepare import prepare_case
from pclseg.errors import UserError


def prepared(root, values=(0, 1, 7), voxels=None):
    """The only volume of a folder, as configs/pcl_chd.py prepares it."""
    pair(root, "ct_1001_image", "ct_1001_label", values)
    if voxels is not None:
        write(root / "ct_1001_image.nii.gz", voxels)
    dataset = chd.make(raw_dir=root)
    options = options_of("pcl_chd")
    lines = []
    volume = prepare_case(
        dataset.cases[0],
        options,
        dataset.label_values,
        strays=dataset.strays,
        note=lines.append,
    )
    assert lines == []
    return volume


def test_larger_labels_are_background_and_the_seven_classes_stay(tmp_path):
    volume = prepared(tmp_path, tuple(range(12)))  # 12 x 10 x 4 voxels, z fastest
    values = np.resize(np.arange(12), (12, 10, 4)).transpose(2, 1, 0)
    np.testing.assert_array_equal(volume.label, np.where(values > 7, 0, values))
    assert chd.make(raw_dir=tmp_path).class_names[6:] == ("aorta", "pulmonary artery")


def test_a_negative_label_is_refused_with_its_file(tmp_path):
    expected = r"chd1001: .*ct_1001_label\.nii\.gz: label value -3 .* mend the file"
    with pytest.raises(UserError, match=expected):
        prepared(tmp_path, (0, 1, -3))


def test_limits_are_cut_to_integers_and_pixels_kept(tmp_path):
    voxels = np.arange(480, dtype=np.int16).reshape(12, 10, 4) * 7 - 1024
    # 1st and 99th percentile of 0..479 at places 4.79 and 474.21: -990.47 and 2295.47
    volume = prepared(tmp_path, voxels=voxels)
    expected = z_score(np.clip(voxels, -990, 2295)).transpose(2, 1, 0)
    assert volume.info.shape == (4, 10, 12)  # axial slices of the file's pixels
    assert volume.info.spacing == (8.0, 1.5, 1.5)
    np.testing.assert_allclose(volume.image[..., 0], expected, atol=2e-6)
