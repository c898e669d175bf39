"""What a live view says of a run: from its files, at any moment of it."""

import json

import pytest
from rich.console import Console
from tiny_nifti import clean_process

from pclseg import live
from pclseg.cli import watch
from pclseg.errors import UserError


@pytest.fixture
def run(tmp_path):
    """A run whose pre-training is finished and whose fine-tuning has begun."""
    stage = {"train": {"steps": 0}, "data": {"batch_size": 8}}
    config = {"stages": ["pretrain", "finetune"], "pretrain": stage, "finetune": stage}
    (tmp_path / "config.json").write_text(json.dumps(config))
    log = ["pretrain step 40/40 (100%)  loss", "finetune step 30/120 (25%)  loss 0.5"]
    lines = [f"2026-11-26 10:00:0{i},123 INFO {text}" for i, text in enumerate(log)]
    (tmp_path / "log.txt").write_text("\n".join(lines) + "\n")
    for name, steps in (("pretrain", 40), ("finetune", 30)):
        folder = tmp_path / name
        folder.mkdir()
        rows = [f"{i},{10 / i},0.001" for i in range(1, steps + 1)]
        (folder / "metrics.csv").write_text(
            "\n".join(["step,loss,learning_rate", *rows]) + "\n"
        )
        speed = "step,slices_per_second,data_wait_share\n20,36.0,0.02\n"
        (folder / "speed.csv").write_text(speed)
    (tmp_path / "pretrain" / "done.json").write_text('{"steps": 40}')
    (tmp_path / "pretrain" / "checkpoints" / "40").mkdir(parents=True)
    (tmp_path / "finetune" / "validation.csv").write_text("step,dice\n20,0.75\n")
    return tmp_path


def test_a_stage_in_work_is_told_from_its_files(run):
    (first, second), lines = live.read(run)
    assert (first.step, first.total, first.finished) == (40, 40, True)
    assert first.seconds_left is None
    assert (second.step, second.total, second.finished) == (30, 120, False)
    assert second.seconds_left == 90 * 8 / 36.0
    assert second.losses[-1] == 10 / 30 and second.learning_rate == 0.001
    assert second.validation == {"step": 20.0, "dice": 0.75}
    assert lines[-1] == "finetune step 30/120 (25%)  loss 0.5"


def test_a_row_that_is_being_written_is_left_out(run):
    with (run / "finetune" / "metrics.csv").open("a") as file:
        file.write("31,0.3")
    assert live.read(run)[0][1].step == 30


def test_a_run_that_has_only_begun_has_no_numbers(run):
    for name in ("pretrain", "finetune"):
        for path in (run / name).glob("*.*"):
            path.unlink()
    (run / "log.txt").unlink()
    (stage, _), lines = live.read(run)
    assert (stage.step, stage.total, stage.losses, lines) == (0, None, [], [])
    console = Console(width=80, record=True)
    console.print(live.view(run, "running"))
    assert "0 steps" in console.export_text()


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run directory: it has no config\.json"):
        live.read(tmp_path)


def test_state_is_that_of_the_lock_and_the_summary(run):
    assert live.state(run) == "stopped"
    (run / "summary.json").write_text("{}")
    assert live.state(run) == "finished"


def test_a_pretraining_is_finished_once_it_says_so_and_its_end_is_there(run):
    (run / "pretrained.json").write_text('{"stages": ["pretrain"]}')
    assert live.state(run) == "finished"
    (run / "pretrain" / "done.json").unlink()
    assert live.state(run) == "stopped"


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([2.0], "▁"),
        ([0.0, 1.0, 0.5], "▁█▅"),
        ([1.0, 1.0, 3.0, 3.0], "▁█"),
        ([5.0, 5.0], "▁▁"),
    ],
)
def test_a_curve_is_means_from_lowest_to_highest(values, bars):
    assert live.curve(values, columns=max(1, len(bars))) == bars


def test_the_command_shows_it_once_where_there_is_no_terminal(run, capsys):
    with clean_process():
        assert watch.main([str(run)]) == 0
        text = capsys.readouterr().out
    for part in ("stopped", "40 of 40 steps", "30 of 120 steps", "ETA 20s", "step 20"):
        assert part in text, text
    with clean_process():
        assert watch.main([str(run / "pretrain")]) == 1
        assert "no run directory" in capsys.readouterr().err
