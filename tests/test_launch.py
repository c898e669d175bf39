"""Launch scripts: shellcheck, dry runs, and a fake gcloud that records its calls."""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pclseg.main import _flags

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")])
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
    """A folder for PATH with a stand-in for gcloud, see `stand_in`."""
    stand_in(tmp_path / "gcloud")
    return tmp_path


def stand_in(script):
    """Writes a command that appends its arguments to the file `calls` beside it.

    While `failures` has lines, it removes one and fails.
    """
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
    (script.parent / "failures").write_text("")


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


@pytest.fixture
def fake_slurm(tmp_path):
    """A folder for PATH with srun, scontrol and sbatch; `status` is that of srun."""
    for name, ending in {
        "srun": 'exit "$(cat status)"',
        "scontrol": "",
        "sbatch": 'wc -l <sbatch.calls | sed "s/^ */10/"',  # the number of the job
    }.items():
        script = tmp_path / name
        script.write_text(
            f"""#!/bin/bash
cd {tmp_path}
printf '%s|' "$@" >>{name}.calls
echo >>{name}.calls
{ending}
"""
        )
        script.chmod(0o755)
    (tmp_path / "status").write_text("0")
    return tmp_path


def slurm(fake, script, *arguments, **environment):
    return subprocess.run(
        ["bash", ROOT / "launch" / script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PATH": f"{fake}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "7",
            "VENV": str(Path(sys.executable).parents[1]),
            **environment,
        },
    )


def slurm_calls(fake, name):
    path = fake / f"{name}.calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.removesuffix("|").split("|") for line in lines]


@pytest.mark.parametrize(
    ("status", "returncode", "requeued"), [(0, 0, False), (1, 1, False), (75, 0, True)]
)
def test_a_stopped_slurm_job_queues_itself_again(
    status, returncode, requeued, fake_slurm
):
    (fake_slurm / "status").write_text(str(status))
    result = slurm(fake_slurm, "slurm.sbatch", "--config=a b.py", "--workdir=r")
    assert result.returncode == returncode, result.stderr
    ((cpus, python, *arguments),) = slurm_calls(fake_slurm, "srun")
    assert cpus == "--cpus-per-task=8"
    assert python.endswith("bin/python") and arguments == [
        *["-m", "pclseg.main", "--coordinator=auto", "--stopped_status=75"],
        *["--config=a b.py", "--workdir=r"],
    ]
    assert slurm_calls(fake_slurm, "scontrol") == [["requeue", "7"]] * requeued


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (143, True)])
def test_a_cell_is_a_task_of_an_array(status, requeued, fake_slurm):
    (fake_slurm / "status").write_text(str(status))
    ids = dict(SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="31")
    result = slurm(fake_slurm, "slurm_array.sbatch", "m.json", "--out=o", **ids)
    assert result.returncode == 0, result.stderr
    (call,) = slurm_calls(fake_slurm, "srun")
    assert call[2:] == ["-m", "pclseg.cli.grid", "m.json", "--out=o", "--cell=31"]
    assert slurm_calls(fake_slurm, "scontrol") == [["requeue", "5_31"]] * requeued


def test_waves_of_a_grid_wait_for_each_other(fake_slurm, tmp_path):
    grid = ["configs/grids/hippocampus_questions.py", f"--out={tmp_path / 'out'}"]
    extra = ["--", "--partition=gpu"]
    result = slurm(fake_slurm, "slurm_grid.sh", *grid, *extra)
    assert result.returncode == 0, result.stderr
    calls = slurm_calls(fake_slurm, "sbatch")
    ends = []
    for number, call in enumerate(calls):
        assert call[-3:] == ["launch/slurm_array.sbatch", *grid]
        assert "--partition=gpu" in call
        after = [f"--dependency=afterok:10{number}"] if number else []
        assert [text for text in call if "dependency" in text] == after
        (span,) = (text for text in call if text.startswith("--array="))
        ends.append([int(n) for n in span.removeprefix("--array=").split("-")])
    assert len(calls) > 1 and ends[0][0] == 0
    assert all(b[0] == a[1] + 1 for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_array.sbatch"])
def test_slurm_dry_runs_start_nothing(script, fake_slurm):
    result = slurm(fake_slurm, script, "--dry-run", "--config=a b.py")
    assert result.returncode == 0 and "--config=a\\ b.py" in result.stdout
    assert result.stdout.startswith("srun ")
    assert not list(fake_slurm.glob("*.calls"))


def test_processes_of_slurm_are_as_many_as_gpus():
    lines = (ROOT / "launch" / "slurm.sbatch").read_text().splitlines()
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in lines
        if line.startswith("#SBATCH --")
    )
    assert options["gres"] == f"gpu:{options['ntasks-per-node']}"
    assert "gpus-per-task" not in options and options["signal"] == "TERM@120"


def test_jobset_numbers_belong_together():
    text = (ROOT / "launch" / "k8s" / "jobset.yaml").read_text()
    jobset = yaml.safe_load(text)
    name = jobset["metadata"]["name"]
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    arguments = dict(text.split("=", 1) for text in container["args"])
    processes = workers["replicas"] * job["completions"]
    assert job["parallelism"] == job["completions"]
    assert arguments["--processes"] == str(processes)
    host = f"{name}-{workers['name']}-0-0.{jobset['spec']['network']['subdomain']}"
    assert arguments["--coordinator"] == f"{host}:1234"
    assert arguments["--process"] == "$(JOB_COMPLETION_INDEX)"
    assert job["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 120
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    known = {f"--{flag}" for flag in _flags()}
    own = {name for name in arguments if not name.startswith("--config.")}
    assert own <= known


def test_docker_copies_what_is_there():
    lines = (ROOT / "launch" / "docker" / "Dockerfile").read_text().splitlines()
    copied = [
        name for line in lines if line.startswith("COPY") for name in line.split()[2:-1]
    ]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert (ROOT / "requirements" / "base.lock").is_file()
