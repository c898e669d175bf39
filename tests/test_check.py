"""Every fault that a check knows: its line, and whether training would start."""

import dataclasses
import gzip
import json
import shutil

import messages_page
import nibabel as nib
import numpy as np
import pytest
from tiny_nifti import ROOT, InlinePool, clean_process, image, label, nifti_tree, write
from volume_facts import dataset, facts

from pclseg.cli import check as command
from pclseg.data import examine, fitness, workers
from pclseg.data.examine import PERCENTILES, PROFILE
from pclseg.data.fitness import Plans, positives_per_anchor

SHAPE = (20, 18, 5)
TABLE = "Data, as `pclseg check` finds them"
CONFIG = ROOT / "configs" / "pcl_nifti.py"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data/ of six labelled volumes."""
    nifti_tree(tmp_path / "data")
    monkeypatch.setattr(workers.futures, "ProcessPoolExecutor", InlinePool)
    return tmp_path


@pytest.fixture
def run(place, capsys):
    """Checks the folder; (exit status, lines of standard error)."""

    def call(*more):
        data = [str(place / "data"), "--images=images", "--labels=labels"]
        args = [*(more if "--config" in "".join(more) else (*data, *more))]
        with clean_process():
            status = command.main([*args, f"--out={place / 'out'}"])
            lines = capsys.readouterr().err.splitlines()
        assert not any("Traceback" in line for line in lines), lines
        return status, lines

    return call


def findings(lines):
    starts = ("error: ", "warning: ", "note: ")
    return [line for line in lines if line.startswith(starts)]


def test_good_data_have_no_finding_and_leave_three_files(place, run):
    status, lines = run()
    assert status == 0 and findings(lines) == []
    assert "No error and no warning." in lines
    written = sorted(path.name for path in (place / "out").iterdir())
    assert written == ["check.html", "fingerprint.json", "volumes.csv"]
    found = json.loads((place / "out" / "fingerprint.json").read_text())
    assert found["label_values"] == [0, 1, 2]
    first = found["volumes"][0]
    assert first["shape"] == list(SHAPE) and first["spacing"] == [1.5, 1.5, 8.0]
    assert first["orientation"] == "RAS" and first["slices"] == 5
    array = image(SHAPE, seed=0)
    np.testing.assert_allclose(
        first["percentiles"], np.percentile(array, PERCENTILES), rtol=1e-6
    )
    counts = np.bincount(label(SHAPE).ravel()).tolist()
    assert first["label_voxels"] == {str(k): n for k, n in enumerate(counts)}
    rows = (place / "out" / "volumes.csv").read_text().splitlines()
    assert len(rows) == 7 and rows[0].endswith(
        "label_0_voxels,label_1_voxels,label_2_voxels"
    )
    page = (place / "out" / "check.html").read_text()
    assert "case00" in page and "<script" not in page and "http:" not in page


def rewrite(path, array=None, affine=None):
    """The NIfTI file with other voxels or affine."""
    old = nib.load(path)
    array = np.asarray(old.dataobj) if array is None else array
    new = nib.Nifti1Image(array, old.affine if affine is None else affine)
    nib.save(new, path)


def voxels(path, change):
    array = np.asarray(nib.load(path).dataobj).copy()
    rewrite(path, change(array))


def with_value(value, dtype=np.float32):
    def change(array):
        array = array.astype(dtype)
        array[3, 4, 2] = value
        return array

    return change


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path):
    path.write_bytes(gzip.compress(b"not an image"))


def damage_all(folder, change):
    for path in sorted(folder.glob("*.nii.gz")):
        change(path)


def gaps(data):
    damage_all(data / "labels", lambda p: voxels(p, lambda a: a * 2 + (a > 1)))


def masks(data):
    damage_all(data / "labels", lambda p: voxels(p, lambda a: (a > 0) * np.uint8(255)))


def two_forms(path):
    old = nib.load(path)
    new = nib.Nifti1Image(np.asarray(old.dataobj), old.affine)
    other = old.affine.copy()
    other[0, 3] += 30
    new.set_sform(old.affine, 1)
    new.set_qform(other, 1)
    nib.save(new, path)


def oblique(path):
    angle = np.radians(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    rewrite(path, affine=turn @ nib.load(path).affine)


def in_microns(path):
    old = nib.load(path)
    old.header.set_xyzt_units("micron")
    new = nib.Nifti1Image(np.asarray(old.dataobj), old.affine, old.header)
    nib.save(new, path)


def no_codes(path):
    old = nib.load(path)
    new = nib.Nifti1Image(np.asarray(old.dataobj), None, None)
    new.header["pixdim"][1:4] = old.header["pixdim"][1:4]
    nib.save(new, path)


def spaced(*spacing):
    return lambda p: rewrite(p, affine=np.diag([*spacing, 1.0]))


def both(data, name, change):
    change(data / "images" / name)
    change(data / "labels" / name)


A = "case00.nii.gz"
# {what is wrong: (how it is done to the folder, status, level, texts of the line)}
FAULTS = {
    "gaps between label values": (
        gaps,
        0,
        "note",
        ["label values are 0, 2, 5", "classes 0 to 2", "class_names"],
    ),
    "masks of 0 and 255": (masks, 0, "note", ["label values are 0, 255"]),
    "label of another shape": (
        lambda d: voxels(d / "labels" / A, lambda a: a[:-1]),
        1,
        "error",
        ["case00", A, "shape is (19, 18, 5)", "preparation stops", "resample"],
    ),
    "label of another spacing": (
        lambda d: spaced(2, 2, 8)(d / "labels" / A),
        1,
        "error",
        ["case00", "off the image", "copy the image's affine"],
    ),
    "NaN": (
        lambda d: voxels(d / "images" / A, with_value(np.nan)),
        1,
        "error",
        ["1 of 1800 voxels are NaN", "replace them"],
    ),
    "infinity": (
        lambda d: voxels(d / "images" / A, with_value(np.inf)),
        1,
        "error",
        ["NaN or infinite"],
    ),
    "a file that was cut short": (
        lambda d: cut_short(d / "images" / A),
        1,
        "error",
        ["case00", "cannot be read", "copy or download it again"],
    ),
    "a label that was cut short": (
        lambda d: cut_short(d / "labels" / A),
        1,
        "error",
        ["labels", "cannot be read"],
    ),
    "text in place of an image": (
        lambda d: text(d / "images" / A),
        1,
        "error",
        ["cannot be read", "not NIfTI"],
    ),
    "an empty file": (
        lambda d: (d / "images" / A).write_bytes(b""),
        1,
        "error",
        ["cannot be read"],
    ),
    "an empty mask": (
        lambda d: voxels(d / "labels" / A, lambda a: a * 0),
        0,
        "warning",
        ["nothing but the background", "no Dice", "unlabelled"],
    ),
    "a missing label": (
        lambda d: (d / "labels" / A).unlink(),
        0,
        "note",
        ["1 of 6 volumes have no label (case00)", "pre-training only"],
    ),
    "a constant image": (
        lambda d: voxels(d / "images" / A, lambda a: a * 0 + 7),
        1,
        "error",
        ["every voxel is 7", "check how"],
    ),
    "NaN in a label": (
        lambda d: voxels(d / "labels" / A, with_value(np.nan)),
        1,
        "error",
        ["labels", "NaN"],
    ),
    "an interpolated label": (
        lambda d: voxels(d / "labels" / A, with_value(0.5)),
        1,
        "error",
        ["not whole numbers, such as 0.5", "nearest neighbour"],
    ),
    "one slice a file": (
        lambda d: both(d, A, lambda p: voxels(p, lambda a: a[:, :, 0])),
        1,
        "error",
        ["shape is (20, 18)", "3-D"],
    ),
    "one slice along the axis": (
        lambda d: both(d, A, lambda p: voxels(p, lambda a: a[:, :, :1])),
        1,
        "error",
        ["one slice", "config.data.prepare.slice_axis"],
    ),
    "colours": (
        lambda d: voxels(
            d / "images" / A,
            lambda a: np.zeros(a.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]),
        ),
        1,
        "error",
        ["case00", A],
    ),
    "an affine that cannot be inverted": (
        lambda d: patched(d / "images" / A, {296: bytes(16)}),  # srow_y
        1,
        "error",
        ["affine cannot be inverted", "mend the header"],
    ),
    "voxels of no size": (
        lambda d: patched(
            d / "images" / A,
            # pixdim; qform_code and sform_code
            {76: np.array([1, 0, 0, 0], "<f4").tobytes(), 252: bytes(4)},
        ),
        1,
        "error",
        ["header gives voxels of", "set their size"],
    ),
    "the same image twice": (
        lambda d: shutil.copy(d / "images" / A, d / "images" / "case01.nii.gz"),
        0,
        "warning",
        ["case00, case01 have the same voxels", "scores too good", "patient"],
    ),
    "no orientation": (
        lambda d: both(d, A, no_codes),
        0,
        "warning",
        ["not how they lie", "left and right"],
    ),
    "two orientations": (
        lambda d: two_forms(d / "images" / A),
        0,
        "warning",
        ["qform and sform of the header are 30 mm apart", "sform"],
    ),
    "micrometres": (
        lambda d: in_microns(d / "images" / A),
        0,
        "warning",
        ["sizes in microns", "0.001"],
    ),
    "an oblique volume": (
        lambda d: both(d, A, oblique),
        0,
        "note",
        ["20 degrees oblique", "as it is not turned"],
    ),
    "slices of padding": (
        lambda d: voxels(d / "images" / A, lambda a: a * (np.arange(5) > 1)),
        0,
        "warning",
        ["2 of 5 slices are of one grey value", "crop them away"],
    ),
    "coarser pixels": (
        lambda d: both(d, A, spaced(2.5, 2.5, 8)),
        0,
        "warning",
        ["pixels are 1.5 to 2.5 mm", "config.data.prepare.spacing='(1.5, 1.5)'"],
    ),
    "a higher volume": (
        lambda d: both(d, A, spaced(1.5, 1.5, 16)),
        0,
        "warning",
        ["1 of 6 volumes are far higher", "40 to 80 mm", "configs/simclr_"],
    ),
    "slices in another direction": (
        lambda d: both(d, A, lambda p: rewrite(p, affine=sagittal())),
        0,
        "warning",
        ["1 of 6 volumes count slices in another direction", "slice_axis"],
    ),
    "another orientation": (
        lambda d: both(d, A, spaced(-1.5, 1.5, 8)),
        0,
        "note",
        ["5 RAS, 1 LAS", "turned back"],
    ),
    "a header of no known unit": (
        lambda d: patched(d / "images" / A, {123: b"\x07"}),  # xyzt_units
        0,
        "",
        [],
    ),
    "a quaternion that is none": (
        lambda d: bad_quaternion(d / "images" / A),
        0,
        "warning",
        ["qform and sform of the header are inf mm apart"],
    ),
    "voxels of almost no size": (
        lambda d: both(d, A, spaced(1.5, 1.5, 4e-7)),
        1,
        "error",
        ["voxels are 0 mm large", "in mm"],
    ),
    "a label value that none has": (
        lambda d: voxels(d / "labels" / A, with_value(1e30)),
        1,
        "error",
        ["it holds a value of 1e+30", "at most"],
    ),
    "few slices": (
        lambda d: both(d, A, lambda p: voxels(p, lambda a: a[:, :, :4])),
        0,
        "warning",
        ["fewer than 5 slices: 1 of 6 volumes", "coarse"],
    ),
}


def sagittal():
    return np.array([[0, 0, 8.0, 0], [1.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])


def bad_quaternion(path):
    two_forms(path)
    patched(path, {256: np.array([2, 2, 2], "<f4").tobytes()})  # quatern_b, c, d


def patched(path, bytes_at):
    data = bytearray(gzip.decompress(path.read_bytes()))
    for start, new in bytes_at.items():
        data[start : start + len(new)] = new
    path.write_bytes(gzip.compress(bytes(data)))


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_line(place, run, fault):
    damage, status, level, texts = FAULTS[fault]
    damage(place / "data")
    have, lines = run()
    told = findings(lines)
    matching = [x for x in told if all(part in x for part in texts)]
    assert (
        not level and not told or matching and matching[0].startswith(f"{level}: ")
    ), told
    assert have == status, told
    assert (place / "out" / "check.html").is_file()
    line = matching[0] if level else ""
    messages_page.check_row(TABLE, fault, status, line, expected=texts, root=place)


# Of a second channel, in a folder of its own: {what is wrong: (how it is done, texts)}
CHANNEL_FAULTS = {
    "a channel that is missing": (
        lambda d: (d / "second" / A).unlink(),
        ["images/case00.nii.gz lacks a channel"],
    ),
    "a channel without its image": (
        lambda d: (d / "second" / A).rename(d / "second" / "extra.nii.gz"),
        ["extra.nii.gz", "matches no image"],
    ),
    "a channel of another shape": (
        lambda d: voxels(d / "second" / A, lambda a: a[:-1]),
        ["second", "the channel's shape is (19, 18, 5)", "resample the channel"],
    ),
    "a channel on another grid": (
        lambda d: spaced(1.5, 1.5, 9)(d / "second" / A),
        ["second", "the channel lies up to", "resample the channel onto the image"],
    ),
    "a mirrored channel": (
        lambda d: spaced(-1.5, 1.5, 8)(d / "second" / A),
        ["second", "the channel lies up to", "resample the channel onto the image"],
    ),
    "a constant channel": (
        lambda d: voxels(d / "second" / A, lambda a: a * 0 + 7),
        ["second", "every voxel is 7"],
    ),
    "NaN in a channel": (
        lambda d: voxels(d / "second" / A, with_value(np.nan)),
        ["second", "NaN or infinite"],
    ),
    "a channel that was cut short": (
        lambda d: cut_short(d / "second" / A),
        ["second", "cannot be read", "copy or download it again"],
    ),
}


@pytest.mark.parametrize("fault", CHANNEL_FAULTS)
def test_every_fault_of_a_channel_has_its_line(place, run, fault):
    damage, texts = CHANNEL_FAULTS[fault]
    for number, first in enumerate(sorted((place / "data" / "images").iterdir())):
        second = place / "data" / "second" / first.name
        write(second, image(SHAPE, seed=50 + number))
        spaced(1.5, 1.5, 8)(second)
    assert run("--more_images=second")[0] == 0
    damage(place / "data")
    status, lines = run("--more_images=second")
    told = [line for line in findings(lines) if line.startswith("error: ")]
    matching = [line for line in told if all(part in line for part in texts)]
    assert status == 1 and matching, told
    messages_page.check_row(
        TABLE, fault, status, matching[0], expected=texts, root=place
    )


def test_all_faults_of_a_volume_are_told_at_once(place, run):
    data = place / "data"
    voxels(data / "images" / A, with_value(np.nan))
    cut_short(data / "labels" / A)
    voxels(data / "images" / "case03.nii.gz", lambda a: a * 0)
    status, lines = run()
    assert status == 1
    assert len([x for x in findings(lines) if x.startswith("error: ")]) == 3
    assert any(x.startswith("3 errors and 0 warnings") for x in lines)


def test_an_odd_file_does_not_take_the_others_along(place, run, monkeypatch):
    facts_of = examine._facts

    def odd(case, image, geometry):
        if case.name == "case03":
            raise KeyError("never seen")
        return facts_of(case, image, geometry)

    monkeypatch.setattr(examine, "_facts", odd)
    status, lines = run()
    (error,) = findings(lines)
    assert status == 1 and "case03" in error and "KeyError" in error
    found = json.loads((place / "out" / "fingerprint.json").read_text())
    assert len(found["volumes"]) == 5


def test_planes_of_one_row_are_drawn(place, run):
    damage_all(place / "data" / "images", lambda p: voxels(p, lambda a: a[:1]))
    damage_all(place / "data" / "labels", lambda p: voxels(p, lambda a: a[:1]))
    status, lines = run()
    assert status == 0, lines


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("data.split.folds=50", "fold"),
        ("data.split.fold=9", "fold"),
        ("data.split.file=gone.json", "gone.json"),
        ("stages=('foo',)", "config.foo"),
        ("data.prepare.spacing=(-1.0,1.0)", "spacing"),
        ("pretrain.data.batch_size=0", "batch_size"),
    ],
)
def test_what_training_would_refuse_is_an_error(place, run, override, text):
    config = f"--config={CONFIG}:size=cpu,crop=16,classes=3"
    raw_dir = f"--config.data.raw_dir={place / 'data'}"
    status, lines = run(config, raw_dir, f"--config.{override}")
    (error,) = [x for x in lines if x.startswith("error: ")]
    assert status == 1 and text in error


def test_noise_in_headers_is_no_finding(place, run):
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    affine[0, 3] += 1e-7
    rewrite(place / "data" / "labels" / A, affine=affine)
    assert findings(run()[1]) == []


# {what is given: texts of the one line}
COMMAND_LINES = {
    "no data": ([], ["which data?", "--images"]),
    "an unknown option": (["--image=x"], ["there is no option --image=x"]),
    "a pattern that finds nothing": (["--images=scans"], ["'scans' finds no"]),
    "fewer than no workers": (["--workers=-1"], ["--workers is -1"]),
    "an address": (["--out=gs://b/x"], ["--out"]),
    "a config and a folder": (["x", "--config=y.py"], ["with --config"]),
    "no such config": (["--config=configs/nope.py"], ["no file", "nope.py"]),
    "a label without an image": ([], ["label", "matches no image"]),
}


@pytest.mark.parametrize("given", COMMAND_LINES)
def test_a_wrong_command_is_one_line(place, capsys, given):
    args, texts = COMMAND_LINES[given]
    data = [str(place / "data"), "--images=images", "--labels=labels"]
    if given == "a label without an image":
        write(place / "data" / "labels" / "other.nii.gz", label(SHAPE))
    if given not in ("no data", "a config and a folder", "no such config"):
        args = [*data, *args]
    if not any("--out" in arg for arg in args):
        args = [*args, f"--out={place / 'out'}"]
    with clean_process():
        assert command.main(args) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and all(part in line for part in texts), line
    assert not (place / "out").exists()


def test_a_config_says_what_it_needs(place, run):
    config = f"--config={CONFIG}:size=cpu,crop=16,classes=2"
    status, lines = run(config, f"--config.data.raw_dir={place / 'data'}")
    (error,) = [x for x in findings(lines) if x.startswith("error: ")]
    assert status == 1 and "for 2 classes, the labels have 3 values (0, 1, 2)" in error
    assert "classes=3" in error
    config = config.replace("classes=2", "classes=3")
    few = "--config.pretrain.data.batch_size=4"
    status, lines = run(config, f"--config.data.raw_dir={place / 'data'}", few)
    assert status == 0, lines


def test_many_lines_that_are_alike_are_counted(place, run, monkeypatch):
    monkeypatch.setattr(command, "_MOST_ALIKE", 2)
    damage_all(place / "data" / "labels", lambda p: voxels(p, lambda a: a * 0))
    _, lines = run()
    empty = [x for x in lines if "nothing but the background" in x]
    assert len(empty) == 2
    assert any(x.startswith("4 more of warnings like the above") for x in lines)


def told(volumes, plans=Plans(), values=(0, 1)):  # noqa: B008
    return [str(x) for x in fitness.findings(dataset(volumes, values), volumes, plans)]


def has(lines, *texts):
    return [line for line in lines if all(text in line for text in texts)]


def test_a_volume_upside_down_is_found_by_grey_values():
    volumes = [facts(f"v{i}") for i in range(6)]
    assert not has(told(volumes), "upside down")
    volumes[2] = dataclasses.replace(volumes[2], profile=volumes[2].profile[::-1])
    assert has(told(volumes), "grey values of 1 unlabelled", "(v2)")


def test_labels_decide_where_there_are_some():
    ramp = tuple(np.linspace(0, 1, PROFILE).tolist())
    labelled = dict(label="y", label_voxels={0: 9, 1: 9}, label_profile={1: ramp})
    volumes = [facts(f"v{i}", **labelled) for i in range(6)]
    grey = dataclasses.replace(volumes[2], profile=volumes[2].profile[::-1])
    assert not has(told([*volumes[:2], grey, *volumes[3:]]), "upside down")
    turned = dataclasses.replace(volumes[3], label_profile={1: ramp[::-1]})
    lines = told([*volumes[:3], turned, *volumes[4:]])
    assert has(lines, "labels of 1 volumes", "(v3)", "turn their affine")


def test_a_rare_label_value_may_be_a_slip():
    labelled, extra = dict(label="y", label_profile={}), {4: {7: 3}}
    volumes = [
        facts(f"v{i}", label_voxels={0: 9, 1: 9} | extra.get(i, {}), **labelled)
        for i in range(30)
    ]
    lines = told(volumes, values=(0, 1, 7))
    assert has(lines, "label value 7 occurs in 1 of 30 labels only (v4; 3 voxels)")
    assert not has(lines, "label value 1 ")


def test_crops_that_show_little_or_are_empty_are_told():
    volumes = [facts("a")]
    assert not has(told(volumes, Plans(crop=(64, 64))), "crop")
    assert has(told(volumes, Plans(crop=(16, 16))), "shows 25% of the side")
    assert has(told(volumes, Plans(crop=(160, 160))), "slices fill 16% of a crop")
    # pixels of 2 mm halve the slice, so a crop of 32 shows all of it
    assert not has(told(volumes, Plans(crop=(32, 32), spacing=(2.0, 2.0))), "crop")


def test_specks_are_told_where_nothing_clips_them():
    speck = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 900.0)
    volumes = [facts("a", percentiles=speck)]
    assert has(told(volumes, Plans(clips=(0.0, 100.0))), "specks", "clip_percentiles")
    assert not has(told(volumes, Plans(clips=(1.0, 99.0))), "specks")


@pytest.mark.parametrize("threshold", [0.1, 0.35])
def test_positives_per_anchor_is_the_mean_over_pairs(threshold):
    heights = [(i + 1) / n for n in (7, 12) for i in range(n)]
    near = [
        abs(x - y) < threshold
        for i, x in enumerate(heights)
        for j, y in enumerate(heights)
        if i != j
    ]
    expected = 1 + 2 * 15 * np.mean(near)
    have = positives_per_anchor([7, 12], threshold=threshold, batch_size=16)
    np.testing.assert_allclose(have, expected, rtol=1e-12)


def test_a_threshold_that_makes_few_or_all_slices_alike_is_told():
    volumes = [facts(f"v{i}") for i in range(4)]
    few = Plans(threshold=1e-6, batch_size=2)
    assert has(told(volumes, few), "nearly SimCLR", "larger", "position_threshold")
    many = Plans(threshold=0.9, batch_size=32)
    assert has(told(volumes, many), "everything counts as alike", "smaller")
    assert not has(told(volumes, Plans(threshold=0.1, batch_size=32)), "positives")


def test_a_killed_worker_is_told_with_its_file(place, run, monkeypatch):
    def killed(requests, work, **more):
        yield requests[0], work(requests[0])
        raise workers.WorkerKilled(requests[1:3])

    monkeypatch.setattr(workers, "run", killed)
    status, lines = run()
    assert status == 1
    assert len(has(findings(lines), "error: ", "was killed", "--workers=1")) == 2


@pytest.mark.data
def test_acdc_has_one_image_under_two_patients(shared_data, tmp_path, capsys):
    args = [
        f"--config={ROOT / 'configs' / 'pcl_acdc.py'}:size=cpu",
        f"--config.data.raw_dir={shared_data / 'ACDC'}",
    ]
    with clean_process():
        assert command.main([*args, f"--out={tmp_path}"]) == 0
        lines = capsys.readouterr().err.splitlines()
    assert has(lines, "patient074_frame01, patient076_frame01 have the same voxels")
    assert not has(lines, "upside down")
