"""Launch scripts: shellcheck, dry runs, and a fake gcloud that records its calls."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(ROOT.glob("launch/*.sh"))
SCRIPTS.append(ROOT / ".ci" / "run")
COMMANDS = [
    "create",
    "setup",
    "send data",
    "run",
    "logs",
    "fetch runs",
    "status",
    "delete",
]


def launch(script, *arguments, path=None):
    return subprocess.run(
        [ROOT / "launch" / script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"],
            "RETRY_SECONDS": "0",
        },
    )


@pytest.fixture
def fake_gcloud(tmp_path):
    """A folder for PATH whose gcloud appends its arguments to `calls`.

    While `failures` has lines, it removes one and fails.
    """
    script = tmp_path / "gcloud"
    script.write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
left = (here / "failures").read_text().splitlines()
(here / "failures").write_text("\\n".join(left[1:]))
sys.exit(1 if left else 0)
"""
    )
    script.chmod(0o755)
    (tmp_path / "failures").write_text("")
    return tmp_path


def calls(folder):
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    command = [shellcheck, "--external-sources", f"--source-path={ROOT}", script]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_gpu_dry_run_prints_the_two_commands():
    result = launch("gpu.sh", "--dry-run", "--cuda", "12", "--", "--config=a b.py")
    assert result.returncode == 0, result.stderr
    first, second = map(shlex.split, result.stdout.splitlines())
    assert first[0] == "make" and {"venv", "EXTRA=cuda12", "VENV=.venv-cuda12"} <= {
        *first
    }
    python = ".venv-cuda12/bin/python"
    assert second == [python, "-m", "pclseg.main", "--config=a b.py"]


def test_gpu_locks_exist_for_every_choice():
    for cuda in ("12", "13"):
        assert (ROOT / "requirements" / f"cuda{cuda}.lock").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_tpu_dry_run_starts_nothing(command, fake_gcloud):
    arguments = [*command.split(), "--name", "vm", "--dry-run", "--", "--config=c"]
    result = launch("tpu_vm.sh", *arguments, path=fake_gcloud)
    assert result.returncode == 0, result.stderr
    assert "gcloud compute tpus tpu-vm" in result.stdout
    assert not (fake_gcloud / "calls").exists()


def test_tpu_create_passes_type_image_and_place(fake_gcloud):
    options = [
        "--name",
        "vm",
        "--zone",
        "z",
        "--type",
        "v6e-8",
        "--image",
        "i",
        "--spot",
    ]
    assert launch("tpu_vm.sh", "create", *options, path=fake_gcloud).returncode == 0
    assert calls(fake_gcloud) == [
        [
            *["compute", "tpus", "tpu-vm", "create", "vm"],
            *["--accelerator-type=v6e-8", "--version=i", "--spot", "--zone=z"],
        ]
    ]


def test_tpu_run_keeps_the_quoting_of_the_arguments(fake_gcloud, tmp_path):
    arguments = ["--config=configs/a b.py", "--config.x='1 $HOME'"]
    result = launch(
        "tpu_vm.sh", "run", "--name", "vm", "--", *arguments, path=fake_gcloud
    )
    assert result.returncode == 0, result.stderr
    (call,) = calls(fake_gcloud)
    (remote,) = [text for text in call if text.startswith("--command=")]
    # What the remote shell does, with a python that prints its arguments.
    python = tmp_path / "pclseg" / ".venv-tpu" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho done\n')
    python.chmod(0o755)
    script = remote.removeprefix("--command=")
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    log = tmp_path / "pclseg" / "run.log"
    for _ in range(100):
        if log.exists() and log.read_text().endswith("done\n"):
            break
        subprocess.run(["sleep", "0.05"], check=True)
    assert log.read_text().splitlines() == ["-m", "pclseg.main", *arguments, "done"]


@pytest.mark.parametrize(("failures", "returncode", "tries"), [(2, 0, 3), (9, 1, 5)])
def test_tpu_setup_tries_the_first_copy_again(failures, returncode, tries, fake_gcloud):
    (fake_gcloud / "failures").write_text("fail\n" * failures)
    git = fake_gcloud / "git"  # the tree under test may have no commit to archive
    git.write_text("#!/bin/sh\n")
    git.chmod(0o755)
    result = launch("tpu_vm.sh", "setup", "--name", "vm", path=fake_gcloud)
    assert result.returncode == returncode
    assert sum(call[3] == "scp" for call in calls(fake_gcloud)) == tries


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("gpu.sh", ["--cuda", "11", "--", "x"], "expected 12 or 13"),
        ("gpu.sh", [], "after --"),
        ("gpu.sh", ["--config=c"], "unknown argument --config=c"),
        ("tpu_vm.sh", [], "no command"),
        ("tpu_vm.sh", ["destroy"], "unknown command destroy"),
        ("tpu_vm.sh", ["create"], "--name is missing"),
        ("tpu_vm.sh", ["create", "--name"], "--name needs a value"),
        ("tpu_vm.sh", ["run", "--name", "vm"], "after --"),
        ("tpu_vm.sh", ["send", "--name", "vm"], "needs a PATH"),
    ],
)
def test_mistakes_end_with_one_line(script, arguments, message, fake_gcloud):
    result = launch(script, *arguments, path=fake_gcloud)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (fake_gcloud / "calls").exists()


@pytest.mark.parametrize("script", ["gpu.sh", "tpu_vm.sh"])
def test_help_is_the_head_comment(script):
    result = launch(script, "--help")
    assert result.returncode == 0
    assert "pclseg.main" in result.stdout and "#" not in result.stdout
