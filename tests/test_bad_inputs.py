"""What a user can get wrong: one line that says what and where, exit code 1, no trace.

Each case changes one thing of a run that would work; see `test_the_base_of_all_cases`.
"""

import copy
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import messages_page
import ml_collections
import nibabel as nib
import numpy as np
import pytest
from tiny_nifti import (
    ROOT,
    InlinePool,
    acdc_tree,
    call_main,
    config_for,
    contents,
    hippocampus_tree,
    image,
    label,
    nifti_tree,
    write,
)

from pclseg import building
from pclseg.config_rules import check_config
from pclseg.data import workers
from pclseg.errors import UserError

CONFIG = ROOT / "configs" / "pcl_nifti.py"
TABLE = "Commands and configs, as `pclseg train` finds them"
# What a run may leave that got no further than its volumes; none of it is a result.
CLAIMED = {".lock", "config.json", "run.json", "splits.json", "log.txt"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data/ of six labelled volumes; prepared/ and run/ are to come."""
    nifti_tree(tmp_path / "data")
    monkeypatch.setattr(workers.futures, "ProcessPoolExecutor", InlinePool)
    return tmp_path


def arguments(place, *more, config=f"{CONFIG}:size=cpu,crop=16,classes=3"):
    values = {
        "data.raw_dir": place / "data",
        "data.store_dir": place / "prepared",
        "data.pipeline": "numpy",
        "data.prepare.workers": 1,
        "pretrain.data.batch_size": 4,
        "pretrain.model.width": 2,
        "pretrain.model.out_dim": 4,
        "pretrain.train.steps": 2,
        "finetune.data.batch_size": 4,
        "finetune.model.width": 2,
        "finetune.train.steps": 2,
    }
    base = [f"--config.{key}={value}" for key, value in values.items()]
    base = [f"--config={config}", f"--workdir={place / 'run'}", "--devices=1", *base]
    return [*base, *(str(word).replace("PLACE", str(place)) for word in more)]


def the_error(stderr):
    """The one line that starts with `error: `, which is the last; no trace above it."""
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert lines[-1] == errors[0], stderr
    assert "Traceback" not in stderr
    return errors[0]


def check(capsys, args, *expected):
    code, stderr = call_main(capsys, *args)
    line = the_error(stderr)
    assert code == 1
    for text in expected:
        assert text in line, line
    return line


def test_the_base_of_all_cases(place, capsys):
    code, stderr = call_main(capsys, *arguments(place, "--dry_run"))
    assert code == 0, stderr
    assert "dry run: nothing was written." in stderr


# (what is given on top of the base, what the line says)
COMMAND_LINES = {
    "unknown flag": (
        ["--worddir=x"],
        ["no flag --worddir", "Did you mean 'workdir'?"],
    ),
    "no flag": (["pretrain"], ["'pretrain' is no flag"]),
    "flag without its value": (["--devices"], ["devices"]),
    "flag of a wrong type": (["--devices=all"], ["--devices=all"]),
    "unknown stage": (
        ["--stages=pretrian"],
        ["--stages", "'pretrian'", "Did you mean 'pretrain'?"],
    ),
    "more devices than there are": (["--devices=99"], ["--devices is 99"]),
    "misspelt key": (
        ["--config.pretrain.method.temperatur=0.2"],
        ["config.pretrain.method has no key 'temperatur'", "mean 'temperature'?"],
    ),
    "misspelt section": (
        ["--config.pretain.method.temperature=0.2"],
        ["config has no key 'pretain'", "Did you mean 'pretrain'?"],
    ),
    "key of a value": (
        ["--config.seed.x=1"],
        ["--config.seed.x", "config.seed is a value"],
    ),
    "text for a number": (
        ["--config.seed=abc"],
        ["--config.seed=abc", "expected a value like the config's own, 0."],
    ),
    "fraction for a whole number": (
        ["--config.finetune.data.batch_size=2.5"],
        ["--config.finetune.data.batch_size=2.5"],
    ),
    "one number for two": (
        ["--config.pretrain.data.crop_size=96"],
        ["config.pretrain.data.crop_size is (96,)", "multiples of 16"],
    ),
    "texts for numbers": (
        ["--config.data.prepare.spacing=('a','b')"],
        ["config.data.prepare.spacing", "(y, x) in mm"],
    ),
    "negative seed": (["--config.seed=-1"], ["config.seed is -1", "from 0"]),
    "negative number after a space": (
        ["--config.pretrain.optimizer.peak_lr", "-1"],
        ["config.pretrain.optimizer.peak_lr is -1"],
    ),
    "more decimals than the exact comparison has": (
        [
            "--config.pretrain.method.threshold_mode=exact",
            "--config.pretrain.method.position_threshold=0.3333333333",
        ],
        ["config.pretrain: position_threshold is 0.3333333333", "9 decimals"],
    ),
    "one slice has no other to be told from": (
        ["--config.pretrain.data.batch_size=1"],
        ["config.pretrain: data.batch_size is 1", "2 or more"],
    ),
    "no stages": (["--config.stages=()"], ["config.stages is ()"]),
    "stage without section": (
        ["--config.stages=('pretrian','finetune')"],
        ["config.pretrian", "Did you mean 'pretrain'?"],
    ),
    "crop size": (
        ["--config.finetune.data.crop_size=(100,96)"],
        ["config.finetune.data.crop_size is (100, 96)", "multiples of 16"],
    ),
    "batch and devices": (
        ["--devices=3"],
        ["config.pretrain.data.batch_size is 4", "3 devices", "--devices=2"],
    ),
    "batch of none": (
        ["--config.finetune.data.batch_size=0"],
        ["config.finetune.data.batch_size is 0"],
    ),
    "groups of a batch": (
        ["--config.pretrain.model.bn_groups=3"],
        ["config.pretrain.model.bn_groups is 3", "divisor"],
    ),
    "similarities": (
        ["--config.pretrain.method.similarities=blockwise"],
        ["config.pretrain: method.similarities is 'blockwise'", "'blocks', 'ring'"],
    ),
    "groups on devices": (
        ["--config.pretrain.method.groups_in_turn=True", "--devices=2"],
        ["config.pretrain.model.bn_groups is 1", "multiple of the 2 devices"],
    ),
    "width": (
        ["--config.pretrain.model.width=0"],
        ["config.pretrain.model.width is 0"],
    ),
    "negative steps": (
        ["--config.pretrain.train.steps=-5"],
        ["config.pretrain.train.steps is -5"],
    ),
    "epochs and steps": (
        ["--config.pretrain.train.epochs=3"],
        ["epochs=3 and steps=2", "exactly one"],
    ),
    "neither epochs nor steps": (
        ["--config.pretrain.train.steps=0"],
        ["epochs=0 and steps=0", "exactly one"],
    ),
    "learning rate": (
        ["--config.finetune.optimizer.peak_lr=0.0"],
        ["config.finetune.optimizer.peak_lr is 0.0", "> 0"],
    ),
    "learning rate not a number": (
        ["--config.finetune.optimizer.peak_lr=nan"],
        ["config.finetune.optimizer.peak_lr is nan"],
    ),
    "position threshold": (
        ["--config.pretrain.method.position_threshold=0"],
        ["config.pretrain", "method.position_threshold is 0", "> 0"],
    ),
    "threshold mode": (
        ["--config.pretrain.method.threshold_mode=float32"],
        ["config.pretrain", "'float32'", "'float64' or 'exact'"],
    ),
    "temperature": (
        ["--config.pretrain.method.temperature=-0.1"],
        ["config.pretrain", "method.temperature is -0.1", "> 0"],
    ),
    "views": (["--config.pretrain.method.views=one"], ["method.views is 'one'"]),
    "unknown method": (
        ["--config.pretrain.method.name=plc"],
        ["method 'plc' is unknown", "known are: action, ", "Did you mean 'pcl'?"],
    ),
    "setting of another method": (
        ["--config.pretrain.method.name=simclr"],
        ["method 'simclr' knows no setting 'position_threshold'", "temperature"],
    ),
    "unknown model": (
        ["--config.finetune.model.name=unet3d"],
        ["config.finetune", "model.name is 'unet3d'", "unet2d"],
    ),
    "unknown dtype": (
        ["--config.finetune.model.dtype=float16"],
        ["config.finetune", "model.dtype is 'float16'", "bfloat16"],
    ),
    "unknown augmentation": (
        ["--config.finetune.augment.name=spatail"],
        ["augmentation 'spatail' is unknown", "Did you mean 'spatial'?"],
    ),
    "range of the augmentation": (
        ["--config.pretrain.augment.scale=(1.3,0.7)"],
        ["config.pretrain", "augment.scale is (1.3, 0.7)"],
    ),
    "unknown optimizer": (
        ["--config.finetune.optimizer.name=adamw"],
        ["config.finetune", "optimizer.name is 'adamw'", "adam, sgd"],
    ),
    "unknown subset": (
        ["--config.pretrain.data.subset=all"],
        ["config.pretrain.data.subset is 'all'", "'train', 'labelled'"],
    ),
    "training on held-out patients": (
        ["--config.finetune.data.subset=validation"],
        ["config.finetune.data.subset is 'validation'"],
    ),
    "labels of patients not drawn": (
        ["--config.finetune.data.subset=train"],
        ["config.finetune", "learns from labels", "data.subset=labelled"],
    ),
    "last batch": (
        ["--config.pretrain.data.last_batch=keep"],
        ["config.pretrain.data.last_batch is 'keep'", "'drop', 'fill'"],
    ),
    "unknown dataset": (
        ["--config.data.name=acdd"],
        ["config.data.name is 'acdd'", "acdc"],
    ),
    "unknown pipeline": (
        ["--config.data.pipeline=torch"],
        ["config.data.pipeline is 'torch'", "'tf', 'numpy'"],
    ),
    "workers": (["--config.data.prepare.workers=-1"], ["prepare.workers is -1"]),
    "percentiles": (
        ["--config.data.prepare.clip_percentiles=(99,1)"],
        ["config.data.prepare.clip_percentiles is (99, 1)", "low < high"],
    ),
    "slice axis": (
        ["--config.data.prepare.slice_axis=z"],
        ["config.data.prepare.slice_axis is 'z'", "'auto'"],
    ),
    "weights from nowhere": (
        ["--config.finetune.init_from=runs/none"],
        ["config.finetune.init_from is 'runs/none'", "pretrain"],
    ),
    "weights from a folder without any": (
        ["--config.finetune.init_from=PLACE/data"],
        ["config.finetune.init_from", "patients.json"],
    ),
    "width of two stages": (
        ["--config.finetune.model.width=4"],
        ["config.finetune.init_from=pretrain", "encoder", "model.width"],
    ),
    "method and model": (
        ["--config.finetune.method.name=supervised", "--config.stages=finetune"]
        + ["--config.finetune.init_from=", "--config.finetune.model.name=none"],
        ["model.name is 'none'"],
    ),
    "classes": (
        ["--config.finetune.model.num_classes=4"],
        ["model.num_classes is 4", "has 3 classes", "num_classes=3"],
    ),
    "fewer labelled patients than none": (
        ["--config.data.split.labelled=-1"],
        ["config.data.split.labelled is -1"],
    ),
    "more labelled patients than there are": (
        ["--config.data.split.labelled=40"],
        ["config.data.split.labelled is 40", "1 to 4"],
    ),
    "fold": (["--config.data.split.fold=5"], ["config.data.split.fold is 5", "0 to 4"]),
    "more folds than patients": (
        ["--config.data.split.folds=7"],
        ["config.data.split.folds is 7", "2 to 6"],
    ),
    "batch larger than the epoch": (
        ["--config.pretrain.data.batch_size=64"],
        ["config.pretrain", "data.batch_size is 64", "only 20 slices"],
    ),
    "missing folder": (
        ["--config.data.raw_dir=PLACE/nowhere"],
        ["there is no folder", "nowhere", "config.data.raw_dir"],
    ),
    "folder that is a file": (
        ["--config.data.raw_dir=PLACE/data/images/case00.nii.gz"],
        ["there is no folder", "case00.nii.gz", "config.data.raw_dir"],
    ),
    "pattern without a file": (
        ["--config.data.options.images=scans"],
        ["config.data.options.images", "'scans' finds no"],
    ),
    "patient pattern": (
        ["--config.data.options.patient=(sub"],
        ["config.data.options.patient", "regular expression"],
    ),
    "split file that is not there": (
        ["--config.data.split.file=PLACE/splits.json"],
        ["config.data.split.file", "splits.json", "No such file"],
    ),
    "stored under a file": (
        ["--config.data.store_dir=PLACE/data/images/case00.nii.gz/store"],
        ["config.data.store_dir", "case00.nii.gz", "Not a directory"],
    ),
}
CLAIMS = {"stored under a file"}  # found when the first volume is to be written


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_one_line_says_what_is_wrong_with(name, place, capsys):
    more, expected = COMMAND_LINES[name]
    before = contents(place)
    line = check(capsys, arguments(place, *more), *expected)
    given = " ".join(more).replace("PLACE/", "")
    messages_page.check_row(
        TABLE, f"{name}: `{given}`", 1, line, expected=expected, root=place
    )
    if name in CLAIMS:
        assert {path.name for path in (place / "run").iterdir()} == CLAIMED
    else:
        assert contents(place) == before  # not even the run directory was made


def test_missing_config(capsys):
    check(capsys, ["--workdir=x"], "--config is missing", "configs/pcl_acdc.py")


def test_missing_workdir(place, capsys):
    args = [a for a in arguments(place) if not a.startswith("--workdir")]
    check(capsys, args, "--workdir is missing")


def test_workdir_in_a_bucket(capsys):
    args = ["--config=configs/pcl_phantom.py", "--workdir=gs://bucket/run"]
    check(capsys, args, "--workdir is gs://bucket/run", "disks only", "tpu_queued.sh")


def test_missing_config_file(place, capsys):
    args = arguments(place, config=ROOT / "configs" / "pcl_niftti.py")
    check(capsys, args, "no file", "pcl_niftti.py", "Did you mean 'pcl_nifti.py'?")


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        ("size=tiny", ["size='tiny'", "gpu, cpu"]),
        ("labeled=2", ["'labeled=2'", "Did you mean 'labelled'?"]),
        ("fold=one", ["fold='one' is no int"]),
    ],
)
def test_argument_of_a_config(arg, expected, place, capsys):
    check(capsys, arguments(place, config=f"{CONFIG}:{arg}"), *expected)


SOURCES = {
    "syntax": ("def get_config():\n    return dict(\n", "line 2: SyntaxError"),
    "name": ("def get_config():\n    x = 1\n    return y\n", "line 3: NameError"),
    "value": ("import math\nmath.sqrt(-1)\n", "line 2: ValueError"),
    "type": ("def get_config():\n    return 1 + ''\n", "line 2: TypeError"),
    "import": ("import no_such_module\n", "line 1: ModuleNotFoundError"),
    "no function": ("config = 1\n", "no function get_config"),
    "no config": ("def get_config():\n    pass\n", "returns no ml_collections"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_mistake_in_a_config_file(name, place, capsys):
    source, expected = SOURCES[name]
    path = place / "mine.py"
    path.write_text(source)
    check(capsys, [f"--config={path}", "--workdir=x"], str(path), expected)


# Lines at the end of a user's config file, which overrides cannot say.
CHANGES = {
    "misspelt key": (
        "del c.pretrain.data.crop_size; c.pretrain.data.crop_sise = (16, 16)",
        ["config.pretrain.data.crop_sise is unknown", "Did you mean 'crop_size'?"],
    ),
    "misspelt argument": (
        "c.pretrain.method.position_treshold = 1",
        ["no setting 'position_treshold'", "mean 'position_threshold'?"],
    ),
    "misspelt option": (
        "c.data.options.lables = 'x'",
        ["config.data.options.lables", "labels"],
    ),
    "missing key": ("del c.data.split.fold", ["config.data.split.fold is missing"]),
    "missing section": ("del c.evaluate", ["no section config.evaluate"]),
    "missing argument": (
        "del c.pretrain.method.views",
        ["method 'pcl' needs the setting 'views'"],
    ),
    "missing option": (
        "del c.data.options.images",
        ["config.data.options", "needs the setting 'images'"],
    ),
    "missing name": ("del c.pretrain.augment.name", ["pretrain.augment.name"]),
    "value of another type than before": (
        "c.pretrain.data.batch_size = '32'",
        ["mine.py, line 5: TypeError", "batch_size"],
    ),
    "text for a number": (
        "c.pretrain.data = dict(c.pretrain.data, batch_size='32')",
        ["config.pretrain.data.batch_size is '32'", "a whole number"],
    ),
    "text for an argument": (
        "c.pretrain.method = dict(c.pretrain.method, temperature='0.1')",
        ["method 'pcl'", "temperature is '0.1'", "a number"],
    ),
    "number for a section": (
        "del c.pretrain.train; c.pretrain.train = 300",
        ["config.pretrain.train is 300", "a section"],
    ),
    "unknown top-level key": (
        "c.sede = 1",
        ["config.sede is unknown", "Did you mean 'seed'?"],
    ),
    "a network that embeds, for segmentation": (
        "c.finetune.model = c.pretrain.model",
        ["config.finetune", "'supervised' segments", "unet2d"],
    ),
    "a network that segments, for embeddings": (
        "c.pretrain.model = c.finetune.model",
        ["config.pretrain", "'pcl' embeds", "unet2d_contrast"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_config_file_with(name, place, capsys):
    change, expected = CHANGES[name]
    (place / "mine.py").write_text(
        "import runpy\n"
        "def get_config():\n"
        f"    c = runpy.run_path({str(CONFIG)!r})['get_config']('size=cpu,crop=16')\n"
        f"    c.data.raw_dir = {str(place / 'data')!r}\n"
        f"    {change}\n"
        "    return c\n"
    )
    args = [f"--config={place / 'mine.py'}", f"--workdir={place / 'run'}"]
    check(capsys, [*args, "--config.data.pipeline=numpy", "--devices=1"], *expected)
    assert not (place / "run").exists()


def keys_of(section, *above):
    for key, value in section.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from keys_of(value, *above, key)


def test_any_value_of_any_key_is_taken_or_refused_in_one_line(place, monkeypatch):
    monkeypatch.chdir(place)
    plain = config_for(place).to_dict()
    taken = 0
    for *above, last in keys_of(plain):
        for value in (None, "x", -1, (), float("nan")):
            changed = copy.deepcopy(plain)
            section = changed
            for key in above:
                section = section[key]
            section[last] = value
            config = ml_collections.ConfigDict(changed).lock()
            try:
                check_config(config, 1)
                building.outline(config)
                taken += 1
            except UserError as error:
                assert len(str(error).splitlines()) == 1, (above, last, value)
    assert taken < 30  # names, places, and () where it means the default


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def moved(path):
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    affine[0, 3] = 4.5
    nib.save(nib.Nifti1Image(label((20, 18, 5)), affine), path)


def with_nan(path):
    voxels = image((20, 18, 5)).astype(np.float32)
    voxels[3, 4, 2] = np.nan
    write(path, voxels)


# (file that is spoilt, how, what the line says); these show in headers
HEADERS = {
    "a text file": (
        "images",
        lambda p: p.write_text("no volume"),
        ["cannot be read"],
    ),
    "a label cut short": ("labels", cut_short, ["cannot be read"]),
    "an empty file": ("images", lambda p: p.write_bytes(b""), ["cannot be read"]),
    "another shape of the label": (
        "labels",
        lambda p: write(p, label((20, 18, 6))),
        ["label's shape is (20, 18, 6)", "image's (20, 18, 5)"],
    ),
    "another place of the label": (
        "labels",
        moved,
        ["4.5 mm off the image", "3 voxels"],
    ),
    "two dimensions": (
        "images",
        lambda p: write(p, image((20, 18))),
        ["(20, 18)", "3-D"],
    ),
    "one slice": (
        "images",
        lambda p: write(p, image((20, 18, 1))),
        ["one slice", "slice_axis"],
    ),
    "label without image": (
        "labels",
        lambda p: p.rename(p.with_name("case77.nii.gz")),
        ["case77.nii.gz", "matches no image"],
    ),
    "one of two frames labelled": (
        "images",
        lambda p: write(p, image((20, 18, 5, 2))),
        ["2 frame(s)", "give each frame its label"],
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_header_of(name, place, capsys):
    kind, spoil, expected = HEADERS[name]
    spoil(place / "data" / kind / "case02.nii.gz")
    before = contents(place)
    line = check(capsys, arguments(place), *expected)
    assert "case02" in line or "case77" in line
    assert contents(place) == before


# These show only in the voxels.
VOXELS = {
    "a file cut short": ("images", cut_short, ["cannot be read", "damaged"]),
    "not a number": ("images", with_nan, ["1 of 1800 voxels are NaN"]),
    "one value": (
        "images",
        lambda p: write(p, np.full((20, 18, 5), 7, np.int16)),
        ["every voxel is 7"],
    ),
    "a label value outside of the map": (
        "labels",
        lambda p: write(p, label((20, 18, 5), values=(0, 1, 2, 7))),
        ["label value 7", "(0, 1, 2)", "config.data.options.label_values"],
    ),
    "interpolated labels": (
        "labels",
        lambda p: write(p, label((20, 18, 5)).astype(np.float32) * 0.75),
        ["not whole numbers", "nearest neighbour"],
    ),
}


@pytest.mark.parametrize("name", VOXELS)
def test_voxels_of(name, place, capsys):
    kind, spoil, expected = VOXELS[name]
    path = place / "data" / kind / "case02.nii.gz"
    spoil(path)
    args = arguments(place, "--config.data.options.label_values=(0,1,2)")
    check(capsys, args, "case02", str(path), *expected)
    assert {path.name for path in (place / "run").iterdir()} == CLAIMED
    assert not list((place / "prepared").glob("nifti-????????????????"))  # no store
    assert not list(place.rglob("*.tmp"))
    json.loads((place / "run" / "config.json").read_text())  # whole


def test_mending_the_file_lets_the_same_command_go_on(place, capsys):
    path = place / "data" / "images" / "case02.nii.gz"
    whole = path.read_bytes()
    cut_short(path)
    args = arguments(place, "--stages=prepare")
    check(capsys, args, "case02")
    path.write_bytes(whole)
    code, stderr = call_main(capsys, *args)
    assert code == 0, stderr
    assert "finished" in stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"folds": [', "no JSON file"),
        ('{"folds": []}', "'folds' is missing or empty"),
        (
            '{"folds": [{"train": ["case00", "case01"], "validation": ["case01"]}]}',
            "'case01' is both in 'train' and in 'validation'",
        ),
        (
            '{"folds": [{"train": ["case00", "cas03"], "validation": ["case01"]}]}',
            "'cas03' is not in the dataset. Did you mean 'case03'?",
        ),
    ],
    ids=["cut short", "empty", "both sides", "unknown patient"],
)
def test_split_file(content, expected, place, capsys):
    path = place / "mine.json"
    path.write_text(content)
    args = arguments(place, f"--config.data.split.file={path}")
    check(capsys, args, str(path), expected)
    assert not (place / "run").exists()


def test_run_and_dry_run_say_whom_a_split_file_leaves_out(place, capsys):
    path = place / "mine.json"
    fold = {"train": ["gone", "case00", "case03"], "validation": ["case01"]}
    fold["draw"] = fold["train"]
    path.write_text(json.dumps({"absent": "leave out", "folds": [fold]}))
    args = arguments(place, f"--config.data.split.file={path}", "--stages=prepare")
    args.append("--config.data.split.labelled=1")
    said = f"split: the dataset lacks patients of {path}, who are left out: 1 of train"
    code, stderr = call_main(capsys, *args, "--dry_run")
    assert code == 0 and said in stderr, stderr
    assert "2 training patients, 1 of them labelled (case00);" in stderr
    code, stderr = call_main(capsys, *args)
    assert code == 0 and f"warning: {said}" in stderr, stderr
    assert said in (place / "run" / "log.txt").read_text()
    used = json.loads((place / "run" / "splits.json").read_text())
    kept = {"train": fold["train"][1:], "validation": ["case01"]}
    assert used["folds"] == [{**kept, "draw": kept["train"]}]


def test_acdc_patient_without_its_label(place, capsys):
    acdc_tree(place / "ACDC", patients=3)
    folder = place / "ACDC" / "training" / "patient003"
    (folder / "patient003_frame08_gt.nii.gz").unlink()
    config = f"{ROOT}/configs/pcl_acdc.py:size=cpu"
    args = [f"--config={config}", f"--config.data.raw_dir={place / 'ACDC'}"]
    args += [f"--workdir={place / 'run'}", "--config.data.pipeline=numpy"]
    args.append("--devices=1")
    check(capsys, args, str(folder), "lacks patient003_frame08_gt.nii.gz")


def test_decathlon_label_that_is_listed_but_missing(place, capsys):
    root = place / "Task04"
    hippocampus_tree(root, volumes=3)
    names = [f"hippocampus_{n:03d}.nii.gz" for n in range(3)]
    pairs = [
        {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names
    ]
    labels = {"0": "background", "1": "anterior", "2": "posterior"}
    index = {"training": pairs, "test": [], "labels": labels}
    (root / "dataset.json").write_text(json.dumps(index))
    (root / "labelsTr" / names[1]).unlink()
    args = [
        f"--config={ROOT}/configs/pcl_hippocampus.py",
        "--config.data.pipeline=numpy",
    ]
    args += [f"--config.data.raw_dir={root}", f"--workdir={place / 'run'}"]
    args.append("--devices=1")
    check(capsys, args, f"labelsTr/{names[1]}", "does not exist")


def test_folder_that_may_not_be_read(place, capsys, monkeypatch):
    acdc_tree(place / "ACDC", patients=1)
    iterdir = Path.iterdir

    def refused(path):  # chmod would not stop root
        if path.name == "training":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    args = [f"--config={ROOT}/configs/pcl_acdc.py", f"--workdir={place / 'run'}"]
    args += ["--config.data.pipeline=numpy", f"--config.data.raw_dir={place / 'ACDC'}"]
    args.append("--devices=1")
    check(capsys, args, "ACDC/training: Permission denied", "config.data.raw_dir")
    assert not (place / "run").exists()


def test_workdir_that_is_a_file(place, capsys):
    (place / "run").write_text("mine")
    check(capsys, arguments(place), "--workdir", str(place / "run"))
    assert (place / "run").read_text() == "mine"


def test_another_config_in_the_same_workdir(place, capsys):
    args = arguments(place, "--stages=prepare")
    assert call_main(capsys, *args)[0] == 0
    before = contents(place / "run")
    changed = [*args, "--config.seed=3"]
    check(capsys, changed, "another config", "config.seed", "0 there, 3 now")
    assert contents(place / "run") == before


def program(*args, code="from pclseg.main import main", env=None):
    """`python -m pclseg.main` in a process of its own; `code` imports its main."""
    script = f"import sys\n{code}\nsys.exit(main(sys.argv))"
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"} | (
        env or {}
    )
    command = [sys.executable, "-c", script, *args]
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_program_prints_one_line_and_exits_with_1(place):
    result = program(*arguments(place, "--config.pretrain.method.name=plc"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "method 'plc' is unknown" in the_error(result.stderr)


def test_program_without_tensorflow(place):
    hidden = "from hide_tensorflow import hide_tensorflow; hide_tensorflow()\n"
    result = program(
        *arguments(place, "--config.data.pipeline=tf"),
        code=f"{hidden}from pclseg.main import main",
    )
    assert result.returncode == 1
    line = the_error(result.stderr)
    assert "TensorFlow" in line
    assert "--config.data.pipeline=numpy" in line
    assert not (place / "run").exists()


def test_program_without_a_device(place):
    result = program(*arguments(place), env={"JAX_PLATFORMS": "cuda"})
    assert result.returncode == 1
    assert "jax finds no device (JAX_PLATFORMS='cuda')" in the_error(result.stderr)


def test_program_with_a_damaged_volume(place):
    path = place / "data" / "images" / "case02.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:900]))
    result = program(*arguments(place))  # with real worker processes
    assert result.returncode == 1
    assert str(path) in the_error(result.stderr)
    assert {path.name for path in (place / "run").iterdir()} == CLAIMED
