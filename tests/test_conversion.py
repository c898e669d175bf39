"""DICOM, NRRD and MetaImage as NIfTI: the same grid, or a line that says why not."""

import locale
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
from tiny_nifti import clean_process, image, options_of

from pclseg.__main__ import main
from pclseg.data import conversion
from pclseg.data.datasets import nifti
from pclseg.data.prepare import prepare_case

sitk = pytest.importorskip("SimpleITK")

SHAPE = (7, 6, 5)
PLANES = {  # columns of the direction: right, down, from slice to slice, in LPS
    "axial": np.eye(3),
    "sagittal": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], float),
    "oblique": None,
}


def turned():
    """A rotation about two axes."""
    a, b = np.radians((20, -35))
    about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_z = [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    return np.array(about_x) @ np.array(about_z)


def volume(plane="axial", voxels=None):
    """(array [X, Y, Z], the same as an image of SimpleITK, its affine in RAS)."""
    array = image(SHAPE) if voxels is None else voxels
    direction = turned() if plane == "oblique" else PLANES[plane]
    made = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    made.SetSpacing((1.25, 1.5, 4.0))
    made.SetOrigin((-10.0, 20.0, 30.0))
    made.SetDirection(direction.ravel().tolist())
    affine = np.eye(4)
    affine[:3, :3] = direction * (1.25, 1.5, 4.0)
    affine[:3, 3] = (-10, 20, 30)
    return array, made, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def write_series(folder, made, *, uid="1.2.3", number=1, change=None, slices=None):
    """A DICOM file a slice, in no order; `change` alters the tags of slice z."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(made.GetDirection(), (3, 3))
    for z in reversed(range(made.GetDepth()) if slices is None else slices):
        plane = made[:, :, z]
        place = made.TransformIndexToPhysicalPoint((0, 0, z))
        tags = {
            "0008|0060": "MR",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0011": str(number),
            "0020|0013": str(z),
            "0008|0018": f"{uid}.{z}",
            "0020|0032": "\\".join(f"{x:.6f}" for x in place),
            "0020|0037": "\\".join(f"{x:.8f}" for x in direction.T[:2].ravel()),
            "0018|0050": "4",
            "0028|0030": "1.5\\1.25",
        }
        tags |= change(z, tags) if change else {}
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"IM{(z * 7) % 11:03d}_{number}.dcm"))
        writer.Execute(plane)


@pytest.fixture(autouse=True)
def same_locale():
    """What writes the files here changes the locale too."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture
def convert(tmp_path, capsys):
    """(exit status, lines of the log) of `pclseg convert tmp_path/in --out=...`."""

    def call(*more):
        with clean_process():
            args = ["convert", tmp_path / "in", f"--out={tmp_path / 'out'}", *more]
            status = main(list(map(str, args)))
        return status, capsys.readouterr().err.splitlines()

    return call


def converted(tmp_path):
    """{name: NIfTI file}"""
    found = sorted((tmp_path / "out").glob("*.nii.gz"))
    return {path.name.removesuffix(".nii.gz"): nib.load(path) for path in found}


@pytest.mark.parametrize("plane", PLANES)
def test_a_series_becomes_the_volume_it_is_of(tmp_path, convert, plane):
    array, made, affine = volume(plane)
    write_series(tmp_path / "in" / "p 1" / "t2", made)
    before = locale.setlocale(locale.LC_ALL)
    status, lines = convert()
    assert status == 0, lines
    assert locale.setlocale(locale.LC_ALL) == before
    ((name, found),) = converted(tmp_path).items()
    assert name == "p_1_t2"
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), array)
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    np.testing.assert_allclose(found.get_sform(), found.get_qform(), atol=1e-4)


@pytest.mark.parametrize("suffix", conversion.SUFFIXES)
@pytest.mark.parametrize("plane", PLANES)
def test_nrrd_and_metaimage_become_the_same(tmp_path, convert, plane, suffix):
    array, made, affine = volume(plane)
    (tmp_path / "in").mkdir()
    sitk.WriteImage(made, str(tmp_path / "in" / f"scan{suffix}"))
    assert convert()[0] == 0
    found = converted(tmp_path)["scan"]
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), array)
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)


def test_every_door_prepares_the_same_arrays(tmp_path, convert):
    array, made, affine = volume("sagittal")
    write_series(tmp_path / "in" / "dicom", made)
    sitk.WriteImage(made, str(tmp_path / "in" / "nrrd.nrrd"))
    assert convert()[0] == 0
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "out" / "nifti.nii.gz")
    cases = nifti.make(raw_dir=tmp_path, images="out").cases
    options = options_of("pcl_acdc")
    images = [prepare_case(case, options, (0,)).image for case in cases]
    assert len(images) == 3
    for other in images[1:]:
        np.testing.assert_allclose(other, images[0], atol=1e-4)


def moved(z, tags, by):
    place = [float(x) for x in tags["0020|0032"].split("\\")]
    place = [a + b for a, b in zip(place, by, strict=True)]
    return {"0020|0032": "\\".join(f"{x:.6f}" for x in place)}


FAULTS = {
    "a slice is missing": (dict(slices=(0, 1, 3, 4)), "slices are missing, or spaced"),
    "two slices in one place": (
        dict(change=lambda z, tags: moved(z, tags, (0, 0, -4 if z == 4 else 0))),
        "several files for one place",
    ),
    "a tilted gantry": (
        dict(change=lambda z, tags: moved(z, tags, (0, 0.5 * z, 0))),
        "is tilted: slices are shifted by up to 2 mm",
    ),
    "a slice of another direction": (
        dict(change=lambda z, _: {"0020|0037": "0\\1\\0\\0\\0\\-1"} if z == 2 else {}),
        "is mixed: its orientation is",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_regular_stack_is_refused_with_its_id(tmp_path, convert, fault):
    how, expected = FAULTS[fault]
    write_series(tmp_path / "in", volume()[1], uid="1.2.99", **how)
    status, lines = convert()
    assert status == 1 and not converted(tmp_path)
    assert "Traceback" not in "".join(lines)
    told = [line for line in lines if expected in line]
    assert told and "series 1.2.99" in told[0], lines


def test_rounding_in_places_is_no_fault(tmp_path, convert):
    def jitter(z, tags):
        return moved(z, tags, (0.003 * (z % 2), 0, 0.01 * (z % 2)))

    write_series(tmp_path / "in", volume()[1], change=jitter)
    assert convert()[0] == 0


def test_the_others_are_converted_and_the_fault_is_counted(tmp_path, convert):
    write_series(tmp_path / "in" / "a", volume()[1])
    write_series(tmp_path / "in" / "b", volume()[1], slices=(0, 1, 3))
    status, lines = convert()
    assert status == 1 and list(converted(tmp_path)) == ["a"]
    assert lines[-1] == "error: 1 of 2 volumes were not converted."


def test_series_of_one_folder_are_told_apart_and_no_images_left_out(tmp_path, convert):
    for number, uid in ((3, "1.2.3"), (4, "1.2.4")):
        write_series(tmp_path / "in" / "a", volume()[1], uid=uid, number=number)
    structures = {"0008|0060": "SEG"}
    write_series(tmp_path / "in" / "b", volume()[1], change=lambda *_: structures)
    write_series(tmp_path / "in" / "c", volume()[1], uid="1.2.7", slices=(0,))
    status, lines = convert()
    assert status == 0 and list(converted(tmp_path)) == ["a_series3", "a_series4"]
    notes = [line for line in lines if line.startswith("note: ")]
    assert "modality is SEG, which is no image" in notes[0]
    assert "series 1.2.7 is left out: it is a single file" in notes[1]


def test_files_that_are_there_are_kept(tmp_path, convert):
    (tmp_path / "in").mkdir()
    sitk.WriteImage(volume()[1], str(tmp_path / "in" / "scan.nrrd"))
    assert convert()[0] == 0
    target = tmp_path / "out" / "scan.nii.gz"
    before = target.read_bytes()
    status, lines = convert()
    assert status == 1 and "scan.nii.gz exists; choose another --out" in lines[-1]
    assert convert("--skip")[0] == 0 and target.read_bytes() == before


def colours(folder):
    made = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(made, str(folder / "scan.nrrd"))


def damaged(folder):
    sitk.WriteImage(volume()[1], str(folder / "scan.mha"))
    path = folder / "scan.mha"
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (colours, "scan.nrrd has 3 dimensions and 3 numbers a voxel"),
        (damaged, "scan.mha cannot be read: "),
        (lambda folder: (folder / "a.txt").write_text("x"), "holds no DICOM series"),
        (shutil.rmtree, "there is no "),
    ],
)
def test_what_cannot_be_converted_is_one_line(tmp_path, convert, make, expected):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    status, lines = convert()
    assert status == 1 and any(expected in line for line in lines), lines
    assert "Traceback" not in "".join(lines) and not converted(tmp_path)


def test_without_simpleitk_the_line_says_how_to_get_it(convert, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    status, lines = convert()
    assert status == 1 and "`pip install SimpleITK`" in lines[-1]
