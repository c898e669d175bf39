"""Trained networks: handed on as a folder, used from Python, exported for jax alone."""

import dataclasses
import json
import shutil
import sys
import types

import jax
import nibabel as nib
import numpy as np
import pytest
from tiny import run_main, tiny_args
from tiny_nifti import ROOT, clean_process, image, options_of

import pclseg
from pclseg import building, network
from pclseg import export as exporting
from pclseg.__main__ import main
from pclseg.config import load_config
from pclseg.data.geometry import Geometry
from pclseg.data.volume import prepare_image
from pclseg.errors import UserError
from pclseg.export import as_function, export_model, write_export
from pclseg.network import Network
from pclseg.trained import predictor

NO_STEPS = {
    f"{stage}__train__{key}": value
    for stage in ("pretrain", "finetune")
    for key, value in [("steps", 2), ("checkpoint_every", 2)]
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of PCL, two steps a stage."""
    root = tmp_path_factory.mktemp("trained")
    done = run_main(tiny_args(root / "raw", root / "store", root / "run", **NO_STEPS))
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.fixture(scope="module")
def scan(run):
    """A volume of the phantom that the run was trained on."""
    return sorted((run.parent / "raw").glob("images/*.nii.gz"))[0]


@pytest.fixture
def command(capsys):
    """(exit status, last line of the log) of `pclseg NAME ARGS`."""

    def call(name, *args):
        with clean_process():
            status = main([name, *map(str, args)])
        return status, capsys.readouterr().err.splitlines()[-1]

    return call


@pytest.fixture
def model(run, tmp_path, command):
    """The run as a model folder."""
    assert command("share", run, f"--out={tmp_path / 'model'}")[0] == 0
    return tmp_path / "model"


def some_network(seed=0, **options):
    """An untrained network of three classes."""
    stage = load_config(f"{ROOT}/configs/scratch_phantom.py").finetune
    stage.model.width, stage.data.crop_size = 2, (32, 32)
    method = building.build_method(stage)
    shown = {
        "image": np.zeros((1, 32, 32, 1), np.float32),
        "label": np.zeros((1, 32, 32), np.int32),
    }
    params, model_state, _ = method.init(jax.random.key(seed), shown)
    return Network(
        source=f"seed {seed}",
        stage=stage,
        step=0,
        params=params,
        batch_stats=model_state["batch_stats"],
        options=dataclasses.replace(
            options_of("pcl_acdc"), **{"slice_axis": 2, "spacing": (), **options}
        ),
        class_names=("background", "shell", "core"),
        label_values=(0, 7, 500),
        channel=-1,
        gains=None,
    )


def test_a_model_folder_predicts_as_its_run_does(run, model, scan, tmp_path, command):
    outs = []
    for option, folder in (("--run", run), ("--model", model)):
        out = tmp_path / f"out{len(outs)}"
        images = f"--images={scan}"
        assert command("predict", f"{option}={folder}", images, f"--out={out}")[0] == 0
        outs.append((out / scan.name).read_bytes())
    assert outs[0] == outs[1]


def test_it_names_no_patient_and_no_path(run, model):
    patients = json.loads((run / "finetune" / "patients.json").read_text())["images"]
    assert patients
    for name in ("README.md", "model.json"):
        text = (model / name).read_text()
        assert str(run.parent) not in text and "raw_dir" not in text
        assert not any(patient in text for patient in patients)


def test_the_card_says_what_was_trained_and_scored(run, model):
    card = (model / "README.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    core = summary["classes"]["core"]["dice"]
    assert f"| 1 | core | {core['mean']:.3f} ± {core['sd']:.3f} |" in card
    assert "pretrain: pcl, 2 steps of 8 slices" in card
    assert "finetune: supervised, 2 steps of 8 slices of 2 patients" in card
    assert "Zeng et al. 2021, arXiv 2106.09157" in card
    assert "Licence of the weights: not stated" in card
    assert card.startswith("---\n") and "license: unknown" in card


def test_several_runs_go_into_one_folder(run, tmp_path, command):
    out = tmp_path / "model"
    status, line = command("share", run, run, f"--out={out}", "--licence=CC-BY-4.0")
    assert status == 0, line
    assert len(network.read(out)) == 2
    assert "license: CC-BY-4.0" in (out / "README.md").read_text()
    assert command("share", run, f"--out={out}") == (
        1,
        f"error: --out {out} exists; name a new folder.",
    )


def test_a_damaged_model_folder_is_named(model):
    weights = model / "weights_1.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with pytest.raises(UserError, match="is not the file that model.json names"):
        network.read(model)
    weights.unlink()
    with pytest.raises(UserError, match="weights_1.safetensors does not exist; fetch"):
        network.read(model)
    weights.write_bytes(whole)
    content = json.loads((model / "model.json").read_text())
    for key, value, expected in [
        ("format", 2, "is of format 2; this is pclseg .* reads format 1"),
        ("networks", [{"weights": "x"}], "lacks 'sha256'; a hand changed it"),
        ("prepare", {"slice_axis": 2}, "'prepare' of .*model.json needs"),
    ]:
        (model / "model.json").write_text(json.dumps(content | {key: value}))
        with pytest.raises(UserError, match=expected):
            network.read(model)


def test_weights_never_come_from_outside_of_the_folder(model, tmp_path):
    content = json.loads((model / "model.json").read_text())
    (model / "weights_1.safetensors").rename(tmp_path / "weights_1.safetensors")
    content["networks"][0]["weights"] = "../weights_1.safetensors"
    (model / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not exist"):
        network.read(model)


def test_networks_that_are_not_alike_are_told_apart(tmp_path):
    other = dataclasses.replace(some_network(1), label_values=(0, 1, 2))
    expected = "seed 1 and seed 0 cannot predict together: label_values is"
    with pytest.raises(UserError, match=expected):
        network.write_model(tmp_path / "model", [some_network(0), other], "card")
    assert not any(tmp_path.iterdir())


def test_a_hub_name_is_fetched_once_the_library_is_there(model, monkeypatch):
    with pytest.raises(UserError, match="no folder you/model; .*pip install hugg"):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        network.read("you/model")
    hub = types.ModuleType("huggingface_hub")
    asked = []
    hub.snapshot_download = lambda name, **_: asked.append(name) or str(model)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert len(network.read("you/model")) == 1 and asked == ["you/model"]

    def fail(name, **_):
        raise OSError("offline\nand more")

    hub.snapshot_download = fail
    with pytest.raises(UserError, match="the hub gives no such model: offline$"):
        network.read("you/model")
    with pytest.raises(UserError, match="no/such/folder is no run directory"):
        network.read("no/such/folder")


def test_python_says_what_the_command_writes(run, scan, tmp_path, command):
    out = tmp_path / "out"
    assert (
        command("predict", f"--run={run}", f"--images={scan}", f"--out={out}")[0] == 0
    )
    wanted = np.asanyarray(nib.load(out / scan.name).dataobj)
    segmenter = pclseg.load(run)
    loaded = nib.load(scan)
    voxels = np.asanyarray(loaded.dataobj)
    found = segmenter.predict(voxels, affine=loaded.affine)
    np.testing.assert_array_equal(found, wanted)
    spacing = loaded.header.get_zooms()
    np.testing.assert_array_equal(segmenter.predict(voxels, spacing), wanted)
    probs = segmenter.predict(voxels, spacing, probabilities=True)
    assert probs.shape == (*voxels.shape, 3)
    np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-5)
    assert list(segmenter.classes) == ["background", "shell", "core"]


@pytest.mark.parametrize(
    ("volume", "given", "expected"),
    [
        (image((4, 5)), {"spacing": (1, 1, 1)}, r"shape \(4, 5\) and dtype int16"),
        (image((4, 5, 6)) > 3, {"spacing": (1, 1, 1)}, "dtype bool; expected"),
        (image((4, 5, 6)), {}, r"spacing is \(\); expected three sizes in mm, or give"),
        (image((4, 5, 6)), {"spacing": (1, 0, 1)}, r"spacing is \(1, 0, 1\)"),
        (image((4, 5, 6)), {"affine": np.eye(3)}, r"affine has shape \(3, 3\)"),
        (image((4, 5, 6)), {"affine": np.zeros((4, 4))}, "affine cannot be inverted"),
        (np.full((4, 5, 6), np.nan), {"spacing": (1, 1, 1)}, "120 of 120 voxels are"),
        (np.ones((4, 5, 6)), {"spacing": (1, 1, 1)}, "every voxel is 1, so there is"),
        (image((4, 5, 1)), {"spacing": (1, 1, 1)}, "has one slice along"),
    ],
)
def test_a_volume_that_cannot_be_segmented_is_told(run, volume, given, expected):
    with pytest.raises(UserError, match=expected):
        pclseg.load(run).predict(volume, **given)


OPTIONS = {
    "plain": {},
    "clipped": {"clip_percentiles": (2.0, 98.0)},
    "whole": {"clip_percentiles": (2.0, 98.0), "integers": True},
    "replaced": {"replace_below": (60.0, 90.0)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_export_gives_the_numbers_of_pclseg_for_any_size(options):
    networks = [some_network(seed, **options) for seed in (0, 1)]
    exported = jax.export.deserialize(
        export_model(networks, platforms=("cpu",)).serialize()
    )
    for shape in [(2, 32, 32), (5, 47, 33), (3, 20, 70)]:
        volume = np.random.default_rng(1).normal(100, 30, shape).astype(np.float32)
        chosen = networks[0].options
        wanted = predictor(networks, batch_size=2)(
            prepare_image(
                volume,
                as_it_is(shape),
                clip_percentiles=chosen.clip_percentiles,
                integers=chosen.integers,
                replace_below=chosen.replace_below,
                image_order=1,
            )
        )
        labels, probs = exported.call(volume)
        np.testing.assert_allclose(probs, wanted, atol=2e-5)
        # Where two classes are level, rounding decides.
        best = np.sort(wanted, axis=-1)
        clear = best[..., -1] - best[..., -2] > 1e-4
        values = np.asarray(networks[0].label_values)[wanted.argmax(axis=-1)]
        np.testing.assert_array_equal(np.asarray(labels)[clear], values[clear])


def as_it_is(shape):
    return Geometry(
        file_shape=shape,
        affine=tuple(map(tuple, np.eye(4).tolist())),
        axes=(0, 1, 2),
        flips=(False, False, False),
        native_shape=shape,
        native_spacing=(1.0, 1.0, 1.0),
        shape=shape,
    )


def test_an_export_is_checked_before_it_is_written(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--platforms is tpu; add cpu, this machine's"):
        write_export(out, [some_network()], platforms=("tpu",))

    def wrong(networks):
        return lambda x: [0.5 + y for y in as_function(networks)(x)]

    monkeypatch.setattr(exporting, "as_function", wrong)
    with pytest.raises(UserError, match="differs from pclseg by .*; nothing was writt"):
        write_export(out, [some_network()], platforms=("cpu",))
    assert not any(tmp_path.iterdir())


def test_the_command_exports_runs_and_says_how_to_call_it(
    run, model, tmp_path, command
):
    out = tmp_path / "out"
    status, line = command("export", run, model, f"--out={out}", "--platforms", "cpu")
    assert status == 0 and "probabilities are those of pclseg within" in line
    readme = (out / "README.md").read_text()
    assert "axial slices, counted towards the head" in readme
    assert "the 2 networks and their mean" in readme
    program = readme.partition("```python\n")[2].partition("```")[0]
    volume = np.random.default_rng(0).normal(size=(3, 40, 36)).astype(np.float32)
    scope = {"volume": volume}
    program = program.replace(f'"{out.name}/', f'"{out}/')
    exec(program, scope)
    assert scope["labels"].shape == volume.shape
    assert scope["probabilities"].shape == (*volume.shape, 3)


def test_a_run_says_what_keeping_the_largest_part_would_do(run, tmp_path):
    gains = json.loads((run / "largest_part.json").read_text())
    summary = json.loads((run / "summary.json").read_text())["classes"]
    assert list(gains) == list(summary)
    for name, part in gains.items():
        assert part["n"] == summary[name]["dice"]["n"]
        assert part["dice"] == pytest.approx(summary[name]["dice"]["mean"])
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / "largest_part.json").unlink()
    with pytest.raises(UserError, match="does not say"):
        pclseg.load(copied, largest_part=True)
    assert pclseg.load(copied).alone == ()
