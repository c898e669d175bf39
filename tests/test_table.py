"""The command that prints the comparison of run directories."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_tables import PCL, SCRATCH, as_before_the_legacy_scores, write_run

from pclseg.cli import table
from pclseg.reports import comparison, tables
from pclseg.reports import runs as run_directories


@pytest.fixture
def runs(tmp_path):
    return [
        str(write_run(tmp_path / f"{run['arm']}_{run['fold']}", run))
        for run in PCL + SCRATCH
    ]


def test_prints_the_tables_of_the_runs(runs, capsys):
    assert table.main([*runs, "--baseline", "scratch"]) == 0
    shown = capsys.readouterr().out
    read = [run_directories.read_run(run) for run in runs]
    numbers = comparison.numbers(read, baseline="scratch")
    assert shown == tables.as_text(tables.render(numbers))
    assert "pcl - scratch" in shown and "NSD at 2 mm" in shown


def test_runs_of_an_earlier_version_are_compared_as_before(runs, capsys):
    assert table.main(runs) == 0
    shown = capsys.readouterr().out
    for run in runs:
        as_before_the_legacy_scores(Path(run))
    assert table.main(runs) == 0
    assert capsys.readouterr().out == shown


def test_an_ascii_terminal_shows_the_tables(runs):
    done = subprocess.run(
        [sys.executable, "-m", "pclseg.cli.table", *runs],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"0.400 ? 0.141" in done.stdout


@pytest.mark.parametrize("place", ["folder", ".", "", "/"])
def test_numbers_that_cannot_be_written_are_one_line(runs, tmp_path, capsys, place):
    place = tmp_path if place == "folder" else place
    assert table.main([*runs, f"--json={place}"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "cannot be written" in err and err.count("\n") == 1


def test_runs_of_two_data_sets_are_one_line(runs, capsys):
    config = Path(runs[0]) / "config.json"
    config.write_text(config.read_text().replace('"acdc"', '"phantom"'))
    assert table.main(runs) == 1
    out, err = capsys.readouterr()
    assert out == "" and "compare runs of one data set" in err and err.count("\n") == 1


def test_prints_markdown(runs, capsys):
    assert table.main([*runs, "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("### Dice per case") and "scratch - pcl" in shown


def test_mistake_is_one_line_and_exit_1(tmp_path, capsys):
    assert table.main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_ctrl_c_is_one_line_and_exit_130(runs, capsys, monkeypatch):
    def interrupt(workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_directories, "read_run", interrupt)
    assert table.main(runs) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: interrupted") and err.count("\n") == 1
