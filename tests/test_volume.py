"""Reading, orienting, resampling and normalising volumes, and the way back."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations
from scipy import ndimage
from tiny_nifti import z_score

from pclseg.data import resample, volume, volume_file
from pclseg.data.datasets.base import Case
from pclseg.data.geometry import Geometry, orient, prepared_geometry
from pclseg.errors import UserError

CODES = ["RAS", "LAS", "LPI", "PSR", "SAL", "IRP"]


def stored_as(array, affine, code):
    """The same volume, given in RAS, as a file of another orientation holds it."""
    change = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(code)
    )
    back = orientations.inv_ornt_aff(change, array.shape)
    return orientations.apply_orientation(array, change), affine @ back


def oblique(spacing, degrees=20.0):
    angle = np.deg2rad(degrees)
    turn = np.array(
        [
            [np.cos(angle), -np.sin(angle), 0],
            [np.sin(angle), np.cos(angle), 0],
            [0, 0, 1],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = (-30.0, 12.0, 55.0)
    return affine


def save(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def case(image_path, label_path=None, time_index=None):
    return Case(
        name="sub1",
        patient="p",
        frame="",
        image_path=image_path,
        label_path=label_path,
        time_index=time_index,
    )


# The resampling rule.


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (3, [0, 0.3331761, 1.3039524, 3.2494656, 6.7745190, 9]),
        (1, [0, 0.5, 1.5, 3.5, 6.5, 9]),
    ],
)
def test_resize_gives_the_worked_numbers_of_the_specification(order, expected):
    row = np.array([0.0, 1.0, 4.0, 9.0])
    square = np.repeat(row[None], 4, axis=0)[None]
    resized = resample.resize_volume(square, (4, 6), order)
    np.testing.assert_allclose(resized[0], np.tile(expected, (4, 1)), atol=5e-8)


# np.arange(60).reshape(2, 5, 6) ** 2 % 17 through resize(..., order=3, mode="edge",
# anti_aliasing=True) of scikit-image 0.26.
SHRUNK = """
 1.015211085879  6.696190203498 13.232139881571  8.800838137522
 9.891429594263 11.339148419294  3.410578134354  0.173342594085
 9.940051338519 10.577192485701 14.034515469095  5.234085436337
10.956036731905  7.808122670073  2.121687857083  3.800483072764
12.553930320265 15.762531513153  1.578762389146 14.634320146967
 9.449366526829  7.146545242058  3.15051898318  10.085065322517"""
MIXED = """
15.293009059703  4.556339694733  0.27982087217   0.330584282675
 5.880522898725 12.553085041068  4.373444124713  8.942476861733
 9.133762451403 16.              3.677464977723 16.
11.744873102667  9.051427750963  0.018034374515  9.242231613749
 7.926495761293  2.194701602253  0.963862991707  4.636433460361
11.016837090091 11.637231251114  4.801420528828 14.802387655017"""
# The labels below 6, below 12, and the others, each class resized with order 1.
LABELS = """
0 0 1 1  0 2 2 0  0 2 2 0  1 1 0 0  0 1 2 0  0 2 2 0  2 2 2 1
2 0 0 0  0 2 0 0  0 2 1 2  2 2 0 2  1 0 0 0  1 0 0 0  1 1 0 2"""


def numbers(text, shape):
    return np.array(text.split(), np.float64).reshape(shape)


def squares():
    return (np.arange(60).reshape(2, 5, 6) ** 2 % 17).astype(np.float64)


def test_resize_equals_scikit_image_when_shrinking_and_when_mixed():
    shrunk = resample.resize_volume(squares(), (3, 4), 3)
    np.testing.assert_allclose(shrunk, numbers(SHRUNK, (2, 3, 4)), atol=1e-11)
    mixed = resample.resize_volume(squares(), (6, 4), 3)[1]
    np.testing.assert_allclose(mixed, numbers(MIXED, (6, 4)), atol=1e-11)


def test_resize_equals_the_zoom_of_the_whole_volume_clipped_to_its_range():
    array = np.random.default_rng(0).normal(size=(3, 9, 8))
    smooth = ndimage.gaussian_filter(array, (0, (9 / 6 - 1) / 2, 0), mode="nearest")
    zoomed = ndimage.zoom(
        smooth, (1, 6 / 9, 13 / 8), order=3, mode="nearest", grid_mode=True
    )
    expected = np.clip(zoomed, array.min(), array.max())
    np.testing.assert_allclose(resample.resize_volume(array, (6, 13), 3), expected)


def test_resize_clips_to_the_range_of_the_whole_volume_not_of_a_slice():
    step = np.zeros((2, 4, 8))
    step[0, :, 4:] = 1.0
    alone = resample.resize_volume(step, (4, 16), 3)
    step[1] = 9.0
    step[1, 0, 0] = -9.0
    among_larger = resample.resize_volume(step, (4, 16), 3)
    assert alone[0].max() == 1.0
    assert among_larger[0].max() > 1.01


def test_labels_resample_as_one_hot_classes_do_in_scikit_image():
    classes = np.digitize(squares(), [6, 12])  # [Z, H, W]
    file_array = (10 * classes).transpose(2, 1, 0)
    geometry, _, _ = prepared_geometry(
        (6, 5, 2), np.diag([1.0, 1.0, 5.0, 1]), slice_axis=2, spacing=(5 / 7, 6 / 4)
    )
    prepared = volume.prepare_label(
        file_array, geometry, label_values=(0, 10, 20), label_order=1
    )
    assert prepared.dtype == np.uint8
    np.testing.assert_array_equal(prepared, numbers(LABELS, (2, 7, 4)))


def test_a_tie_between_classes_goes_to_the_smaller_id():
    label = np.array([2, 1], np.uint8).reshape(1, 2, 1).repeat(2, axis=2)  # (x, y, z)
    geometry, shape, _ = prepared_geometry(
        label.shape, np.eye(4), slice_axis=2, spacing=(2 / 3, 1.0)
    )
    assert shape == (2, 3, 1)
    prepared = volume.prepare_label(
        label, geometry, label_values=(0, 1, 2), label_order=1
    )
    np.testing.assert_array_equal(prepared[0, :, 0], [2, 1, 1])


def test_label_order_0_takes_the_nearest_voxel():
    label = np.arange(4, dtype=np.uint8).reshape(1, 4, 1).repeat(2, axis=2)
    geometry, _, _ = prepared_geometry(
        label.shape, np.eye(4), slice_axis=2, spacing=(0.5, 1.0)
    )
    prepared = volume.prepare_label(
        label, geometry, label_values=range(4), label_order=0
    )
    np.testing.assert_array_equal(prepared[0, :, 0], [0, 0, 1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize(
    ("size", "old", "new", "expected"),
    [
        (256, 1.5625, 1.25, 320),
        (232, 1.52344, 1.25, 283),
        (5, 1.25, 2.5, 2),  # 2.5 rounds to even
        (7, 1.25, 2.5, 4),  # 3.5 rounds to even
        (216, 1.25, 0.0, 216),  # 0 keeps the file's spacing
    ],
)
def test_new_size_is_old_over_new_spacing_rounded_half_to_even(
    size, old, new, expected
):
    _, shape, spacing = prepared_geometry(
        (size, size, 9), np.diag([old, old, 10, 1]), slice_axis=2, spacing=(new, new)
    )
    assert shape == (9, expected, expected)
    np.testing.assert_allclose(spacing, (10, *[old * size / expected] * 2))


# Intensities.


def prepared(
    array,
    clip_percentiles=(0.0, 100.0),
    spacing=(),
    integers=False,
    replace_below=(),
):
    geometry, _, _ = prepared_geometry(
        array.shape, np.diag([1.0, 1.0, 5.0, 1]), slice_axis="auto", spacing=spacing
    )
    return volume.prepare_image(
        array,
        geometry,
        clip_percentiles=clip_percentiles,
        integers=integers,
        replace_below=replace_below,
        image_order=3,
    )


def test_image_is_the_z_score_of_the_whole_volume_in_zyx_order():
    array = np.random.default_rng(1).integers(0, 4000, (6, 7, 4)).astype(np.int16)
    image = prepared(array)
    expected = (array.astype(np.float64) - array.mean()) / array.std()
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, expected.transpose(2, 1, 0), atol=1e-6)


def test_clipping_follows_resampling_and_precedes_the_z_score():
    array = np.random.default_rng(2).gamma(1.0, 100.0, (8, 6, 5)).astype(np.float32)
    image = prepared(array, clip_percentiles=(1.0, 99.0), spacing=(0.8, 0.8))
    resized = resample.resize_volume(array.transpose(2, 1, 0), (8, 10), 3)
    clipped = np.clip(resized, *np.percentile(resized, (1, 99)))
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(image, expected, atol=1e-5)


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    whole=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 3e4]),
    percents=st.lists(st.floats(0, 100), min_size=1, max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_percentiles_are_those_of_numpy_to_the_bit(seed, shape, whole, scale, percents):
    array = np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)
    array = np.round(array) if whole else array  # ties, zeros of both signs
    found = volume.percentiles(array, percents)
    np.testing.assert_array_equal(found, np.percentile(array, percents))


# The 10th and 90th percentile of 0, 1, 2, 4, 7, 9, 13, 20 lie at places 0.7 and 6.3:
# 0.7 and 13 + 0.3 * 7 = 15.1.
ROW = np.array([0, 1, 2, 4, 7, 9, 13, 20], np.int16).reshape(2, 2, 2)


def test_clipped_integers_stay_integers_where_asked():
    exact = z_score(np.clip(ROW, 0.7, 15.1))
    whole = z_score(np.clip(ROW, 0, 15))
    image = prepared(ROW, (10.0, 90.0))
    np.testing.assert_allclose(image, exact.transpose(2, 1, 0), atol=1e-6)
    image = prepared(ROW, (10.0, 90.0), integers=True)
    np.testing.assert_allclose(image, whole.transpose(2, 1, 0), atol=1e-6)


def test_limits_below_zero_are_cut_towards_zero():
    # of 0, -1, -2, -4, -7, -9, -13, -20: -15.1 and -0.7, so -15 and 0
    image = prepared(-ROW, (10.0, 90.0), integers=True)
    expected = z_score(np.clip(-ROW, -15, 0))
    np.testing.assert_allclose(image, expected.transpose(2, 1, 0), atol=1e-6)


def test_resampled_voxels_lose_their_fraction_towards_zero_where_asked():
    # Along x, order 3 of 0, 1, 4, 9 on six pixels: 0, 0.33, 1.30, 3.25, 6.77, 9.
    row = np.array([0, 1, 4, 9], np.int16)
    array = np.stack([row, -row])[None].repeat(4, axis=0)  # [4, 2, 4]
    array = array.transpose(2, 0, 1)  # x, y, z
    image = prepared(array, spacing=(1.0, 4 / 6), integers=True)
    expected = z_score(np.array([[0, 0, 1, 3, 6, 9], [0, 0, -1, -3, -6, -9]]))
    np.testing.assert_allclose(image, expected[:, None].repeat(4, axis=1), atol=1e-6)


def test_voxels_outside_of_the_field_of_view_are_replaced_after_clipping():
    array = np.array([-3024] * 4 + [-1000, 0, 40, 900], np.int16).reshape(2, 2, 2)
    replaced = np.where(array == -3024, -1110, array)
    image = prepared(array, integers=True, replace_below=(-2000.0, -1110.0))
    expected = z_score(replaced).transpose(2, 1, 0)
    np.testing.assert_allclose(image, expected, atol=1e-6)
    # The 60th percentile lies at place 4.2, so at -800, and nothing is left to replace.
    image = prepared(array, (60.0, 100.0), replace_below=(-2000.0, -1110.0))
    expected = z_score(np.clip(array, -800, 900)).transpose(2, 1, 0)
    np.testing.assert_allclose(image, expected, atol=1e-6)


@given(scale=st.floats(1e-3, 1e5), shift=st.floats(-1e3, 1e3))
@settings(max_examples=20, deadline=None)
def test_image_does_not_depend_on_the_scale_of_the_intensities(scale, shift):
    array = np.random.default_rng(3).normal(size=(5, 4, 3))
    other = prepared(array * scale + shift * scale)
    np.testing.assert_allclose(prepared(array), other, atol=2e-3)


# Orientation and slice axis.


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("tilt", [0.0, 20.0])
@pytest.mark.parametrize("code", CODES)
def test_storage_does_not_change_the_prepared_arrays(code, tilt, slice_axis):
    rng = np.random.default_rng(4)
    array = rng.normal(size=(6, 5, 4)).astype(np.float32)  # RAS
    stored, affine = stored_as(array, oblique((1.0, 1.5, 5.0), tilt), code)
    geometry, shape, spacing = prepared_geometry(
        stored.shape, affine, slice_axis=slice_axis, spacing=()
    )
    others = sorted({0, 1, 2} - {slice_axis}, reverse=True)
    expected = array.transpose(slice_axis, *others)
    assert shape == expected.shape
    np.testing.assert_allclose(spacing, np.take((1.0, 1.5, 5.0), [slice_axis, *others]))
    np.testing.assert_array_equal(orient(stored, geometry), expected)


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [
        ((1.0, 1.0, 5.0), 2),
        ((1.0, 5.0, 1.0), 1),
        ((3.0, 1.0, 1.2), 0),
        ((1.0, 1.0, 1.0), 2),
        ((1.4, 1.0, 1.0), 2),  # not clearly largest
        ((4.0, 4.0, 1.0), 2),  # two are largest
    ],
)
@pytest.mark.parametrize("code", ["RAS", "PSR"])
def test_auto_slices_along_the_clearly_largest_spacing(spacing, axis, code):
    array, affine = stored_as(np.zeros((5, 6, 7)), np.diag([*spacing, 1.0]), code)
    _, shape, _ = prepared_geometry(array.shape, affine, slice_axis="auto", spacing=())
    assert shape[0] == (5, 6, 7)[axis]


@pytest.mark.parametrize("tilt", [0.0, 30.0])
@pytest.mark.parametrize("code", CODES)
def test_a_file_is_sliced_as_stored_wherever_its_axes_point(code, tilt):
    rng = np.random.default_rng(4)
    array = rng.normal(size=(6, 5, 4)).astype(np.float32)
    stored, affine = stored_as(array, oblique((1.0, 1.5, 5.0), tilt), code)
    geometry, shape, spacing = prepared_geometry(
        stored.shape, affine, slice_axis="file", spacing=()
    )
    np.testing.assert_array_equal(orient(stored, geometry), stored.transpose(2, 1, 0))
    assert shape == stored.shape[::-1]
    np.testing.assert_allclose(spacing, np.linalg.norm(affine[:3, 2::-1], axis=0))
    step = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    np.testing.assert_allclose(geometry.slice_direction, step)
    assert geometry.slice_axis == "LRPAIS".index(code[2]) // 2


def test_header_lps_flips_x_and_y_only_as_acdc_needs():
    geometry, _, _ = prepared_geometry(
        (8, 9, 4), np.diag([-1.5, -1.5, 10.0, 1.0]), slice_axis="auto", spacing=()
    )
    assert geometry.axes == (2, 1, 0)
    assert geometry.flips == (False, True, True)


@pytest.mark.parametrize("axis", ["1", 1])
def test_slice_axis_may_be_text_as_flags_are(axis):
    _, shape, _ = prepared_geometry((5, 6, 7), np.eye(4), slice_axis=axis, spacing=())
    assert shape == (6, 7, 5)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("code", CODES)
def test_slices_are_counted_to_the_right_to_the_front_or_up(code, slice_axis):
    array, affine = stored_as(ramp(), np.diag([1.0, 2.0, 3.0, 1.0]), code)
    geometry, _, _ = prepared_geometry(
        array.shape, affine, slice_axis=slice_axis, spacing=()
    )
    assert geometry.slice_axis == slice_axis
    np.testing.assert_array_equal(geometry.slice_direction, np.eye(3)[slice_axis])


def test_geometry_survives_json():
    geometry, _, _ = prepared_geometry(
        (5, 6, 7), oblique((1.1, 1.3, 4.0)), slice_axis="auto", spacing=(1.0, 1.0)
    )
    text = geometry.to_json()
    assert Geometry.from_json(text) == geometry
    assert json.loads(text)["file_shape"] == [5, 6, 7]


# The way back.


@given(
    code=st.sampled_from(CODES),
    tilt=st.floats(-40, 40),
    shape=st.tuples(*[st.integers(2, 6)] * 3),
    slice_axis=st.sampled_from([0, 1, 2, "auto", "file"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_labels_come_back_exactly_from_any_orientation(
    code, tilt, shape, slice_axis, seed
):
    values = (0, 2, 5, 421)
    label = np.random.default_rng(seed).choice(values, shape)
    stored, affine = stored_as(label, oblique((1.0, 1.2, 3.0), tilt), code)
    geometry, _, _ = prepared_geometry(
        stored.shape, affine, slice_axis=slice_axis, spacing=()
    )
    ids = volume.prepare_label(stored, geometry, label_values=values, label_order=1)
    back = volume.restore_label(ids, geometry, label_values=values)
    np.testing.assert_array_equal(back, stored)
    probs = np.eye(4, dtype=np.float32)[ids]
    back = volume.restore_label(probs, geometry, label_values=values)
    np.testing.assert_array_equal(back, stored)
    assert back.dtype == np.int16


def test_probabilities_are_resampled_linearly_before_the_largest_is_taken():
    geometry, shape, _ = prepared_geometry(
        (5, 4, 3), np.diag([1.0, 1.0, 6.0, 1]), slice_axis=2, spacing=(0.5, 0.5)
    )
    probs = np.random.default_rng(5).dirichlet(np.ones(3), shape).astype(np.float32)
    sharing = [resample.resize_volume(probs[..., k], (4, 5), 1) for k in range(3)]
    expected = np.array([7, 0, 9])[np.argmax(sharing, axis=0)].transpose(2, 1, 0)
    back = volume.restore_label(probs, geometry, label_values=(7, 0, 9))
    np.testing.assert_array_equal(back, expected)


def test_a_smooth_label_survives_resampling_and_the_way_back():
    z, y, x = np.ogrid[:6, :48, :40]
    ball = ((y - 24) ** 2 + (x - 20) ** 2 < (6 + 2 * z) ** 2).astype(np.uint8)
    label = ball.transpose(2, 1, 0)
    geometry, _, _ = prepared_geometry(
        label.shape, np.diag([1.5, 1.5, 8.0, 1]), slice_axis=2, spacing=(1.1, 1.1)
    )
    ids = volume.prepare_label(label, geometry, label_values=(0, 1), label_order=1)
    back = volume.restore_label(ids, geometry, label_values=(0, 1))
    dice = 2 * (back & label).sum() / (back.sum() + label.sum())
    assert dice > 0.99


@pytest.mark.parametrize(
    ("values", "dtype"),
    [((0, 255), "uint8"), ((0, 820), "int16"), ((-1, 4), "int16"), ((0, 1e5), "int32")],
)
def test_predictions_take_the_smallest_integer_that_holds_the_values(values, dtype):
    assert volume.label_dtype([int(v) for v in values]) == dtype


@pytest.mark.parametrize(("qform", "sform"), [(1, 1), (0, 2), (1, 0), (0, 0), (2, 4)])
@pytest.mark.parametrize("code", ["RAS", "LAS", "LPI"])
def test_a_written_label_has_the_geometry_of_its_image(tmp_path, qform, sform, code):
    array, affine = stored_as(
        np.random.default_rng(6).normal(size=(5, 6, 4)), oblique((1.0, 1.2, 3.0)), code
    )
    image = nib.Nifti1Image(array.astype(np.float32), affine)
    image.header.set_slope_inter(2.0, 1.0)
    image.set_qform(affine, qform)
    image.set_sform(affine, sform)
    nib.save(image, tmp_path / "image.nii.gz")
    label = np.random.default_rng(7).choice([0, 2, 500], array.shape).astype(np.int16)
    volume_file.write_volume(
        tmp_path / "p.nii.gz", label, like=tmp_path / "image.nii.gz"
    )
    before = nib.load(tmp_path / "image.nii.gz")
    after = nib.load(tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(after.dataobj), label)
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in ("qform_code", "sform_code", "srow_x", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(after.header[field], before.header[field])
    np.testing.assert_array_equal(after.header["pixdim"], before.header["pixdim"])
    assert after.get_data_dtype() == np.int16
    assert [p.name for p in tmp_path.glob("*p.nii.gz*")] == ["p.nii.gz"]


def test_a_label_written_for_a_frame_is_3d(tmp_path):
    save(tmp_path / "cine.nii.gz", np.zeros((4, 5, 3, 7), np.int16))
    label = np.ones((4, 5, 3), np.uint8)
    volume_file.write_volume(tmp_path / "p.nii", label, like=tmp_path / "cine.nii.gz")
    assert nib.load(tmp_path / "p.nii").shape == (4, 5, 3)


# What files may hold, and what is said of those that are wrong.


def ramp(shape=(4, 5, 3), dtype=np.int16):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(210, dtype=np.uint8).reshape(7, 6, 5),
        np.arange(210, dtype=np.int16).reshape(5, 6, 7).transpose(2, 1, 0)[::-1],
        np.arange(420, dtype=np.float32).reshape(2, 7, 6, 5).transpose(1, 2, 3, 0),
    ],
)
def test_a_file_has_the_bytes_that_nibabel_writes(
    tmp_path, array, endianness, kind, suffix
):
    affine = np.diag([-1.5, 2.0, 4.0, 1.0])
    header = kind.header_class(endianness=endianness)
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"of the scanner"))
    like = kind(np.zeros((7, 6, 5), np.float32), affine, header)
    like.header.set_slope_inter(0.5, -3.0)
    like.header["descrip"], like.header["cal_max"] = b"a scan", 400
    nib.save(like, tmp_path / "like.nii.gz")
    volume_file.write_volume(
        tmp_path / f"ours{suffix}", array, like=tmp_path / "like.nii.gz"
    )
    source = nib.load(tmp_path / "like.nii.gz")
    source.header.set_data_dtype(array.dtype)
    source.header["cal_max"] = 0
    expected = kind(array, source.affine, source.header)
    nib.save(expected, tmp_path / f"theirs{suffix}")
    ours, theirs = (tmp_path / f"{who}{suffix}" for who in ("ours", "theirs"))
    assert unpacked(ours) == unpacked(theirs)


def unpacked(path):
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def test_integers_stay_as_stored_and_wide_floats_become_float32(tmp_path):
    save(tmp_path / "a.nii.gz", ramp())
    save(tmp_path / "b.nii.gz", ramp(dtype=np.float64))
    for name, dtype in (("a", np.int16), ("b", np.float32)):
        (image,) = volume_file.load_case(case(tmp_path / f"{name}.nii.gz")).images
        assert image.dtype == dtype


def test_a_frame_of_a_4d_file_is_read_with_its_label(tmp_path):
    frames = ramp((4, 5, 3, 2))
    image = save(tmp_path / "a.nii.gz", frames)
    label = save(tmp_path / "b.nii.gz", (frames % 3).astype(np.uint8))
    loaded = volume_file.load_case(case(image, label, time_index=1))
    np.testing.assert_array_equal(loaded.images[0], frames[..., 1])
    np.testing.assert_array_equal(loaded.label, frames[..., 1] % 3)


def test_axes_of_length_one_behind_the_frames_do_not_matter(tmp_path):
    frames = ramp((4, 5, 3, 2))
    path = save(tmp_path / "a.nii.gz", frames[..., None])
    loaded = volume_file.load_case(case(path, time_index=1))
    np.testing.assert_array_equal(loaded.images[0], frames[..., 1])


@pytest.mark.parametrize("noise", [1e-7, 1e-5, 1e-4])
def test_noise_in_the_headers_is_accepted(tmp_path, noise):
    affine = oblique((0.7, 0.7, 1.5))
    image = save(tmp_path / "a.nii.gz", ramp((128, 128, 64)), affine)
    rng = np.random.default_rng(8)
    near = affine + noise * np.abs(affine) * rng.uniform(-1, 1, (4, 4))
    label = save(tmp_path / "b.nii.gz", np.zeros((128, 128, 64), np.uint8), near)
    assert volume_file.load_case(case(image, label)).label is not None


def test_an_affine_apart_is_told_in_mm(tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    image = save(tmp_path / "a.nii.gz", ramp(), affine)
    moved = affine.copy()
    moved[0, 3] = 3.0
    label = save(tmp_path / "b.nii.gz", np.zeros((4, 5, 3), np.uint8), moved)
    with pytest.raises(UserError, match=r"sub1: .*b\.nii\.gz: .* 3 mm .*1\.5 voxels"):
        volume_file.load_case(case(image, label))


def test_another_spacing_of_the_label_is_an_error(tmp_path):
    image = save(tmp_path / "a.nii.gz", ramp((40, 40, 3)))
    other = np.diag([1.02, 1.0, 1.0, 1.0])
    label = save(tmp_path / "b.nii.gz", np.zeros((40, 40, 3), np.uint8), other)
    with pytest.raises(UserError, match="0.78 mm off"):
        volume_file.load_case(case(image, label))


def with_nan():
    array = ramp(dtype=np.float32)
    array[1, 2, 0] = np.nan
    array[0, 0, 2] = np.inf
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5)), r"shape is \(4, 5\); expected a 3-D volume"),
        (ramp((4, 5, 3, 2)), r"shape is \(4, 5, 3, 2\); expected a 3-D volume"),
        (with_nan(), "2 of 60 voxels are NaN or infinite"),
        (np.full((4, 5, 3), 7, np.int16), "every voxel is 7"),
        (ramp().astype(np.complex64), "complex64"),
    ],
)
def test_images_that_cannot_be_used_are_named_with_their_file(tmp_path, array, message):
    path = save(tmp_path / "bad.nii.gz", array)
    with pytest.raises(
        UserError, match=r"^sub1: .*bad\.nii\.gz: .*" + message
    ) as error:
        volume_file.load_case(case(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "dim",
            [3, 4, 0, 3, 1, 1, 1, 1],
            r"shape is \(4, 0, 3\), so it holds no voxel",
        ),
        (
            "pixdim",
            [1, 1, 0, 1, 1, 1, 1, 1],
            "header gives voxels of .* set their size",
        ),
        ("srow_x", [1.7e38, 1.7e38, 1.7e38, 0], "affine cannot be inverted"),
    ],
)
def test_headers_that_place_no_voxels_are_told(tmp_path, field, value, message):
    path = save(tmp_path / "a.nii", ramp())
    header = nib.load(path).header.copy()
    header[field] = value
    header["sform_code"] = 1 if field == "srow_x" else 0
    data = path.read_bytes()
    path.write_bytes(header.binaryblock + data[len(header.binaryblock) :])
    with pytest.raises(UserError, match=message):
        volume_file.load_case(case(path))


def cut(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("damage", [cut, lambda data: b"", lambda data: data[:100]])
def test_damaged_files_are_named(tmp_path, name, damage):
    noise = np.random.default_rng(9).normal(size=(16, 16, 8)).astype(np.float32)
    path = save(tmp_path / name, noise)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"sub1: .*{name}: the file cannot be read"):
        volume_file.load_case(case(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="sub1: .*no.nii.gz: the file does not exist"):
        volume_file.load_case(case(tmp_path / "no.nii.gz"))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            np.zeros((4, 5, 2), np.uint8),
            r"label's shape is \(4, 5, 2\), the image's \(4,",
        ),
        (np.full((4, 5, 3), 0.5, np.float32), "60 voxels .* not whole numbers, .* 0.5"),
        (with_nan(), "2 of 60 voxels are NaN"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path, label, message):
    image = save(tmp_path / "a.nii.gz", ramp())
    path = save(tmp_path / "lab.nii.gz", label)
    with pytest.raises(UserError, match=r"sub1: .*lab\.nii\.gz: .*" + message):
        volume_file.load_case(case(image, path))


def test_a_label_value_without_a_class_is_told_with_its_place():
    label = np.zeros((4, 5, 3), np.int16)
    label[1, 2, 1] = label[3, 0, 2] = 255
    label[0, 0, 0] = 4
    expected = r"value 4 \(1 voxels, first at \(0, 0, 0\)\), 255 \(2 voxels, first at "
    with pytest.raises(UserError, match=expected + r"\(1, 2, 1\)\) is not among"):
        volume.class_ids(label, (0, 1, 2))


@given(st.permutations([-1, 0, 2, 5, 500, 850]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_class_ids_index_the_label_values_in_any_order(values, seed):
    label = np.random.default_rng(seed).choice(values, (3, 4, 2)).astype(np.float32)
    ids = volume.class_ids(label, values)
    np.testing.assert_array_equal(np.asarray(values)[ids], label)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slice_axis": 3}, "slice_axis is 3; expected 'auto', 'file', 0, 1 or 2"),
        ({"slice_axis": "z"}, "slice_axis is 'z'"),
        ({"spacing": (1.0,)}, r"spacing is \(1.0,\); expected \(y, x\)"),
        ({"spacing": (-1.0, 1.0)}, "spacing is"),
        ({"slice_axis": 2}, "one slice along canonical axis 2"),
        ({"slice_axis": "file"}, "one slice along canonical axis 2"),
    ],
)
def test_options_that_cannot_be_met_are_named(options, message):
    with pytest.raises(UserError, match=message):
        prepared_geometry(
            (4, 5, 1), np.eye(4), **{"slice_axis": 0, "spacing": (), **options}
        )


def test_a_replacement_needs_limit_and_value():
    with pytest.raises(UserError, match=r"replace_below is \(1.0,\); expected \(limit"):
        prepared(ramp(), replace_below=(1.0,))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("place", [0, 1])
def test_a_replacement_is_finite_in_float32(value, place):
    options = [0.0, 1.0]
    options[place] = value
    with pytest.raises(UserError, match="replace_below is .* finite in float32"):
        prepared(ramp(), replace_below=options)


@pytest.mark.parametrize("limits", [(5, 5), (-1, 99), (99, 1), (0, 101)])
def test_percentiles_out_of_order_are_refused(limits):
    with pytest.raises(UserError, match="clip_percentiles"):
        prepared(ramp(), clip_percentiles=limits)


def test_an_image_that_clipping_makes_constant_is_refused():
    array = np.zeros((10, 10, 10), np.float32)
    array[0, 0, 0] = 1.0
    with pytest.raises(UserError, match="widen config.data.prepare.clip_percentiles"):
        prepared(array, clip_percentiles=(5, 95))


def test_a_prediction_of_another_shape_is_a_programming_error():
    geometry, _, _ = prepared_geometry((4, 5, 3), np.eye(4), slice_axis=2, spacing=())
    with pytest.raises(ValueError, match="expected that of the prepared"):
        volume.restore_label(np.zeros((3, 4, 5)), geometry, label_values=(0, 1))
    with pytest.raises(ValueError, match="longer"):
        volume.restore_label(np.zeros((2, 5, 4), int), geometry, label_values=(0, 1))


@pytest.mark.data
def test_a_hippocampus_case_is_sliced_from_back_to_front(shared_data):
    task = shared_data / "Task04_Hippocampus"
    name = "hippocampus_003.nii.gz"
    loaded = volume_file.load_case(
        case(task / "imagesTr" / name, task / "labelsTr" / name)
    )
    (array,) = loaded.images
    geometry, shape, spacing = prepared_geometry(
        array.shape, loaded.affine, slice_axis=1, spacing=()
    )
    assert array.shape == (34, 52, 35)
    assert shape == (52, 35, 34)
    assert spacing == (1.0, 1.0, 1.0)
    image = volume.prepare_image(
        array,
        geometry,
        clip_percentiles=(0, 100),
        integers=False,
        replace_below=(),
        image_order=3,
    )
    assert abs(image.mean()) < 1e-5
    assert abs(image.std() - 1) < 1e-5
    label = volume.prepare_label(
        loaded.label, geometry, label_values=(0, 1, 2), label_order=1
    )
    # The anterior part (1) lies in front of the posterior one (2).
    heights = [np.argwhere(label == k)[:, 0].mean() for k in (1, 2)]
    assert heights[0] > heights[1]
