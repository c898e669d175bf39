"""A study: its cells, what they share, how they are run, stopped and taken up."""

import dataclasses
import fcntl
import json
import math
import signal
import stat
import subprocess
import sys
import threading
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
    (workdir / "pretrain/checkpoints/7").mkdir(parents=True, exist_ok=True)
    (workdir / "pretrain/done.json").write_text('{{"steps": 7}}')
    if os.environ.get("STUB_KILLED", "!") in str(workdir):
        os.kill(os.getpid(), 9)  # before its diagnostics are written
    (workdir / "pretrained.json").write_text('{{"stages": ["pretrain"]}}')
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


def variant(path, *lines):
    """A config file that is `pcl_phantom.py` with some lines that change it."""
    beside = str(ROOT / "configs" / path.name)
    body = "".join(f"    {line}\n" for line in lines)
    path.write_text(
        "from pclseg.config import sibling\n"
        "def get_config(arg=None):\n"
        f"    config = sibling({beside!r}, 'pcl_phantom.py', arg)\n"
        f"{body}    return config\n"
    )
    return path


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
    twin = variant(
        tmp_path / "twin.py",
        "config.arm = 'twin'",
        "config.finetune.optimizer.peak_lr = 0.5",
    )
    arms = (f"{ROOT}/configs/pcl_phantom.py", str(twin))
    cells = grid.plan(grid_of(arms=arms))
    assert sum(name.startswith("pretrain/") for name in names(cells)) == 2  # folds


def starting_points(*arms, labelled=(2,)):
    """{name of a run: folder it starts from} of PCL's variants, without the folds."""
    base = f"{ROOT}/configs/pcl_phantom.py"
    cells = grid.plan(
        grid_of(arms=[f"{base} {arm}" for arm in arms], labelled=labelled, folds=(0,))
    )
    return {c.name: c.starts_from.get("finetune") for c in cells if "runs/" in c.name}


def test_pretraining_from_other_weights_is_not_shared(tmp_path):
    for name in "ab":
        (tmp_path / name / "pretrain").mkdir(parents=True)
    found = starting_points(
        *(f"arm={name} pretrain.init_from={tmp_path}/{name}/pretrain" for name in "ab")
    )
    assert len(set(found.values())) == 2


def test_pretraining_on_labelled_patients_stays_with_its_label_count():
    found = starting_points("pretrain.data.subset=labelled", labelled=(2, 4))
    assert list(found.values()) == [None, None]  # a stage of the run itself


def test_pretraining_that_hangs_on_the_label_count_is_refused(tmp_path):
    config = variant(
        tmp_path / "grows.py",
        "config.pretrain.train.log_every = 10 * config.data.split.labelled",
    )
    with pytest.raises(UserError, match="two cells would be called pretrain/pcl"):
        grid.plan(grid_of(arms=(str(config),), labelled=(2, 4)))


def test_equal_stages_of_other_names_are_not_shared(tmp_path):
    config = variant(
        tmp_path / "warm.py",
        "config.arm, config.stages = 'warm', ('warm', 'finetune')",
        "config.warm, config.finetune.init_from = config.pretrain, 'warm'",
    )
    arms = (f"{ROOT}/configs/pcl_phantom.py", str(config))
    cells = grid.plan(grid_of(arms=arms, labelled=(2,), folds=(0,)))
    assert {"pretrain/pcl_pretrain_f0_s0", "pretrain/warm_warm_f0_s0"} <= {
        cell.name for cell in cells
    }


def test_an_arm_that_only_pretrains_has_no_run():
    cells = grid.plan(
        grid_of(arms=(f"{ROOT}/configs/pcl_phantom.py",), folds=(0,), labelled=(2,))
    )
    assert len(cells) == 2
    config = f"{ROOT}/configs/pcl_phantom.py"
    cells = grid.plan(
        grid_of(arms=(f"{config} stages=('pretrain',)",), folds=(0,), labelled=(2,))
    )
    assert [name.partition("/")[0] for name in names(cells)] == ["pretrain"]
    with pytest.raises(UserError, match="cannot be set for a grid"):
        grid.plan(grid_of(settings=("stages=('pretrain',)",)))


def test_an_arm_may_leave_out_stages():
    config = f"{ROOT}/configs/action_phantom.py"
    start = "finetune.init_from=pretrain finetune.init_parts=('encoder',)"
    cells = grid.plan(
        grid_of(
            arms=(
                config,
                f"{config} arm=short stages=('pretrain','finetune') {start}",
                f"{config} arm=none stages=('finetune',) finetune.init_from=",
            ),
            folds=(0,),
            labelled=(2,),
            settings=(),
        )
    )
    own = {cell.name: cell for cell in cells}
    assert len(own) == 4  # one pre-training for the two that have it
    stages = {
        name: [s for s in cell.settings if s.startswith("stages=")]
        for name, cell in own.items()
    }
    assert stages["runs/action_m2_f0_s0"] == ["stages=('local', 'finetune')"]
    assert stages["runs/short_m2_f0_s0"] == ["stages=('finetune',)"]
    assert stages["runs/none_m2_f0_s0"] == ["stages=('finetune',)"]


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
        assert "data.transductive=True" in cell.settings


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
    assert all(f"_m{nearest or 'all'}_" in name for name, _ in run.tuned_by[1])


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
        ({"settings": ("data.split.fold=3",)}, "cannot be set for a grid"),
        ({"settings": ("seed=3",)}, "cannot be set for a grid"),
        ({"arms": ("",)}, "there is no file ''"),
        ({"arms": (f"{ROOT}/configs/pcl_phantom.py arm=../../x",)}, "config.arm is"),
        ({"tune.candidates": (0.1,), "tune.key": "pretrain.seed"}, "config.tune.key"),
        ({"tune.candidates": (0.1,), "tune.key": "finetune.lr"}, "no key 'lr'"),
        ({"tune.candidates": ("a/b",)}, "name arms"),
        ({"tune.candidates": ("fast",)}, "expected a value like"),
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
        ('{"cells": []}', "it has no cell"),
        ('{"cells": [1]}', "no manifest"),
        ("twice", "is there twice"),
        ("outside", "is no name"),
        ("nameless", "is no name"),
        ("orphan", "no earlier cell"),
        ("order", "behind a later wave"),
        ("wave", "no number as its wave"),
        ("sources", "no manifest"),
        ("settings", "a value that is no text"),
        ("key", "a value that is no text"),
        ("trials", "tuned by no trial"),
    ],
)
def test_manifests_that_are_none_are_refused(tmp_path, content, message):
    path = tmp_path / "manifest.json"
    cells = grid.to_json(grid.plan(grid_of()))["cells"]
    changed = {
        "twice": [cells[0], cells[0]],
        "outside": [cells[0] | {"name": "../a"}],
        "nameless": [cells[0] | {"name": ""}],
        "orphan": [cells[-1]],
        "order": [cells[0] | {"wave": 1}, cells[1]],
        "wave": [cells[0] | {"wave": "x"}],
        "sources": [cells[0] | {"starts_from": None}],
        "settings": [cells[0] | {"settings": "seed=1"}],
        "key": [cells[0], cells[-1] | {"tuned_by": [1, [[cells[0]["name"], 0.1]]]}],
        "trials": [cells[0] | {"tuned_by": ["finetune.optimizer.peak_lr", []]}],
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


def test_a_pretraining_killed_before_its_diagnostics_goes_on(study, monkeypatch):
    monkeypatch.setenv("STUB_KILLED", "pretrain/pcl")
    assert study() == 1
    monkeypatch.setenv("STUB_KILLED", "!")
    begun = len(study.started())
    assert study() == 0
    assert "pcl_pretrain_f0_s0" in study.started()[begun:]


def test_one_cell_of_the_manifest_as_in_an_array(study, capsys):
    assert study("--only=runs/scratch") == 0  # which writes the whole manifest
    cells = grid.read_manifest(study.out / "manifest.json")
    last = names(cells).index("runs/pcl_m2_f0_s0")
    assert study("manifest", f"--cell={last}") == 1
    assert "needs pretrain/pcl_pretrain_f0_s0" in capsys.readouterr().err
    need = names(cells).index("pretrain/pcl_pretrain_f0_s0")
    assert study("manifest", f"--cell={need}") == 0
    assert study("manifest", f"--cell={last}") == 0
    assert study.started()[1:] == ["pcl_pretrain_f0_s0", "pcl_m2_f0_s0"]
    assert study("manifest", "--cell=99") == 1
    assert "the manifest has 0 to 4" in capsys.readouterr().err


def test_a_manifest_with_an_unknown_method_is_refused_before_anything_runs(
    study, capsys
):
    assert study("--only=runs/scratch") == 0
    path = study.out / "manifest.json"
    manifest = json.loads(path.read_text())
    for cell in manifest["cells"]:
        cell["settings"].append("finetune.method.name=superwised")
    path.write_text(json.dumps(manifest))
    capsys.readouterr()
    assert study("manifest") == 1
    text = capsys.readouterr().err
    assert "method 'superwised' is unknown" in text
    assert "Did you mean 'supervised'?" in text
    assert study.started() == ["scratch_m2_f0_s0"]


def test_only_takes_along_what_is_needed(study):
    assert study("--only=runs/pcl") == 0
    assert study.started() == ["pcl_pretrain_f0_s0", "pcl_m2_f0_s0"]


def test_only_takes_either_of_several(study):
    assert study("--only=runs/pcl,runs/scratch", "--only=_f0_") == 0
    assert len(study.started()) == 3


@pytest.mark.parametrize("text", [",", "_f0_,", "a,,b"])
def test_only_with_an_empty_part_is_refused(text, study, capsys):
    assert study(f"--only={text}") == 1
    assert "has an empty part" in capsys.readouterr().err
    assert study.started() == []


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


def test_cell_of_another_config_is_refused_and_the_manifest_stays(study, capsys):
    assert study(**SCRATCH) == 0
    manifest = (study.out / "manifest.json").read_text()
    assert study(**SCRATCH | {"settings": ("finetune.train.steps=10",)}) == 1
    text = capsys.readouterr().err
    assert "config.finetune.train.steps: 9 there, 10 now" in text
    assert (study.out / "manifest.json").read_text() == manifest


def test_a_grid_is_extended_once_its_manifest_is_deleted(study, capsys):
    assert study(**SCRATCH) == 0
    assert study(**SCRATCH, seeds=(0, 1)) == 1
    assert "is of another grid" in capsys.readouterr().err
    (study.out / "manifest.json").unlink()
    assert study(**SCRATCH, seeds=(0, 1)) == 0
    assert study.started() == ["scratch_m2_f0_s0", "scratch_m2_f0_s1"]


def test_settings_of_the_command_line_are_checked_first(study, capsys):
    assert study("--set=data.rawdir=x") == 1
    assert "has no key 'rawdir'" in capsys.readouterr().err
    assert study("--set=data.split.fold=1") == 1
    assert "cannot be set for a grid" in capsys.readouterr().err
    assert not study.out.exists()


def test_a_cell_in_work_elsewhere_is_waited_for(study):
    workdir = study.out / "runs/scratch_m2_f0_s0"
    workdir.mkdir(parents=True)
    with open(workdir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def finish():
            (workdir / "summary.json").write_text("{}")
            lock.close()

        timer = threading.Timer(1.0, finish)
        timer.start()
        assert study(**SCRATCH) == 0
    assert study.started() == []


def test_a_grid_does_not_run_twice_at_once(study, capsys):
    study.out.mkdir()
    with open(study.out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert study() == 1
    assert "another process runs the grid" in capsys.readouterr().err


def test_equal_scores_choose_the_first_candidate_by_plan_and_manifest(study):
    changes = dict(**SCRATCH, **{"tune.candidates": (0.03, 0.01)})  # both 0.01 off
    assert study(**changes) == 0
    cells = grid.read_manifest(study.out / "manifest.json")
    for cell in (*cells, *grid.plan(grid_of(labelled=(2,), folds=(0,), **changes))):
        if cell.tuned_by:
            arguments = grid.arguments(cell, study.out, ())
            assert "--config.finetune.optimizer.peak_lr=0.03" in arguments


def test_what_tuning_sets_is_checked_before_anything_runs():
    cell, *_ = grid.plan(grid_of())
    other = dataclasses.replace(cell, tuned_by=("finetune.rate", (("tune/a", 0.1),)))
    with pytest.raises(UserError, match=r"cell .*: --config\.finetune\.rate"):
        grid.check_cell(other)


def test_a_summary_that_cannot_choose_is_named(study, capsys):
    changes = dict(**SCRATCH, **{"tune.candidates": (0.03, 0.01)})
    assert study(**changes) == 0
    tuned = next(study.out.glob("tune/*/summary.json"))
    tuned.write_text('{"overall": {}}')
    assert study(**changes) == 1
    assert "summary.json lacks 'overall.dice.mean'" in capsys.readouterr().err


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
        assert process.wait(60) == 143
    assert not (out / "runs").exists()
    done = subprocess.run(command, cwd=ROOT, env=env, timeout=240, check=False)
    assert done.returncode == 0
    summary = out / "runs/pcl_m2_f0_s0/summary.json"
    assert json.loads(summary.read_text())["labelled_patients"]
    log = (out / "pretrain/pcl_pretrain_f0_s0/log.txt").read_text()
    assert "going on from step" in log
