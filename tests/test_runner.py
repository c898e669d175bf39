"""What a run refuses when it goes on."""

from types import SimpleNamespace

import pytest

from pclseg import runner
from pclseg.errors import UserError
from pclseg.files import read_json, write_json
from pclseg.train.stop import StopFlag

SPLITS = {"folds": [{"train": ["a", "b"], "validation": ["c"]}], "unlabelled": []}


def go_on(workdir, splits):
    outline = SimpleNamespace(dataset=None, split=None, all_splits=splits)
    runner.execute(None, workdir, outline, devices=[], only=(), stop=StopFlag())


def test_a_run_that_has_begun_is_not_continued_with_other_splits(tmp_path):
    write_json(tmp_path / "dataset.json", {})
    write_json(tmp_path / "splits.json", SPLITS)
    others = {"folds": [{"train": ["a", "c"], "validation": ["b"]}], "unlabelled": []}
    with pytest.raises(UserError, match=r"splits\.json differs .* new --workdir"):
        go_on(tmp_path, others)
    assert read_json(tmp_path / "splits.json") == SPLITS


def test_a_stage_does_not_start_from_an_unfinished_one(tmp_path):
    (tmp_path / "pretrain" / "checkpoints").mkdir(parents=True)
    write_json(tmp_path / "pretrain" / "patients.json", ["a"])
    names = {"pretrain": None, "finetune": None}
    run = SimpleNamespace(workdir=tmp_path, stages=names, rows=lambda subset: [])
    stage = SimpleNamespace(
        name="finetune",
        init=lambda: None,
        abstract=lambda: None,
        config=SimpleNamespace(
            init_from="pretrain", data=SimpleNamespace(subset="labelled")
        ),
    )
    with pytest.raises(UserError, match="pretrain is not finished; run that stage"):
        runner._first_state(run, stage, SimpleNamespace(restore=lambda like: None))


def test_other_files_of_the_same_patients_are_told(tmp_path, caplog):
    write_json(tmp_path / "dataset.json", {"fingerprint": "1"})
    runner._warn_of_other_files(
        tmp_path / "dataset.json", SimpleNamespace(fingerprint="1")
    )
    assert not caplog.records
    runner._warn_of_other_files(
        tmp_path / "dataset.json", SimpleNamespace(fingerprint="2")
    )
    assert "changed since this run began" in caplog.text
