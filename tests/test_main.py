"""The command line of `python -m pclseg.main`."""

import jax
import pytest
from tiny import ROOT, tiny_args
from tiny_nifti import call_main

from pclseg import main, runner
from pclseg.errors import Stopped, UserError

CONFIG = f"--config={ROOT / 'configs' / 'pcl_phantom.py'}"


def test_flags_may_come_in_any_order_and_form():
    args = ["main", "--config.seed=5", "--workdir", "a b", CONFIG, "--config.arm", "x"]
    found = main.parse([*args, "--stages=pretrain,evaluate", "--devices=2"])
    assert found.config.seed == 5
    assert found.config.arm == "x"
    assert str(found.workdir) == "a b"
    assert found.stages == ("pretrain", "evaluate")
    assert found.devices == 2
    assert not found.dry_run


def test_defaults():
    found = main.parse(["main", CONFIG, "--dry_run"])
    assert (found.workdir, found.stages, found.devices) == (None, (), 0)
    assert found.dry_run


def test_one_call_knows_nothing_of_the_one_before():
    main.parse(["main", CONFIG, "--workdir=x", "--config.seed=5", "--dry_run"])
    found = main.parse(["main", CONFIG])
    assert (found.config.seed, found.workdir, found.dry_run) == (0, None, False)


def test_help_names_every_flag_and_how_to_change_a_value(capsys):
    code, text = call_main(capsys, "--help")
    assert code == 0
    for word in (
        "config",
        "workdir",
        "stages",
        "devices",
        "dry_run",
        "config.KEY=VALUE",
    ):
        assert f"--{word}" in text


@pytest.fixture
def executed(monkeypatch):
    """Runs nothing; keeps what `execute` was called with."""
    calls = {}

    def execute(config, workdir, outline, **kwargs):
        calls.update(kwargs, config=config, workdir=workdir, outline=outline)

    monkeypatch.setattr(runner, "execute", execute)
    return calls


def test_run_is_executed_with_the_chosen_devices_and_stages(tmp_path, capsys, executed):
    args = tiny_args(tmp_path / "phantom", tmp_path / "prepared", tmp_path / "run")
    code, stderr = call_main(capsys, *args, "--devices=2", "--stages=finetune")
    assert code == 0, stderr
    assert executed["devices"] == jax.local_devices()[:2]
    assert executed["only"] == ("finetune",)
    assert executed["workdir"] == tmp_path / "run"
    assert list(executed["outline"].stages) == ["pretrain", "finetune"]
    assert (tmp_path / "run" / "config.json").exists()


def test_stopped_run_exits_with_0_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def execute(*args, **kwargs):
        raise Stopped("pretrain: state of step 3 of 24 is saved")

    monkeypatch.setattr(runner, "execute", execute)
    args = tiny_args(tmp_path / "my data", tmp_path / "prepared", tmp_path / "run")
    code, stderr = call_main(capsys, *args, "--devices=1")
    assert code == 0
    said = stderr.splitlines()[-2:]
    assert "pretrain: state of step 3 of 24 is saved." in said[0]
    assert said[1].startswith("  python -m pclseg.main --config=")
    assert f"'--config.data.raw_dir={tmp_path / 'my data'}'" in said[1]  # for a shell


def test_error_of_several_lines_is_shown_on_one(tmp_path, capsys, monkeypatch):
    def outline(config, *, dry_run):
        raise UserError("first\nsecond")

    monkeypatch.setattr(runner, "outline", outline)
    code, stderr = call_main(capsys, CONFIG, "--dry_run", "--devices=1")
    assert code == 1
    assert stderr == "error: first second\n"


def test_bug_shows_its_trace(capsys, monkeypatch):
    def outline(config, *, dry_run):
        raise ZeroDivisionError

    monkeypatch.setattr(runner, "outline", outline)
    with pytest.raises(ZeroDivisionError):
        call_main(capsys, CONFIG, "--dry_run", "--devices=1")
