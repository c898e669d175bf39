"""Trained networks: handed on as a folder, used from Python, exported for jax alone."""

import dataclasses
import hashlib
import json
import shutil
import sys
import types

import jax
import nibabel as nib
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save
from tiny import run_main, tiny_args
from tiny_nifti import ROOT, clean_process, image, options_of

import pclseg
from pclseg import building, network
from pclseg import export as exporting
from pclseg.__main__ import main
from pclseg.card import write_card
from pclseg.config import load_config
from pclseg.data.prepare import prepare_array
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
        channels=(),
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
    assert "pretrain: pcl, batches of 8 slices, sgd at 0.01, width 2; 2 steps;" in card
    assert "images of 8 patients and labels of 2 of them" in card
    assert "2 cases of 2 patients, none of whom it saw in training." in card
    assert "Zeng et al. 2021, arXiv 2106.09157" in card
    assert "Licence of the weights: not stated" in card
    assert card.startswith("---\n") and "license: unknown" in card


def test_the_card_names_all_files_that_the_run_worked_with(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    dataset = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(
        json.dumps({**dataset, "fingerprint": "c", "earlier_fingerprints": ["a", "b"]})
    )
    card = write_card([copy], [network.of_run(copy)], "m", licence="")
    assert "prepared as c, earlier b, earlier a; fold" in card


def test_the_card_repeats_what_a_stage_warned_of_at_its_end(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    done = {"steps": 2, "warning": "all slices are embedded alike."}
    (copy / "pretrain" / "done.json").write_text(json.dumps(done))
    card = write_card([copy], [network.of_run(copy)], "m", licence="")
    assert "; its last warning: all slices are embedded alike." in card


def test_several_runs_go_into_one_folder(run, tmp_path, command):
    out = tmp_path / "model"
    other = shutil.copytree(run, tmp_path / "other")
    shutil.rmtree(other / "pretrain")  # to save room
    args = ("share", run, other, f"--out={out}", "--licence=CC-BY-4.0")
    status, line = command(*args)
    assert status == 0, line
    assert len(network.read(out)) == 2
    card = (out / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "width 2; its folder is gone" in card
    assert command(*args) == (1, f"error: --out {out} exists; name a new folder.")
    status, line = command("share", run, run, f"--out={tmp_path / 'twice'}")
    assert status == 1 and "a run is named twice" in line


@pytest.mark.parametrize(
    ("licence", "head"),
    [
        ("MIT", "license: mit\n"),
        ("", "license: unknown\n"),
        ("ours: ask # us", 'license: other\nlicense_name: "ours: ask # us"\n'),
    ],
)
def test_the_head_of_a_card_is_yaml_that_the_hub_takes(run, licence, head):
    card = write_card([run], [network.of_run(run)], "m", licence=licence)
    assert head in card.partition("\n---\n")[0] + "\n"
    assert yaml.safe_load(card.split("---\n")[1])["tags"]


def test_a_licence_of_several_lines_is_refused(run):
    with pytest.raises(UserError, match="--licence has line breaks"):
        write_card([run], [network.of_run(run)], "m", licence="a\nb: c")


def test_names_cannot_break_the_card(run):
    names = ("back|ground", "a\n# b", "<b>*c*")
    odd = dataclasses.replace(network.of_run(run), class_names=names)
    card = write_card([run], [odd], "od d'\"`|", licence="")
    zero, one, _ = odd.label_values
    assert rf"| back\|ground | {zero} |" in card and rf"| a \# b | {one} |" in card
    assert r"\<b\>\*c\*" in card and "\n# b" not in card
    program = card.partition("```python\n")[2].partition("```")[0]
    compile(program, "card", "exec")


def test_a_card_says_what_came_before_and_what_was_seen(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    shutil.rmtree(other / "pretrain")
    config = json.loads((run / "config.json").read_text())
    config["stages"] = ["finetune"]
    config["finetune"]["init_from"] = str(run / "pretrain")
    (other / "config.json").write_text(json.dumps(config))
    seen = json.loads((run / "finetune" / "patients.json").read_text())
    scored = {row.split(",")[1] for row in (run / "cases.csv").open()} - {"patient"}
    seen["images"] += sorted(scored)
    (other / "finetune" / "patients.json").write_text(json.dumps(seen))
    card = write_card([other], [network.of_run(other)], "m", licence="")
    assert "- before finetune: pretrain: pcl, batches of 8 slices" in card
    assert "pcl: Positional contrastive learning." in card
    assert "whose images it saw in training (transductive)" in card
    assert "and of the weights that it\nstarted from," in card
    assert str(run) not in card


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", []),
        ("run.json", [{}]),
        ("dataset.json", {"name": "x"}),
        ("summary.json", {}),
        ("finetune/patients.json", []),
    ],
)
def test_a_run_with_a_damaged_file_is_named(run, tmp_path, command, name, content):
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / name).write_text(json.dumps(content))
    status, line = command("share", copied, f"--out={tmp_path / 'model'}")
    assert status == 1 and str(copied) in line and line.startswith("error: ")
    assert not (tmp_path / "model").exists()


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


ODD = {
    "format": [1, None],
    "class_names": [["a"], "abc", None, ["a", "b", "c", "d"]],
    "label_values": [[0, 1, 1], [0, 1, 2.0], "x", [], [None, 1, 2], [0, 1, 2**70]],
    "channels": [None, "0", [-1], [0, 0], 0],
    "prepare": [None, {}, {"slice_axis": 2}],
    "networks": [[], {}, None, [3], [{"weights": "x"}]],
}
ODD_OPTIONS = {
    "slice_axis": ["auto", 3, None],
    "spacing": [None, "ab", ["a", "b"], [1], [1e-9, 1e-9]],
    "clip_percentiles": [None, ["a", "b"], [1], [], [60, 40]],
    "replace_below": [None, ["a", 1], [1]],
}
ODD_STAGE = {
    "data": [None, {}, {"crop_size": [3]}, {"crop_size": ["a", "b"]}],
    "method": [None, {"name": "rotation"}, {"name": "x"}],
    "model": [None, {}],
}


def edited(model, change):
    """model.json after `change`, which gets and may return its content."""
    path = model / "model.json"
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


def said(model):
    with pytest.raises(UserError) as error:
        network.read(model)
    assert str(model) in str(error.value) or "model.json" in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_whatever_stands_in_model_json_is_taken_or_refused_in_one_line(model):
    whole = (model / "model.json").read_text()
    cases = [
        (section, key, value)
        for section, keys in (("", ODD), ("prepare", ODD_OPTIONS), ("stage", ODD_STAGE))
        for key, values in keys.items()
        for value in values
    ]
    for section, key, value in cases:

        def change(content, section=section, key=key, value=value):
            part = content["networks"][0]["stage"] if section == "stage" else content
            part = content["prepare"] if section == "prepare" else part
            part[key] = value

        edited(model, change)
        said(model)
        (model / "model.json").write_text(whole)
    for text in ("[]", "null", "3", "{", "[" * 100_000):
        (model / "model.json").write_text(text)
        said(model)


def without_statistics(tree):
    return {k: v for k, v in tree.items() if k.startswith("params/")}


def wider(tree):
    return {k: np.concatenate([v, v], axis=-1) for k, v in tree.items()}


def not_a_number(tree):
    return {k: v * np.float32(np.nan) for k, v in tree.items()}


def double(tree):
    return {k: v.astype(np.float64) for k, v in tree.items()}


@pytest.mark.parametrize(
    "change", [without_statistics, wider, not_a_number, double, lambda tree: {}]
)
def test_weights_that_do_not_fit_are_refused(model, change):
    path = model / "weights_1.safetensors"
    path.write_bytes(save(change(load_file(path))))

    def right_sum(content):
        content["networks"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    edited(model, right_sum)
    assert "do not fit model.json" in said(model)


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
    with pytest.raises(UserError, match="hf://you/model is on .*`pip install hugg"):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        network.read("hf://you/model")
    hub = types.ModuleType("huggingface_hub")
    asked = []

    def fetch(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(model)

    hub.snapshot_download = fetch
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert len(network.read("hf://you/model")) == 1
    assert len(network.read("hf://you/model@v1")) == 1
    assert asked == [("you/model", None), ("you/model", "v1")]

    def fail(name, **_):
        raise RuntimeError("offline\nand more")

    hub.snapshot_download = fail
    with pytest.raises(
        UserError, match=r"hf://you/model cannot be fetched \(offline\)"
    ):
        network.read("hf://you/model")
    (model / "model.json").unlink()
    hub.snapshot_download = fetch
    with pytest.raises(UserError, match="holds no model.json: it is no model of"):
        network.read("hf://you/model")
    with pytest.raises(UserError, match="you/model is no run directory"):
        network.read("you/model")  # a name on a disk is never looked for elsewhere


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
        (image((4, 5, 6)), {}, r"spacing has shape \(0,\); expected three sizes in mm"),
        (image((4, 5, 6)), {"spacing": (1, 0, 1)}, r"spacing has shape \(3,\)"),
        (image((4, 5, 6)), {"spacing": None}, "spacing has shape"),
        (image((4, 5, 6)), {"spacing": 1.0}, "spacing has shape"),
        (image((4, 5, 6)), {"spacing": "abc"}, "spacing has shape"),
        (image((4, 5, 6)), {"spacing": [[1], [1, 2]]}, "spacing has shape"),
        (image((4, 5, 6)), {"spacing": np.eye(4)}, "did you mean affine="),
        (image((4, 5, 6)), {"affine": 1j * np.eye(4)}, "affine has shape"),
        (image((4, 5, 6)), {"affine": np.ones((4, 4))}, "0, 0, 0, 1 below"),
        (
            image((4, 5, 6)),
            {"spacing": (1, 1, 1), "affine": np.eye(4)},
            "spacing and affine are both given",
        ),
        (image((4, 0, 6)), {"spacing": (1, 1, 1)}, r"shape \(4, 0, 6\)"),
        (image((4, 5, 6)) * 1e39, {"spacing": (1, 1, 1)}, "voxels are NaN or infinite"),
        (image((4, 5, 6)) * 1e-49, {"spacing": (1, 1, 1)}, "every voxel is 0, so"),
        (image((4, 5, 6)), {"affine": np.eye(3)}, r"affine has shape \(3, 3\)"),
        (image((4, 5, 6)), {"affine": np.diag((0, 0, 0, 1))}, "cannot be inverted"),
        (np.full((4, 5, 6), np.nan), {"spacing": (1, 1, 1)}, "120 of 120 voxels are"),
        (np.ones((4, 5, 6)), {"spacing": (1, 1, 1)}, "every voxel is 1, so there is"),
        (image((4, 5, 1)), {"spacing": (1, 1, 1)}, "has one slice along"),
    ],
)
def test_a_volume_that_cannot_be_segmented_is_told(run, volume, given, expected):
    with pytest.raises(UserError, match=expected):
        pclseg.load(run).predict(volume, **given)


@pytest.mark.parametrize(
    ("paths", "options", "expected"),
    [
        ((), {}, "name runs or model folders, one by one"),
        ((["a"],), {}, "one by one"),
        ((None,), {}, "one by one"),
        (("a",), {"batch_size": 0}, "batch_size is 0; expected a whole number from 1"),
        (("a",), {"batch_size": 2.5}, "batch_size is 2.5"),
        (("a",), {"tile": "64"}, "tile is 64; expected a multiple of 16"),
        (("no/such",), {}, "no/such is no run directory"),
    ],
)
def test_what_cannot_be_loaded_is_told(paths, options, expected):
    with pytest.raises(UserError, match=expected):
        pclseg.load(*paths, **options)


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
    for shape, mean in [((2, 32, 32), 100), ((5, 47, 33), 300), ((3, 20, 70), 100)]:
        volume = np.random.default_rng(1).normal(mean, 30, shape).astype(np.float32)
        as_in_a_file = [volume.transpose(2, 1, 0)]
        image, _, _ = prepare_array(as_in_a_file, np.eye(4), networks[0].options)
        wanted = predictor(networks, batch_size=2)(image)
        labels, probs = exported.call(volume)
        np.testing.assert_allclose(probs, wanted, atol=2e-5)
        # Where two classes are level, rounding decides.
        best = np.sort(wanted, axis=-1)
        clear = best[..., -1] - best[..., -2] > 1e-4
        values = np.asarray(networks[0].label_values)[wanted.argmax(axis=-1)]
        np.testing.assert_array_equal(np.asarray(labels)[clear], values[clear])


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
    run, model, tmp_path, command, monkeypatch
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
    monkeypatch.chdir(tmp_path)
    exec(program, scope)
    assert scope["labels"].shape == volume.shape
    assert scope["probabilities"].shape == (*volume.shape, 3)


def test_slices_of_the_file_as_stored_stay_so_wherever_the_network_goes(
    run, tmp_path, command, monkeypatch
):
    copied = shutil.copytree(run, tmp_path / "run")
    config = json.loads((copied / "config.json").read_text())
    config["data"]["prepare"]["slice_axis"] = "file"
    (copied / "config.json").write_text(json.dumps(config))
    assert command("share", copied, f"--out={tmp_path / 'model'}")[0] == 0
    (shared,) = network.read(tmp_path / "model")
    assert shared.options.slice_axis == "file"
    card = (tmp_path / "model/README.md").read_text()
    assert "slices, along the third axis of their files, of volumes" in card
    write_export(tmp_path / "out", [shared], platforms=("cpu",))
    readme = (tmp_path / "out/README.md").read_text()
    assert "Z, H and W are the third, second and first axis of\n  the file" in readme
    program = readme.split("```python\n")[2].partition("```")[0]
    voxels = image((33, 40, 3))
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])[[0, 2, 1, 3]]  # the third axis: forwards
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    segment = jax.export.deserialize(
        bytearray((tmp_path / "out/model.jax_export").read_bytes())
    ).call
    exec(program, {"segment": segment})
    found = nib.load("label.nii.gz")
    wanted = pclseg.load("model").predict(voxels, affine=affine)
    assert (np.asanyarray(found.dataobj) == wanted).mean() > 0.99
    np.testing.assert_array_equal(found.affine, affine)


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
