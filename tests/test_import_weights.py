"""Weights of the authors' nets: features equal PyTorch's; fine-tuning starts there."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from tiny_nifti import (
    InlinePool,
    chd_tree,
    clean_process,
    config_for,
    contents,
    nifti_tree,
)

from pclseg import building, models, runner
from pclseg.cli import import_weights
from pclseg.data import datasets, workers
from pclseg.errors import UserError
from pclseg.importing import stage
from pclseg.importing.authors_unet import convert
from pclseg.importing.torch_file import TorchFile, read_torch_file
from pclseg.models.backbone_pcl import Encoder
from pclseg.train.checkpoint import load_weights
from pclseg.train.stop import StopFlag

REFERENCE = Path(__file__).parent / "reference"
CONTRAST = REFERENCE / "torch_contrast_zip.pth"
UNET = REFERENCE / "torch_unet_legacy.pth"
COMMON = {"width": 2, "dtype": "float32", "bn_groups": 1}
NETS = {
    "contrast": (CONTRAST, models.make("unet2d_contrast", out_dim=8, **COMMON)),
    "unet": (UNET, models.make("unet2d", num_classes=3, **COMMON)),
}


def tensors_of(path):
    return read_torch_file(path).tensors


def converted(tensors, others=()):
    return convert(TorchFile(path=Path("x.pth"), tensors=tensors, others=others))


def run_import(capsys, *args):
    """(exit code, stderr) of the program, in this process."""
    with clean_process():
        code = import_weights.main([str(arg) for arg in args])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("name", NETS)
def test_features_and_output_equal_pytorch(name):
    path, model = NETS[name]
    reference = np.load(REFERENCE / "torch_import.npz")
    variables = convert(read_torch_file(path)).variables
    encoder = {kind: tree["encoder"] for kind, tree in variables.items()}
    centre, skips = jax.jit(
        lambda v, x: Encoder(2, "float32", 1, None).apply(v, x, train=False)
    )(encoder, reference["images"])
    for number, features in enumerate([*skips, centre], start=1):
        expected = reference[f"{name}/features{number}"]
        assert np.std(expected) > 0.3
        np.testing.assert_allclose(features, expected, atol=1e-5)
    output = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        variables, reference["images"]
    )
    np.testing.assert_allclose(output, reference[f"{name}/output"], atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_every_entry_is_imported_or_a_counter(name):
    path, model = NETS[name]
    imported = convert(read_torch_file(path))
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), np.zeros((1, 16, 16, 1)), train=False)
    )
    assert jax.tree.map(np.shape, imported.variables) == jax.tree.map(
        lambda leaf: leaf.shape, shapes
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(imported.variables)} == {
        "float32"
    }
    norms = {"contrast": 8, "unet": 16}[name]
    assert len(imported.dropped) == norms
    assert all(n.endswith(".num_batches_tracked") for n in imported.dropped)
    assert imported.unknown == () and imported.width == 2
    assert len(imported.leaves) + norms == len(tensors_of(path))


def test_other_floats_become_float32():
    tensors = tensors_of(CONTRAST)
    double = {
        name: array.astype("f8") if array.dtype == "f4" else array
        for name, array in tensors.items()
    }
    half = {name: array.astype("f2") for name, array in tensors.items()}
    expected = converted(tensors).variables
    jax.tree.map(np.testing.assert_array_equal, converted(double).variables, expected)
    assert {x.dtype.name for x in jax.tree.leaves(converted(half).variables)} == {
        "float32"
    }


def test_what_is_not_known_is_listed():
    tensors = tensors_of(CONTRAST)
    tensors["encoder.contr_5_1.0.weight"] = np.zeros((2, 2), "f4")
    imported = converted(tensors, others=("epoch",))
    assert imported.unknown == ("encoder.contr_5_1.0.weight", "epoch")


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_a_head_that_does_not_fit_is_left_out_and_listed(change):
    tensors = tensors_of(CONTRAST)
    if change == "missing":
        del tensors["head.4.bias"]
    else:
        tensors["head.2.bias"] = np.zeros(5, "f4")
    imported = converted(tensors)
    assert set(imported.variables["params"]) == {"encoder"}
    assert imported.unknown == tuple(n for n in tensors if n.startswith("head."))


def without(name):
    return lambda tensors: tensors.pop(name)


def with_array(name, array):
    return lambda tensors: tensors.update({name: array})


NAN = np.full(2, np.nan, "f4")
UNFIT = {
    "no weight at all": (lambda tensors: tensors.clear(), "first names are none"),
    "another net": (
        lambda tensors: [
            tensors.update({f"backbone.{name}": tensors.pop(name)})
            for name in list(tensors)
        ],
        "encoder.contr_1_1.0.weight is missing; .* are 'backbone.encoder.contr_1_1.0.w",
    ),
    "a leaf that is missing": (
        without("encoder.contr_3_1.1.running_var"),
        "x.pth: encoder.contr_3_1.1.running_var is missing",
    ),
    "a net of volumes": (
        with_array("encoder.contr_1_1.0.weight", np.zeros((2, 1, 3, 3, 3), "f4")),
        r"encoder.contr_1_1.0.weight has shape \(2, 1, 3, 3, 3\), where \(2, 1, 3, 3\)",
    ),
    "another width further on": (
        with_array("encoder.contr_2_1.0.weight", np.zeros((5, 2, 3, 3), "f4")),
        r"encoder.contr_2_1.0.weight has shape \(5, 2, 3, 3\), where \(4, 2, 3, 3\)",
    ),
    "another width": (
        with_array("encoder.contr_1_1.0.weight", np.zeros((3, 1, 3, 3), "f4")),
        r"encoder.contr_1_1.0.bias has shape \(2,\), where \(3,\) is expected",
    ),
    "a scalar in front": (
        with_array("encoder.contr_1_1.0.weight", np.float32(1)),
        r"encoder.contr_1_1.0.weight has shape \(\), where \(1, 1, 3, 3\)",
    ),
    "whole numbers": (
        with_array("encoder.center.2.bias", np.zeros(32, "i8")),
        "encoder.center.2.bias is int64, where floats are expected",
    ),
    "no number": (
        with_array("encoder.contr_1_1.0.bias", NAN),
        "encoder.contr_1_1.0.bias holds NaN or infinity",
    ),
    "beyond float32": (
        with_array("encoder.contr_1_1.0.bias", np.array([1.0, 1e300])),
        "encoder.contr_1_1.0.bias holds NaN or infinity",
    ),
    "negative variance": (
        with_array("encoder.contr_1_1.1.running_var", -np.ones(2, "f4")),
        "running_var holds a negative variance",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_encoder_that_does_not_fit_is_refused(name):
    change, expected = UNFIT[name]
    tensors = tensors_of(CONTRAST)
    change(tensors)
    with pytest.raises(UserError, match=expected) as error:
        converted(tensors)
    assert "\n" not in str(error.value)


def test_the_folder_is_a_finished_stage_with_its_origin(tmp_path, capsys):
    folder = tmp_path / "runs" / "official"
    code, stderr = run_import(capsys, CONTRAST, f"--out={folder}", "--seen=acdc")
    assert code == 0, stderr
    first, leaf, *_, last = stderr.splitlines()
    assert first == (
        "imported 56 arrays of a net of width 2; dropped 8 counters of batches;"
        " left 0 out"
    )
    assert leaf == (
        "imported encoder.contr_1_1.0.weight -> params/encoder/level1/conv1/kernel"
        " (3, 3, 1, 2)"
    )
    assert last == (
        f"wrote {folder}, which has seen 100 patients; start from it with"
        f" --config.finetune.init_from={folder} --config.finetune.model.width=2"
    )
    about = json.loads((folder / "import.json").read_text())
    assert about["file"] == "torch_contrast_zip.pth"
    assert about["sha256"] == hashlib.sha256(CONTRAST.read_bytes()).hexdigest()
    assert about["leaves"]["head.4.bias"] == "params/head/dense2/bias"
    assert len(about["dropped"]) == 8 and about["unknown"] == []
    seen = json.loads((folder / "patients.json").read_text())
    images = seen["images"]
    assert (len(images), images[0], images[-1]) == (100, "patient001", "patient100")
    assert seen["labels"] == []
    building.check_finished(folder)
    _, params, stats = load_weights(folder / "checkpoints")
    saved = {"params": params, "batch_stats": stats}
    expected = convert(read_torch_file(CONTRAST)).variables
    jax.tree.map(np.testing.assert_array_equal, saved, expected)
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("path", "seen", "warned"),
    [(UNET, "acdc", True), (UNET, "none", False), (CONTRAST, "acdc", False)],
)
def test_a_net_that_saw_labels_is_warned_of(path, seen, warned, tmp_path, capsys):
    code, stderr = run_import(capsys, path, f"--out={tmp_path / 'x'}", f"--seen={seen}")
    assert code == 0
    assert ("warning: " in stderr and "having seen labels" in stderr) == warned
    seen = json.loads((tmp_path / "x" / "patients.json").read_text())
    assert seen["labels"] == (seen["images"] if warned else [])


@pytest.mark.parametrize("change", ["missing", "whole numbers", "no number"])
def test_a_decoder_that_is_left_out_has_seen_labels_too(change):
    tensors, name = tensors_of(UNET), "decoder.head.0.weight"
    if change == "missing":
        del tensors[name]
    else:
        kind, value = {"whole numbers": ("i4", 1), "no number": ("f4", np.nan)}[change]
        tensors[name] = np.full(tensors[name].shape, value, kind)
    imported = converted(tensors)
    assert set(imported.variables["params"]) == {"encoder"}
    assert "decoder.upscale5.weight" in imported.unknown
    assert import_weights.segments(imported)


def test_patients_of_chd_are_called_as_its_dataset_calls_them(tmp_path):
    chd_tree(tmp_path)
    cases = datasets.make("chd", raw_dir=tmp_path).cases
    assert import_weights.seen_patients("chd") == tuple(c.patient for c in cases)


# (arguments after the file, what the line says)
MISTAKES = {
    "out is there": (["--out=there", "--seen=none"], "--out there is there already"),
    "seen is no file": (
        ["--out=new", "--seen=adcc"],
        "'adcc' is not one of none, acdc, chd",
    ),
    "seen is a folder": (["--out=new", "--seen=there"], "Is a directory"),
    "seen is empty": (
        ["--out=new", "--seen=empty.txt"],
        "names no patient; write --se",
    ),
    "seen is no text": (["--out=new", "--seen=bytes.txt"], "read (no UTF-8)"),
    "out is a link to nothing": (["--out=link", "--seen=none"], "is there already"),
    "out of a long name": ([f"--out={300 * 'x'}", "--seen=none"], "name too long"),
    "out below a file": (["--out=empty.txt/new", "--seen=none"], "cannot be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("link").symlink_to("nothing")
    Path("empty.txt").write_text(" \n\n")
    Path("bytes.txt").write_bytes(b"\xff\xfe\xff")
    before = contents(tmp_path)
    args, expected = MISTAKES[name]
    code, stderr = run_import(capsys, CONTRAST, *args)
    assert code == 1
    (line,) = stderr.splitlines()
    assert line.startswith("error: ") and expected in line
    assert contents(tmp_path) == before


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_args):
        raise UserError("full")

    monkeypatch.setattr(stage, "write_json", full_disk)
    variables = convert(read_torch_file(CONTRAST)).variables
    with pytest.raises(UserError, match="full"):
        stage.write_stage(
            tmp_path / "new", variables, patients=[], saw_labels=False, about={}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/: six labelled volumes of as many patients."""
    root = tmp_path_factory.mktemp("place")
    nifti_tree(root / "data", volumes=6, labelled=6)
    return root


def config_from(place, folder, *more):
    return config_for(place, "scratch", f"--config.finetune.init_from={folder}", *more)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_imported_encoder(
    place, tmp_path, monkeypatch, capsys
):
    (tmp_path / "seen.txt").write_text("someone\n\n elsewhere \n")
    folder, workdir = tmp_path / "official", tmp_path / "run"
    args = f"--out={folder}", f"--seen={tmp_path / 'seen.txt'}"
    assert run_import(capsys, UNET, *args)[0] == 0
    config = config_from(place, folder, "--config.evaluate.every_epochs=99")
    outline, first, train = runner.outline(config, dry_run=False), [], runner.train

    def spy(step, state, *args, **kwargs):
        first.append(jax.device_get(building.weights(state)))
        return train(step, state, *args, **kwargs)

    monkeypatch.setattr(runner, "train", spy)
    monkeypatch.setattr(workers.futures, "ProcessPoolExecutor", InlinePool)
    devices, only = jax.local_devices()[:1], ("finetune",)
    runner.execute(
        config,
        workdir,
        outline,
        predictions=workdir / "predictions",
        devices=devices,
        only=only,
        stop=StopFlag(),
    )
    started = traverse_util.flatten_dict(first[0])
    expected = traverse_util.flatten_dict(convert(read_torch_file(UNET)).variables)
    encoder = [leaf for leaf in started if leaf[1] == "encoder"]
    assert len(encoder) == 52
    for leaf in encoder:
        np.testing.assert_array_equal(started[leaf], expected[leaf], str(leaf))
    other = ("params", "decoder", "level1", "conv1", "kernel")
    assert not np.array_equal(started[other], expected[other])
    done = json.loads((workdir / "finetune" / "done.json").read_text())
    assert done == {"steps": 2, "warning": None}
    seen = json.loads((workdir / "finetune" / "patients.json").read_text())
    everyone = sorted({"someone", "elsewhere", *outline.split.labelled})
    assert seen == {"images": everyone, "labels": everyone}


def test_weights_that_saw_held_out_patients_need_the_word_of_the_user(
    place, tmp_path, capsys
):
    held_out = building.outline(config_for(place, "scratch")).split.validation[0]
    (tmp_path / "seen.txt").write_text(f"{held_out}\n")
    folder, seen = tmp_path / "official", tmp_path / "seen.txt"
    assert run_import(capsys, CONTRAST, f"--out={folder}", f"--seen={seen}")[0] == 0
    with pytest.raises(UserError, match=f"tests on, {held_out} first"):
        building.outline(config_from(place, folder))
    allowed = config_from(place, folder, "--config.data.transductive=True")
    assert list(building.outline(allowed).stages) == ["finetune"]


def test_another_width_is_told(place, tmp_path, capsys):
    folder = tmp_path / "official"
    assert run_import(capsys, CONTRAST, f"--out={folder}", "--seen=none")[0] == 0
    config = config_from(place, folder, "--config.finetune.model.width=4")
    with pytest.raises(UserError, match="init_from: .*model.width and the channels"):
        building.outline(config)
