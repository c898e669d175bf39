"""The command that prints the comparison of run directories."""

import pytest
from test_tables import PCL, SCRATCH, write_run

from pclseg.cli import table
from pclseg.reports import tables


@pytest.fixture
def runs(tmp_path):
    return [
        str(write_run(tmp_path / f"{run['arm']}_{run['fold']}", run))
        for run in PCL + SCRATCH
    ]


def test_prints_the_tables_of_the_runs(runs, capsys):
    assert table.main([*runs, "--baseline", "scratch"]) == 0
    shown = capsys.readouterr().out
    read = [tables.read_run(run) for run in runs]
    assert shown == tables.as_text(tables.compare(read, baseline="scratch"))
    assert "pcl - scratch" in shown and "NSD at 2 mm" in shown


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

    monkeypatch.setattr(tables, "read_run", interrupt)
    assert table.main(runs) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: interrupted") and err.count("\n") == 1
