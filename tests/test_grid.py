"""A study: its cells, what they share, how they are run, stopped and taken up."""

import json
import math
import signal
import stat
import subprocess
import sys
import time

import ml_collections
import pytest
from tiny import ROOT, main_env, tiny_overrides

from pclseg import grid
from pclseg.cli import grid as cli
from pclseg.config import load_config
from pclseg.errors import UserError

# Stands for the training program: takes its arguments, leaves what a run leaves.
STUB = """\
import json, os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from pclseg.config import as_dict, is_override, load_config, override
args = sys.argv[3:]
given = dict(arg[2:].split("=", 1) for arg in args if not is_override(arg))
workdir = Path(given["workdir"])
config = load_config(given["config"])
override(config, [arg for arg in args if is_override(arg)])
workdir.mkdir(parents=True, exist_ok=True)
with open({log!r}, "a") as file:
    file.write(workdir.name + "\\n")
(workdir / "config.json").write_text(json.dumps(as_dict(config)))
(workdir / "dataset.json").write_text("{{}}")
if os.environ.get("STUB_FAILS", "!") in str(workdir):
    sys.exit("no such thing")
deadline = time.monotonic() + 60
while len(open({log!r}).readlines()) < int(os.environ.get("STUB_TOGETHER", 0)):
    if time.monotonic() > deadline:
        sys.exit("waited for others in vain")
    time.sleep(0.05)
if "pretrain" in config.stages:
    (workdir / "pretrain/checkpoints/7").mkdir(parents=True)
    (workdir / "pretrain/done.json").write_text('{{"steps": 7}}')
else:
    lr = config.finetune.optimizer.peak_lr
    summary = {{"overall": {{"dice": {{"mean": 1 - abs(lr - 0.02)}}}}}}
    (workdir / "summary.json").write_text(json.dumps(summary))
"""


def grid_of(**changes):
    """Scratch, PCL and SimCLR on the phantom; `changes` replace keys."""
    config = ml_collections.ConfigDict()
    arms = ("scratch", "pcl", "simclr")
    config.arms = tuple(f"{ROOT}/configs/{arm}_phantom.py" for arm in arms)
    config.argument = ""
    config.labelled = (2, 0)
    config.folds = (0, 1)
    config.seeds = (0,)
    config.settings = ("pretrain.train.steps=7", "finetune.train.steps=9")
    config.tune = dict(
        key="finetune.optimizer.peak_lr",
        candidates=(),
        labelled=(2,),
        fold=0,
        seed=0,
        holdout=2,
    )
    config.update_from_flattened_dict(changes)
    return config


def names(cells):
    return [cell.name for cell in cells]


def test_every_arm_meets_every_fold_and_label_count_once():
    cells = grid.plan(grid_of())
    runs = [name for name in names(cells) if name.startswith("runs/")]
    arms = ("scratch", "pcl", "simclr")
    assert sorted(runs) == sorted(
        f"runs/{arm}_m{m}_f{f}_s0" for arm in arms for m in (2, "all") for f in (0, 1)
    )


def test_label_counts_share_the_pretraining_of_their_fold():
    cells = {cell.name: cell for cell in grid.plan(grid_of())}
    pretrained = sorted(name for name in cells if name.startswith("pretrain/"))
    assert pretrained == [
        f"pretrain/{arm}_pretrain_f{fold}_s0"
        for arm in ("pcl", "simclr")
        for fold in (0, 1)
    ]
    for m in (2, "all"):
        cell = cells[f"runs/pcl_m{m}_f1_s0"]
        assert cell.needs == ("pretrain/pcl_pretrain_f1_s0",)
        assert "stages=('finetune',)" in cell.settings


def test_arms_with_the_same_pretraining_share_it(tmp_path):
    twin = tmp_path / "twin.py"
    beside = str(ROOT / "configs" / "twin.py")
    twin.write_text(
        "from pclseg.config import sibling\n"
        "def get_config(arg=None):\n"
        f"    config = sibling({beside!r}, 'pcl_phantom.py', arg)\n"
        "    config.arm = 'twin'\n"
        "    config.finetune.optimizer.peak_lr = 0.5\n"
        "    return config\n"
    )
    arms = (f"{ROOT}/configs/pcl_phantom.py", str(twin))
    cells = grid.plan(grid_of(arms=arms))
    assert sum(name.startswith("pretrain/") for name in names(cells)) == 2  # folds


def test_other_pretraining_settings_are_not_shared():
    cells = grid.plan(grid_of(seeds=(0, 1)))
    assert sum(name.startswith("pretrain/pcl") for name in names(cells)) == 4


def test_settings_reach_the_arms_that_have_the_section():
    cells = {cell.name: cell for cell in grid.plan(grid_of())}
    scratch = cells["runs/scratch_m2_f0_s0"]
    assert scratch.settings == ("finetune.train.steps=9",)
    assert "pretrain.train.steps=7" in cells["runs/pcl_m2_f0_s0"].settings


def test_an_arm_may_change_settings_of_its_own():
    arm = f"{ROOT}/configs/pcl_phantom.py"
    own = "pretrain.method.position_threshold=0.2 arm=wide pretrain.train.steps=8"
    cells = grid.plan(grid_of(arms=(arm, f"{arm} {own}")))
    wide = {cell.name: cell for cell in cells}["pretrain/wide_pretrain_f0_s0"]
    assert wide.settings[-4:-1] == tuple(own.split())
    assert wide.settings.index("pretrain.train.steps=7") == 0  # what comes later holds
    assert sum(name.startswith("pretrain/") for name in names(cells)) == 4


def test_every_cell_comes_after_what_it_needs():
    cells = grid.plan(grid_of(**{"tune.candidates": (0.1, 0.02)}))
    seen = set()
    for cell in cells:
        assert seen.issuperset(cell.needs)
        seen.add(cell.name)
    waves = {cell.name: cell.wave for cell in cells}
    assert all(waves[need] < cell.wave for cell in cells for need in cell.needs)


def test_every_arm_tries_the_same_values_on_the_holdout():
    cells = grid.plan(grid_of(**{"tune.candidates": (0.1, 0.02)}))
    tuned = [cell for cell in cells if cell.name.startswith("tune/")]
    assert len(tuned) == 2 * 3
    for cell in tuned:
        assert "data.split.holdout=2" in cell.settings
        assert "fold=0" in cell.config
        # pre-training saw the images of the hold-out, and the run says so
        transductive = "data.transductive=True" in cell.settings
        assert transductive == ("scratch" not in cell.name)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs/grids").glob("*.py")), ids=lambda file: file.stem
)
def test_grids_of_the_project_are_planned(file, monkeypatch):
    monkeypatch.chdir(ROOT)  # their arms are named from there
    config = load_config(str(file))
    cells = grid.plan(config)
    runs = [cell for cell in cells if cell.name.startswith("runs/")]
    size = [len(config[key]) for key in ("arms", "labelled", "folds", "seeds")]
    assert len(runs) == math.prod(size)


@pytest.mark.parametrize(
    ("labelled", "tuned", "nearest"),
    [(2, (2,), 2), (0, (2, 6), 6), (6, (2, 0), 2), (1, (2, 6), 2), (0, (0, 2), 0)],
)
def test_values_come_from_the_nearest_tuned_label_count(labelled, tuned, nearest):
    cells = grid.plan(
        grid_of(
            labelled=(labelled,),
            **{"tune.candidates": (0.1, 0.02), "tune.labelled": tuned},
        )
    )
    run = next(c for c in cells if c.name.startswith("runs/scratch"))
    assert all(f"_m{nearest or 'all'}_" in name for name in run.tuned_by[1])


def test_manifest_is_read_back(tmp_path):
    cells = grid.plan(grid_of(**{"tune.candidates": (0.1, 0.02)}))
    path = tmp_path / "manifest.json"
    manifest = grid.to_json(cells)
    path.write_text(json.dumps(manifest))
    assert grid.read_manifest(path) == cells
    spans = [tuple(map(int, s.split("-"))) for s in manifest["waves"].values()]
    covered = [n for first, last in spans for n in range(first, last + 1)]
    assert covered == list(range(len(cells)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ()}, "config.arms is"),
        ({"arms": ("configs/plc_phantom.py",)}, "there is no file"),
        ({"labelled": (2, -1)}, "config.labelled"),
        ({"settings": ("finetune.train.steps",)}, "no KEY=VALUE"),
        ({"arms": (f"{ROOT}/configs/pcl_phantom.py x",)}, "no KEY=VALUE"),
        ({"settings": ("finetun.train.steps=3",)}, "no arm has a key 'finetun'"),
        ({"settings": ("finetune.train.stepz=3",)}, "no key 'stepz'"),
        ({"settings": ("finetune.method.name=superwised",)}, "unknown"),
        ({"tune.holdout": 0}, "config.tune.holdout"),
        ({"arms": (f"{ROOT}/configs/pcl_phantom.py",) * 2}, "as another arm is"),
    ],
)
def test_mistakes_in_a_grid_are_told(changes, message):
    with pytest.raises(UserError, match=message):
        grid.plan(grid_of(**changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON file"),
        ("[]", "no manifest"),
        ('{"cells": [{"name": "runs/a"}]}', "no manifest"),
        ("twice", "is there twice"),
        ("outside", "is no name"),
        ("orphan", "no earlier cell"),
    ],
)
def test_manifests_that_are_none_are_refused(tmp_path, content, message):
    path = tmp_path / "manifest.json"
    cells = grid.to_json(grid.plan(grid_of()))["cells"]
    changed = {
        "twice": [cells[0], cells[0]],
        "outside": [cells[0] | {"name": "../a"}],
        "orphan": [cells[-1]],
    }
    if content in changed:
        content = json.dumps({"cells": changed[content]})
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        grid.read_manifest(path)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """f(*arguments) -> exit status of the command, the training being a stub."""
    stub, log = tmp_path / "stub.py", tmp_path / "order.txt"
    stub.write_text(STUB.format(root=str(ROOT), log=str(log)))
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stub}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # of the test process
    file = tmp_path / "grid.py"

    def run(*arguments, **changes):
        config = grid_of(labelled=(2,), folds=(0,), **changes)
        file.write_text(
            "import json, ml_collections\n"
            "def get_config(arg=None):\n"
            f"    values = json.loads({config.to_json()!r})\n"
            "    return ml_collections.ConfigDict(values)\n"
        )
        out = str(tmp_path / "out")
        source = str(file)
        if arguments and arguments[0] == "manifest":
            source, arguments = f"{out}/manifest.json", arguments[1:]
        return cli.main([source, f"--out={out}", *arguments])

    run.out = tmp_path / "out"
    run.started = lambda: log.read_text().split() if log.exists() else []
    return run


def test_runs_all_cells_once_and_then_none(study, capsys):
    assert study() == 0
    first = study.started()
    assert len(first) == len(set(first)) == 5  # 2 pre-trainings, 3 arms
    assert study() == 0
    assert study.started() == first
    text = capsys.readouterr().err
    assert "0 of 5 cells to run" in text
    assert "runs/* --baseline=scratch --out=report.html" in text


def test_tuned_value_is_the_best_of_the_holdout_and_is_recorded(study):
    assert study(**{"tune.candidates": (0.1, 0.03, 0.5)}, arms=grid_of().arms[:2]) == 0
    config = json.loads((study.out / "runs/pcl_m2_f0_s0/config.json").read_text())
    assert config["finetune"]["optimizer"]["peak_lr"] == 0.03  # nearest to 0.02
    assert config["data"]["split"]["holdout"] == 0
    assert len(study.started()) == 1 + 2 * 3 + 2


def test_failed_cell_is_named_and_only_what_needs_it_is_left(
    study, monkeypatch, capsys
):
    monkeypatch.setenv("STUB_FAILS", "pretrain/pcl")
    assert study() == 1
    text = capsys.readouterr().err
    assert "1 cells did not finish, pretrain/pcl_pretrain_f0_s0 first" in text
    assert "and 1 that need them were not run" in text
    log = study.out / "logs/pretrain_pcl_pretrain_f0_s0.txt"
    assert "no such thing" in log.read_text()
    assert (study.out / "runs/simclr_m2_f0_s0/summary.json").is_file()
    monkeypatch.setenv("STUB_FAILS", "!")
    assert study() == 0
    assert (study.out / "runs/pcl_m2_f0_s0/summary.json").is_file()


def test_one_cell_of_the_manifest_as_in_an_array(study, capsys):
    assert study("--only=nobody") == 1  # the manifest is written all the same
    cells = grid.read_manifest(study.out / "manifest.json")
    last = names(cells).index("runs/pcl_m2_f0_s0")
    assert study("manifest", f"--cell={last}") == 1
    assert "needs pretrain/pcl_pretrain_f0_s0" in capsys.readouterr().err
    need = names(cells).index("pretrain/pcl_pretrain_f0_s0")
    assert study("manifest", f"--cell={need}") == 0
    assert study("manifest", f"--cell={last}") == 0
    assert study.started() == ["pcl_pretrain_f0_s0", "pcl_m2_f0_s0"]
    assert study("manifest", "--cell=99") == 1
    assert "the manifest has 0 to 4" in capsys.readouterr().err


def test_only_takes_along_what_is_needed(study):
    assert study("--only=runs/pcl") == 0
    assert study.started() == ["pcl_pretrain_f0_s0", "pcl_m2_f0_s0"]


def test_list_runs_and_writes_nothing(study, capsys):
    assert study("--list") == 0
    assert not study.out.exists()
    assert "wave 1: cells 3-4" in capsys.readouterr().err


SCRATCH = dict(
    arms=(f"{ROOT}/configs/scratch_phantom.py",), settings=("finetune.train.steps=9",)
)


def test_jobs_run_at_once(study, monkeypatch):
    monkeypatch.setenv("STUB_TOGETHER", "3")
    assert study("--jobs=3", **SCRATCH, seeds=(0, 1, 2)) == 0
    assert len(study.started()) == 3


def test_cell_of_another_config_is_refused(study, capsys):
    assert study(**SCRATCH) == 0
    assert study(**SCRATCH | {"settings": ("finetune.train.steps=10",)}) == 1
    text = capsys.readouterr().err
    assert "config.finetune.train.steps: 9 there, 10 now" in text


def test_real_runs_go_on_after_a_kill(tmp_path):
    overrides = tiny_overrides(tmp_path / "phantom", tmp_path / "prepared")
    file = tmp_path / "grid.py"
    config = grid_of(
        arms=(f"{ROOT}/configs/pcl_phantom.py",),
        labelled=(2,),
        folds=(0,),
        settings=tuple(f"{key}={value}" for key, value in overrides.items()),
    )
    file.write_text(
        "import json, ml_collections\n"
        "def get_config(arg=None):\n"
        f"    return ml_collections.ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pclseg.cli.grid", str(file), f"--out={out}"]
    env = main_env(cache=tmp_path / "cache")
    with subprocess.Popen(command, cwd=ROOT, env=env) as process:
        metrics = out / "pretrain/pcl_pretrain_f0_s0/pretrain/metrics.csv"
        deadline = time.monotonic() + 120
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 0
    assert not (out / "runs").exists()
    done = subprocess.run(command, cwd=ROOT, env=env, timeout=240, check=False)
    assert done.returncode == 0
    summary = out / "runs/pcl_m2_f0_s0/summary.json"
    assert json.loads(summary.read_text())["labelled_patients"]
    log = (out / "pretrain/pcl_pretrain_f0_s0/log.txt").read_text()
    assert "going on from step" in log
