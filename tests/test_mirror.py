"""The copy of a run at Weights & Biases, with a module that stands for theirs."""

import importlib.machinery
import json
import logging
import sys
import types

import pytest
from tiny_nifti import call_main, nifti_tree

from pclseg.errors import UserError
from pclseg.train import mirror as mirrors
from pclseg.train.metrics import MetricWriter
from pclseg.train.mirror import RECORD, Mirror, check_installed

CONFIG = {
    "arm": "pcl",
    "seed": 0,
    "stages": ["pretrain"],
    "data": {"name": "nifti", "raw_dir": "/secret", "split": {"file": "/secret"}},
    "pretrain": {"init_from": "/secret", "train": {"steps": 3}},
    "evaluate": {},
}


class FakeRun:
    def __init__(self, fails):
        self.logged, self.finished, self._fails = [], False, fails

    def define_metric(self, name, *, step_metric):
        assert step_metric == name.replace("*", "step")

    def log(self, values):
        if self._fails == "log":
            raise ConnectionError("no route\nto host")
        self.logged.append(values)

    def finish(self):
        if self._fails == "finish":
            raise ConnectionError("gone")
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """The module; its `fails` names the call that raises, `runs` is what was begun."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="here")
    module.fails, module.runs, module.calls = "", [], []

    def init(**arguments):
        module.calls.append(arguments)
        if module.fails == "init":
            raise RuntimeError("api_key not configured")
        module.runs.append(FakeRun(module.fails))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_the_writer_sends_what_tensorboard_gets(wandb, tmp_path):
    mirror = Mirror("project", tmp_path, CONFIG)
    writer = MetricWriter(tmp_path / "pretrain", first_step=0, mirror=mirror)
    writer.scalars("train", 5, {"loss": 0.5, "learning_rate": 0.1})
    writer.close()
    mirror.close()
    (run,) = wandb.runs
    assert run.finished
    assert run.logged == [
        {
            "pretrain/step": 5,
            "pretrain/train/loss": 0.5,
            "pretrain/train/learning_rate": 0.1,
        }
    ]
    assert wandb.calls[0]["project"] == "project"
    assert wandb.calls[0]["name"] == tmp_path.name


def test_no_path_of_the_config_is_sent(wandb, tmp_path):
    Mirror("project", tmp_path, CONFIG)
    sent = wandb.calls[0]["config"]
    assert sent["pretrain"] == {"train": {"steps": 3}}
    assert "/secret" not in json.dumps(sent)


def test_a_later_start_goes_on_in_the_same_run(wandb, tmp_path):
    for project in ("one", "one", "two"):
        Mirror(project, tmp_path, CONFIG).close()
    first, second, other = (call["id"] for call in wandb.calls)
    assert first == second != other
    assert {call["resume"] for call in wandb.calls} == {"allow"}


def test_without_a_project_nothing_is_imported_or_written(wandb, tmp_path):
    mirror = Mirror("", tmp_path, CONFIG)
    mirror.scalars("pretrain", "train", 1, {"loss": 1.0})
    mirror.close()
    assert wandb.calls == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_failure_is_one_warning(wandb, tmp_path, caplog, monkeypatch, fails):
    monkeypatch.setattr(mirrors, "log", logging.Logger("alone"))
    mirrors.log.addHandler(caplog.handler)
    wandb.fails = fails
    mirror = Mirror("project", tmp_path, CONFIG)
    for step in (1, 2, 3):
        mirror.scalars("pretrain", "train", step, {"loss": 1.0})
    mirror.close()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("Weights & Biases failed (")
    assert "\n" not in record.getMessage()


def test_what_is_not_installed_is_told_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_installed("")
    with pytest.raises(UserError, match=r"'mine', but .*`pip install wandb`"):
        check_installed("mine")
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb").mkdir()  # as wandb itself leaves it in a working folder
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="not installed"):
        check_installed("mine")


@pytest.fixture
def train(tmp_path, capsys):
    """(exit code, log) of a tiny training in tmp_path/run."""
    nifti_tree(tmp_path / "data")
    config = "configs/pcl_nifti.py:size=cpu,crop=16,classes=3"
    settings = {
        "data.raw_dir": tmp_path / "data",
        "data.store_dir": tmp_path / "prepared",
        "data.pipeline": "numpy",
        "data.prepare.workers": 1,
        "pretrain.data.batch_size": 4,
        "pretrain.model.width": 2,
        "pretrain.train.steps": 2,
        "stages": "('pretrain',)",
    }

    def run(*more):
        overrides = [f"--config.{key}={value}" for key, value in settings.items()]
        places = [f"--config={config}", f"--workdir={tmp_path / 'run'}", "--devices=1"]
        return call_main(capsys, *places, *overrides, *more)

    return run


@pytest.mark.slow
def test_a_training_has_a_copy_which_may_come_and_go(wandb, train, tmp_path):
    code, text = train("--stages=prepare")  # begun without a copy
    assert code == 0, text
    assert wandb.calls == [] and not (tmp_path / "run" / RECORD).exists()
    code, text = train("--config.wandb=mine")
    assert code == 0, text
    (run,) = wandb.runs
    assert run.finished and run.logged[-1]["pretrain/step"] == 2
    assert all(name.startswith("pretrain/") for name in run.logged[-1])
    assert "pretrain/train/loss" in run.logged[-1]


@pytest.mark.slow
def test_a_training_ends_well_where_the_copy_fails(wandb, train):
    wandb.fails = "log"
    code, text = train("--config.wandb=mine")
    assert code == 0, text
    assert text.count("warning: Weights & Biases failed") == 1
    assert text.splitlines()[-1].startswith("finished: ")


def test_a_training_without_wandb_is_refused_before_it_begins(
    monkeypatch, train, tmp_path
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, text = train("--config.wandb=mine")
    assert code == 1
    assert text.startswith("error: config.wandb is 'mine', but wandb is not installed;")
    assert not (tmp_path / "run").exists()
