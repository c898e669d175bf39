"""What a run refuses when it goes on."""

import dataclasses
from types import SimpleNamespace

import pytest
from test_tfds_store import make_volume

from pclseg import processes, runner
from pclseg.data.splits import Split
from pclseg.errors import UserError
from pclseg.files import read_json, write_json
from pclseg.train.metrics import MetricWriter
from pclseg.train.stop import StopFlag

SPLITS = {"folds": [{"train": ["a", "b"], "validation": ["c"]}], "unlabelled": []}


NO_CHECKPOINT = SimpleNamespace(restore=lambda like: None)


def stage_of(name, *, init_from=""):
    config = SimpleNamespace(
        init_from=init_from, data=SimpleNamespace(subset="labelled")
    )
    return SimpleNamespace(
        name=name,
        init=lambda: None,
        abstract=lambda: None,
        subsets=lambda: ("labelled",),
        label_subsets=lambda: ("labelled",),
        config=config,
    )


def go_on(workdir, splits):
    outline = SimpleNamespace(dataset=None, split=None, all_splits=splits)
    runner.execute(
        None,
        workdir,
        outline,
        predictions=workdir,
        devices=[],
        only=(),
        stop=StopFlag(),
    )


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
    names = {
        "pretrain": stage_of("pretrain"),
        "finetune": stage_of("finetune", init_from="pretrain"),
    }
    run = SimpleNamespace(workdir=tmp_path, stages=names, patients=lambda subsets: [])
    with pytest.raises(UserError, match="pretrain is not finished.*; run that stage"):
        runner._first_state(run, names["finetune"], NO_CHECKPOINT)


def test_a_stage_is_not_trained_again_under_one_that_started_from_it(tmp_path):
    (tmp_path / "finetune").mkdir()
    write_json(tmp_path / "finetune" / "patients.json", ["a"])
    stages = {
        "pretrain": stage_of("pretrain"),
        "finetune": stage_of("finetune", init_from="pretrain"),
    }
    run = SimpleNamespace(workdir=tmp_path, stages=stages)
    with pytest.raises(UserError, match=r"finetune started from .*pretrain that are"):
        runner._first_state(run, stages["pretrain"], NO_CHECKPOINT)


@pytest.mark.parametrize(
    ("before", "earlier"),
    [
        (None, []),
        ({"fingerprint": "2"}, []),
        ({"fingerprint": "1"}, ["1"]),
        ({"fingerprint": "2", "earlier_fingerprints": ["1"]}, ["1"]),  # the next start
        ({"fingerprint": "1", "earlier_fingerprints": ["0"]}, ["0", "1"]),
        ({"fingerprint": "1", "earlier_fingerprints": ["2"]}, ["1"]),  # as it began
        ({}, ["?"]),  # of a version that kept none
    ],
)
def test_other_files_of_the_same_patients_are_told_and_kept(
    tmp_path, caplog, before, earlier
):
    path = tmp_path / "dataset.json"
    if before is not None:
        write_json(path, before)
    found = runner._earlier_fingerprints(path, SimpleNamespace(fingerprint="2"))
    assert found == earlier
    assert ("changed since this run began" in caplog.text) == bool(earlier)


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (7, "gap 6.5"),  # the log has lines of steps 1 to 5 and of 6 and 7
        (10, "gap 8.0"),
        (40, None),  # metrics.csv was deleted in between
    ],
)
def test_what_the_last_line_of_the_log_warned_of_is_kept(tmp_path, num_steps, expected):
    writer = MetricWriter(tmp_path, first_step=0)
    writer.append("metrics", {step: {"gap": step} for step in range(1, 11)})
    writer = MetricWriter(tmp_path, first_step=num_steps)
    stage = SimpleNamespace(
        num_steps=num_steps,
        config=SimpleNamespace(train=SimpleNamespace(log_every=5)),
        method=SimpleNamespace(diagnose=lambda means: f"gap {means['gap']}"),
    )
    assert runner._last_warning(stage, writer) == expected


def one_process(names, train, rows=(0, 1, 2)):
    """What `_check_alike` of a process compares."""
    infos = [dataclasses.replace(make_volume(row).info, **names) for row in rows]
    split = Split(
        train=train, labelled=train[:1], validation=("v",), test=(), unlabelled=()
    )
    return SimpleNamespace(infos=infos), SimpleNamespace(split=split)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (one_process({"image_path": "/elsewhere"}, ("a", "b")), None),
        (one_process({}, ("b", "a")), "the patients in train of the split and 1 more"),
        (one_process({"labelled": False}, ("a", "b")), "volume case_0 and 2 more"),
        (one_process({}, ("a", "b"), rows=(0, 1)), "volume case_2 and 0 more"),
    ],
)
def test_processes_with_other_volumes_or_splits_are_told(monkeypatch, other, expected):
    mine = one_process({}, ("a", "b"))
    theirs = []
    monkeypatch.setattr(processes, "gather", lambda own: theirs.append(own) or [own])
    runner._check_alike(*other)
    monkeypatch.setattr(processes, "gather", lambda own: [own, theirs[0]])
    if expected is None:
        runner._check_alike(*mine)
        return
    with pytest.raises(UserError, match=f"process 1 has other data .*: {expected}"):
        runner._check_alike(*mine)
