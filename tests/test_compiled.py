"""Compiled code is kept for the next run; too little memory is told with what helps."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny import main_env, run_main, tiny_args

from pclseg import main, rundir
from pclseg.compiled import keep_compiled

PROGRAM = """
import jax
from pclseg.compiled import keep_compiled
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
keep_compiled()
print(jax.config.jax_compilation_cache_dir)
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8))).block_until_ready()
"""


def run(home: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(Path(main.__file__).parents[1]),
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def test_code_lies_in_the_users_cache(tmp_path):
    folder = Path(run(tmp_path))
    assert folder.parent == tmp_path / ".cache" / "pclseg" / "compiled"
    entries = sorted(folder.iterdir())
    assert entries
    assert run(tmp_path) == str(folder)  # and the second run adds none
    assert sorted(folder.iterdir()) == entries


def test_the_environment_decides_where_and_whether(tmp_path):
    own = tmp_path / "own"
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own)) == str(own)
    assert any(own.iterdir())
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == "None"
    assert Path(run(tmp_path, XDG_CACHE_HOME=str(own))).is_relative_to(own / "pclseg")
    assert not (tmp_path / ".cache").exists()


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        keep_compiled()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("pipeline", ["numpy", "device", "tf"])
def test_nothing_is_compiled_once_training_goes_on(tmp_path, pipeline):
    if pipeline == "tf" and not importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is not installed")
    raw, store = tmp_path / "raw", tmp_path / "store"
    args = tiny_args(raw, store, tmp_path / "run", data__pipeline=pipeline)
    done = run_main(args, env=main_env(devices=2, JAX_LOG_COMPILES="1"))
    assert done.returncode == 0, done.stderr
    for first, last in [
        ("pretrain step 4/24", "pretrain step 24/24"),
        ("finetune step 8/24", "finetune step 24/24"),  # the first validation is before
    ]:
        before, _, rest = done.stderr.partition(first)
        assert "Compiling" in before
        assert "Compiling" not in rest.partition(last)[0]


def test_out_of_memory_is_one_line_with_what_helps(tmp_path, monkeypatch, capsys):
    def run_out(arguments):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 4000000000000 bytes.\nmore"
        )

    monkeypatch.setattr(main, "run", run_out)
    status = main.main(["main", "--config=configs/pcl_phantom.py"])
    rundir.log_to(None)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert status == 1
    for part in (
        "4000000000000 bytes",
        "model.remat=True",
        "bn_groups=8",
        "batch_size",
    ):
        assert part in line


def test_other_errors_of_the_compiler_are_not_hidden(monkeypatch):
    def fail(arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(main, "run", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        main.main(["main", "--config=configs/pcl_phantom.py"])


def test_too_little_memory_of_the_machine_is_one_line(monkeypatch, capsys):
    def run_out(arguments):
        raise MemoryError

    monkeypatch.setattr(main, "run", run_out)
    status = main.main(["main", "--config=configs/pcl_phantom.py"])
    rundir.log_to(None)
    assert status == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: this machine is out of memory; use a lower --config")
    assert "pipeline=device" in line and "pipeline=tf" not in line  # which holds more
