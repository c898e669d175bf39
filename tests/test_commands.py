"""`pclseg COMMAND`: what there is, and what a wrong word says; `pclseg doctor`."""

import importlib
import importlib.metadata

import pytest
from tiny_nifti import ROOT, clean_process

from pclseg import __main__ as commands
from pclseg import __version__, rundir
from pclseg.cli import doctor

WITHOUT_A_COMMAND = {"__init__", "status"}


def test_every_program_has_a_command():
    files = {path.stem for path in ROOT.glob("pclseg/cli/*.py")} - WITHOUT_A_COMMAND
    modules = {module for module, _ in commands.COMMANDS.values()}
    assert modules == {f"pclseg.cli.{name}" for name in files} | {"pclseg.main"}


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_of_every_command_names_its_options(name, capsys):
    with clean_process():
        try:
            status = commands.main([name, "--help"])
        except SystemExit as end:
            status = end.code
        text = "".join(capsys.readouterr())
    assert status == 0
    assert "--" in text and "Traceback" not in text
    assert callable(importlib.import_module(commands.COMMANDS[name][0]).main)


def test_help_fits_a_screen_and_no_command_is_a_mistake(capsys):
    assert commands.main(["--help"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 79
    assert all(name in text for name in commands.COMMANDS)
    assert commands.main([]) == 2
    assert commands.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_the_nearest_command_is_named(capsys):
    assert commands.main(["chek"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: pclseg has no command 'chek'; it has: check, ")
    assert "Did you mean 'check'?" in error


def doctor_says(capsys):
    with clean_process():
        status = doctor.main([])
        return status, capsys.readouterr().err


def test_doctor_tells_versions_devices_and_pipelines(capsys):
    status, text = doctor_says(capsys)
    assert status == 0, text
    for part in (__version__, importlib.metadata.version("jax"), "device 0"):
        assert part in text
    assert "pipeline numpy       yes" in text


def test_doctor_misses_a_package(capsys, monkeypatch):
    version = rundir.version
    monkeypatch.setattr(
        rundir, "version", lambda n: None if n == "optax" else version(n)
    )
    status, text = doctor_says(capsys)
    assert status == 1
    assert "error: optax is not installed; run `make venv`" in text


def test_doctor_does_without_tensorflow(capsys, monkeypatch):
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util,
        "find_spec",
        lambda name: None if name == "tensorflow" else find(name),
    )
    status, text = doctor_says(capsys)
    assert status == 0
    assert "pipeline tf          no: TensorFlow is not installed" in text


def test_doctor_sees_a_gpu_that_jax_does_not(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert any("NVIDIA GPU" in line and "cuda13" in line for line in doctor.advice())


def test_ctrl_c_while_packages_load_is_one_line(capsys, monkeypatch):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupt)
    assert commands.main(["predict", "--help"]) == 130
    text = capsys.readouterr().err
    assert text == "error: interrupted before anything was done.\n"
