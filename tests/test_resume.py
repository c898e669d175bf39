"""Whole runs that are interrupted, against one that is not."""

import json
import random
import shlex
import shutil
import subprocess
import sys

import jax
import nibabel as nib
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny import ROOT, main_env, run_main, tiny_args

from pclseg import live
from pclseg.cli import figures
from pclseg.reports.artifacts import WHEN
from pclseg.train.metrics import read_rows

pytestmark = pytest.mark.slow
STEPS = 24  # of both stages, in tiny.py
SAME_BYTES = (
    "pretrain/metrics.csv",
    "pretrain/diagnostics.json",
    "finetune/metrics.csv",
    "finetune/validation.csv",
    "cases.csv",
    "summary.json",
    "splits.json",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def env(folder):
    return main_env(cache=folder / "compiled")


def arguments(folder, name, **more):
    return tiny_args(folder / "raw", folder / "store", folder / name, **more)


@pytest.fixture(scope="module")
def whole(folder, env):
    """The folder of a run without interruption."""
    done = run_main(arguments(folder, "whole"), env=env)
    assert done.returncode == 0, done.stderr
    return folder / "whole"


def interrupted(env, name, place, number, delay, args):
    """Starts a run that gets the signal `name`; see interrupted.py."""
    command = [sys.executable, ROOT / "tests" / "interrupted.py"]
    return subprocess.run(
        [*command, name, place, str(number), str(delay), *args],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def saved(folder):
    """Every leaf of the newest checkpoint, the state of the optimiser included."""
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        step = manager.latest_step()
        return step, manager.restore(step, args=ocp.args.StandardRestore())


def assert_identical(run, whole):
    for name in SAME_BYTES:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    for stage in ("pretrain", "finetune"):
        (step, found), (last, expected) = saved(run / stage), saved(whole / stage)
        assert step == last == STEPS
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    for path in (whole / "predictions").iterdir():
        found = nib.load(run / "predictions" / path.name)
        np.testing.assert_array_equal(found.dataobj, nib.load(path).dataobj)


def test_a_run_leaves_what_it_promises(whole):
    metrics = read_rows(whole / "finetune" / "metrics.csv")
    assert [int(row["step"]) for row in metrics] == list(range(1, STEPS + 1))
    validated = [
        row["step"] for row in read_rows(whole / "finetune" / "validation.csv")
    ]
    assert validated == ["6", "12", "18", "24"]
    assert len({row["loss"] for row in metrics}) == STEPS


def test_a_finished_run_is_drawn(whole, tmp_path, capsys):
    assert figures.main([str(whole), f"--out={tmp_path}"]) == 0, capsys.readouterr()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "pretrain_metrics.png",
        "finetune_metrics.png",
        "finetune_validation.png",
        "whole_cases.png",
        "whole_pretrain_similarity.png",
        "whole_pretrain_map.png",
    }


def test_a_run_that_only_pretrains_leaves_its_diagnostics(folder, env, whole):
    """The same as those of a run that goes on: they are of the pre-trained weights."""
    args = arguments(folder, "encoder", stages="('pretrain',)")
    done = run_main(args, env=env)
    assert done.returncode == 0, done.stderr
    assert "evaluate: no stage predicts, skipped" in done.stderr
    assert live.state(folder / "encoder") == "finished"
    found = folder / "encoder" / "pretrain" / "diagnostics.json"
    assert found.read_bytes() == (whole / "pretrain" / found.name).read_bytes()
    before, after = (json.loads(found.read_text())["measures"][k] for k in WHEN)
    assert before.keys() == after.keys() and before != after
    done = run_main(args, env=env)
    assert "pretrain: diagnostics written before, skipped" in done.stderr
    shutil.rmtree(folder / "encoder" / "pretrain" / "checkpoints" / str(STEPS))
    found.write_text("of weights that are gone")
    done = run_main(args, env=env)
    assert done.returncode == 0, done.stderr
    assert found.read_bytes() == (whole / "pretrain" / found.name).read_bytes()


def test_a_run_killed_at_random_in_both_stages_is_identical(folder, env, whole):
    args = arguments(folder, "killed")
    draw = random.Random(0)
    for stage in ("pretrain", "pretrain", "finetune", "finetune"):
        metrics = folder / "killed" / stage / "metrics.csv"
        before = len(read_rows(metrics)) if metrics.exists() else 0
        number = draw.randrange(before, min(before + 9, STEPS - 1))
        done = interrupted(env, "KILL", stage, number, draw.uniform(0, 0.05), args)
        assert done.returncode == -9, done.stderr
        assert not (folder / "killed" / stage / "done.json").exists()
    done = run_main(args, env=env)
    assert done.returncode == 0, done.stderr
    assert "pretrain: finished before, skipped" in done.stderr
    assert_identical(folder / "killed", whole)


def test_a_run_asked_to_stop_everywhere_is_identical(folder, env, whole):
    args = arguments(folder, "asked", data__store_dir=folder / "store of it")
    for place, number, text in [
        ("prepare", 2, ""),
        ("pretrain", 13, "pretrain: the state of step 14 of 24 is saved."),
        ("validate", 1, "finetune: the state of step 12 of 24 is saved."),
        ("evaluate", 1, ""),
    ]:
        done = interrupted(env, "TERM", place, number, 0, args)
        assert done.returncode == 0, done.stderr
        *_, what, command = done.stderr.splitlines()
        assert what.startswith("stopped as asked."), done.stderr
        assert text in what
        assert "Traceback" not in done.stderr
        log = (folder / "asked" / "log.txt").read_text().splitlines()
        assert log[-1].endswith(command)
    assert not (folder / "asked" / "summary.json").exists()
    program, *rest = shlex.split(command)  # the line that says how to resume
    assert program == "python"
    done = subprocess.run([sys.executable, *rest], cwd=ROOT, env=env, check=False)
    assert done.returncode == 0
    assert_identical(folder / "asked", whole)


def test_a_run_goes_on_with_another_number_of_devices(folder, env, whole):
    args = [*arguments(folder, "moved"), "--stages=pretrain"]
    four = main_env(cache=folder / "compiled", devices=4)
    stopped = interrupted(four, "TERM", "pretrain", 11, 0, args)
    assert "the state of step 12 of 24 is saved" in stopped.stderr
    done = run_main(args, env=env)
    assert done.returncode == 0, done.stderr
    found, expected = (
        [float(row["loss"]) for row in read_rows(run / "pretrain" / "metrics.csv")]
        for run in (folder / "moved", whole)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_damaged_checkpoint_stops_with_one_line(folder, env, whole):
    run = shutil.copytree(whole, folder / "damaged")
    (run / "pretrain" / "done.json").unlink()
    newest = run / "pretrain" / "checkpoints" / str(STEPS)
    (newest / "default" / "manifest.ocdbt").write_bytes(b"")
    done = run_main(arguments(folder, "damaged"), env=env)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"checkpoints/{STEPS} " in line
    assert "delete that folder to go on from step 20" in line


def test_a_finished_stage_without_its_last_checkpoint_is_trained_to_its_end(
    folder, env, whole
):
    run = shutil.copytree(whole, folder / "deleted")
    (run / "summary.json").unlink()
    shutil.rmtree(run / "finetune" / "checkpoints" / str(STEPS))
    done = run_main(arguments(folder, "deleted"), env=env)
    assert done.returncode == 0, done.stderr
    assert "going on from step 20 of 24" in done.stderr
    for name in SAME_BYTES:
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_a_killed_run_with_dropout_goes_on_to_the_same_numbers(folder, env):
    """On the U-Net of SSL4MIS, both stages: encoder handed on, features dropped out."""
    other = {
        f"{stage}__model__backbone": "ssl4mis" for stage in ("pretrain", "finetune")
    }
    done = run_main(arguments(folder, "dropping", **other), env=env)
    assert done.returncode == 0, done.stderr
    for stage in ("pretrain", "finetune"):
        args = arguments(folder, "dropping_killed", **other)
        killed = interrupted(env, "KILL", stage, 13, 0.01, args)
        assert killed.returncode == -9, killed.stderr
    done = run_main(arguments(folder, "dropping_killed", **other), env=env)
    assert done.returncode == 0, done.stderr
    assert_identical(folder / "dropping_killed", folder / "dropping")
