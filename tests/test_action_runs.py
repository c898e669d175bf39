"""Whole runs of ACTION and its kin on a phantom: killed in every stage, and wrong."""

import jax
import numpy as np
import pytest
from test_resume import interrupted, saved
from tiny import main_env, run_main, tiny_args
from tiny_nifti import ROOT, call_main

from pclseg.evaluation.cases import read_cases
from pclseg.files import read_json
from pclseg.train.metrics import read_rows

STEPS = 12
STAGES = {
    "action": ("pretrain", "local", "finetune"),
    "action_pp": ("pretrain", "finetune"),
    "arco": ("pretrain", "finetune"),  # MONA with other draws
}
TRAINS = dict(steps=STEPS, log_every=4, checkpoint_every=5)
ANCHORS = {
    "action": ("num_anchors",),
    "action_pp": ("num_anchors", "labelled_anchors"),
    "arco": ("num_queries",),
}
SMALL = {
    "local": dict(width=2, out_dim=8),
    "finetune": dict(out_dim=8, stride=2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("action")


@pytest.fixture(scope="module")
def env(folder):
    return main_env(cache=folder / "compiled")


def arguments(folder, arm, name, **more):
    """Of a run of `arm` at the size of tiny.py."""
    own: dict[str, object] = {
        "finetune__data__unlabelled_batch_size": 4,
        "finetune__method__num_negatives": 16,
        **{
            f"finetune__model__{key}": value for key, value in SMALL["finetune"].items()
        },
    }
    windows = "local" if arm == "action" else "pretrain"
    own[f"{windows}__data__unlabelled_batch_size"] = 4
    own[f"{windows}__model__window"] = 16
    if arm == "action":
        own |= {
            "local__data__crop_size": (32, 32),
            "local__data__batch_size": 4,
            **{f"local__model__{key}": value for key, value in SMALL["local"].items()},
        }
    else:
        own["finetune__method__bank_size"] = 100
    if arm == "arco":  # pairs; 16 cells are too many for 8 queries
        own["finetune__method__sampler"] = "antithetic"
        own["finetune__method__sampler_cells"] = (2, 2)
    for key in ANCHORS[arm]:
        own[f"finetune__method__{key}"] = 8
    for stage in STAGES[arm]:
        own |= {f"{stage}__train__{key}": value for key, value in TRAINS.items()}
    return tiny_args(
        folder / "raw", folder / "store", folder / name, arm=arm, **own | more
    )


@pytest.fixture(scope="module", params=STAGES)
def whole(request, folder, env):
    """(arm, the folder of its run without interruption)."""
    done = run_main(arguments(folder, request.param, request.param), env=env)
    assert done.returncode == 0, done.stderr
    return request.param, folder / request.param


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_one_that_was_not(folder, env, whole):
    arm, expected = whole
    args = arguments(folder, arm, f"{arm}_killed")
    for stage in STAGES[arm]:
        done = interrupted(env, "KILL", stage, 8, 0.05, args)
        assert done.returncode == -9, done.stderr
        assert not (folder / f"{arm}_killed" / stage / "done.json").exists()
    done = run_main(args, env=env)
    assert done.returncode == 0, done.stderr
    found = folder / f"{arm}_killed"
    names = [f"{stage}/metrics.csv" for stage in STAGES[arm]]
    for name in (*names, "cases.csv", "cases_teacher.csv", "summary.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    for stage in STAGES[arm]:
        (step, ours), (last, theirs) = saved(found / stage), saved(expected / stage)
        assert step == last == STEPS
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_what_a_run_keeps_and_says(whole):
    arm, run = whole
    for stage in STAGES[arm]:
        rows = read_rows(run / stage / "metrics.csv")
        assert len(rows) == STEPS
        assert all(np.isfinite(float(value)) for row in rows for value in row.values())
        _, state = saved(run / stage)
        teacher = state["method_state"]["teacher"]
        assert jax.tree.structure(teacher["params"]) == jax.tree.structure(
            state["params"]
        )
    assert len(read_cases(run / "cases.csv")) == len(
        read_cases(run / "cases_teacher.csv")
    )
    log = (run / "log.txt").read_text()
    for earlier, stage in zip(STAGES[arm], STAGES[arm][1:], strict=False):
        assert f"{stage}: a new start from {run / earlier}, step {STEPS}" in log
    falls = f"finetune: method.entropy_steps is 1000, but there are {STEPS} steps"
    assert (falls in log) == (arm == "arco")


@pytest.mark.slow
def test_stage_ii_begins_with_the_teacher_of_stage_i(folder, env):
    args = arguments(
        folder,
        "action",
        "handed_on",
        pretrain__optimizer__peak_lr=1.0,  # so that student and teacher differ
        local__train__steps=1,
        local__method__teacher_momentum=0.9999999,
    )
    done = run_main([*args, "--stages=prepare,pretrain,local"], env=env)
    assert done.returncode == 0, done.stderr
    (_, first), (_, second) = (
        saved(folder / "handed_on" / stage) for stage in ("pretrain", "local")
    )
    for part in ("encoder", "head"):
        before, after = (
            state["method_state"]["teacher"]["params"][part]
            for state in (first, second)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before, after
        )
    apart = jax.tree.map(
        lambda a, b: np.abs(a - b).max(),
        first["params"]["encoder"],
        second["method_state"]["teacher"]["params"]["encoder"],
    )  # from the student
    assert max(jax.tree.leaves(apart)) > 1e-4


def test_a_stage_that_does_not_fit_the_one_before_is_told_by_its_leaf(capsys):
    code, text = call_main(
        capsys,
        f"--config={ROOT}/configs/action_phantom.py",
        "--dry_run",
        "--devices=1",
        "--config.data.options.volumes=8",
        "--config.local.model.width=4",
    )
    assert code == 1
    line = text.splitlines()[-1]
    assert "config.local.init_from=pretrain: the weights do not fit: params/" in line
    assert "in the source" in line and "in the new network" in line


@pytest.mark.slow
def test_the_split_and_what_is_labelled_are_those_of_the_run(whole):
    _, run = whole
    seen = read_json(run / "finetune" / "patients.json")
    labelled = read_json(run / "summary.json")["labelled_patients"]
    assert set(labelled) == set(seen["labels"]) < set(seen["images"])
