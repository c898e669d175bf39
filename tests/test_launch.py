"""Launch scripts: shellcheck, dry runs, and a fake gcloud that records its calls."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from pclseg.main import train_flags

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")])
SCRIPTS.append(ROOT / ".ci" / "run")
QUEUED = ["run", "--name", "q", "--workdir", "gs://b/r"]
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
            "POLL_SECONDS": "0",
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
        ("tpu_vm.sh", ["create", "--name", "vm", "--type", "tpu7x-8"], "no image"),
        ("tpu_queued.sh", ["stop"], "unknown command stop"),
        ("tpu_queued.sh", ["run", "--workdir", "gs://b/r"], "--name is missing"),
        ("tpu_queued.sh", ["run", "--name", "q", "--", "x"], "expected gs://"),
        ("tpu_queued.sh", [*QUEUED, "--", "--workdir=runs/x"], "leave it out"),
        ("tpu_queued.sh", QUEUED, "after --"),
        ("tpu_queued.sh", [*QUEUED, "--spot", "--reserved"], "not both"),
        ("tpu_queued.sh", [*QUEUED, "--ref", "main"], "--ref needs --code"),
        ("tpu_startup.sh", ["--workdir", "gs://b/r", "--", "x"], "--code is missing"),
        ("tpu_startup.sh", ["--write"], "--write needs a file"),
    ],
)
def test_mistakes_end_with_one_line(script, arguments, message, fake_gcloud):
    result = launch(script, *arguments, path=fake_gcloud)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (fake_gcloud / "calls").exists()


@pytest.mark.parametrize(
    "script", ["gpu.sh", "tpu_vm.sh", "tpu_queued.sh", "tpu_startup.sh"]
)
def test_help_is_the_head_comment(script):
    result = launch(script, "--help")
    assert result.returncode == 0
    assert "pclseg.main" in result.stdout and "#" not in result.stdout


CLOUD = """#!{python}
import json, pathlib, re, shutil, sys
here = pathlib.Path(__file__).parent
argv = sys.argv[1:]
with open(here / "calls", "a") as calls:
    print(json.dumps(argv), file=calls)


def local(place):  # gs://b/x is the file bucket/b/x
    return pathlib.Path(re.sub("^gs:/", str(here / "bucket"), place))


def answer(name):  # the lines of a file in turn, the last one again and again
    lines = (here / name).read_text().splitlines()
    (here / name).write_text("\\n".join(lines[1:] or lines))
    if lines[0] == "ERROR":
        sys.exit("no network")
    if lines[0] == "NONE":
        sys.exit("ERROR: NOT_FOUND: Resource was not found")
    return lines[0].split()


match argv:
    case ["storage", "cp", source, to]:
        local(to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local(source), local(to))
    case ["storage", "rsync", "--recursive", source, to]:
        shutil.copytree(local(source), local(to), dirs_exist_ok=True)
    case ["storage", ("ls" | "cat" | "rm") as verb, place]:
        folder, _, pattern = place.rpartition("/")
        found = sorted(local(folder).glob(pattern + "/*" if pattern == "**"
                                          else pattern or "*"))
        for path in [path for path in found if path.is_file()]:
            if verb == "ls":
                print("gs://" + str(path.relative_to(here / "bucket")))
            elif verb == "cat":
                print(path.read_text())
            else:
                path.unlink()
        sys.exit(not found)
    case [*_, "describe", _, "--format=yaml(state)"]:
        print("message: no quota")
    case [*_, "queued-resources", "describe", _, _]:
        state, *marks = answer("states")
        print(state)
        for job in (here / "bucket").glob("**/startup.sh"):
            for mark in marks:
                (job.parent / mark).write_text("the end of a log")
    case [*_, "tpu-vm", "describe", _, _]:
        print(*answer("node"))
"""


@pytest.fixture
def cloud(tmp_path):
    """A folder for PATH with a gcloud that has a bucket.

    The lines of the file `states` are the states of the queued resource, each followed
    by the marks that workers then leave; those of `node` are the states of its node.
    """
    (tmp_path / "gcloud").write_text(CLOUD.replace("{python}", sys.executable))
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "node").write_text("READY")
    yield tmp_path
    for path in (ROOT / ".cache").glob(f"{queued_name(tmp_path)}.*"):
        path.unlink()


def queued_name(cloud):
    return f"test-{os.getpid()}-{cloud.name}"


def tpu_queued(cloud, command, *options, states="NONE", arguments=("--config=c",)):
    (cloud / "states").write_text("\n".join(states.split(", ")))
    return launch(
        "tpu_queued.sh",
        *[command, "--name", queued_name(cloud), "--workdir", "gs://b/r"],
        *["--code", "gs://b/code.tar.gz", *options, "--", *arguments],
        path=cloud,
    )


def tpu_calls(cloud):
    """What was done to the queued resource, such as "delete --force"."""
    return [
        " ".join([call[3], *{"--spot", "--reserved", "--force"}.intersection(call)])
        for call in calls(cloud)
        if call[:3] == ["compute", "tpus", "queued-resources"] and call[3] != "describe"
    ]


def creates(cloud):
    return [
        call for call in calls(cloud) if call[2:4] == ["queued-resources", "create"]
    ]


def readme_commands(script):
    text = (ROOT / "launch" / "README.md").read_text().replace("\\\n", "")
    return re.findall(rf"^launch/{script} .*", text, re.MULTILINE)


@pytest.mark.parametrize("script", ["tpu_queued.sh", "tpu_startup.sh"])
def test_dry_runs_of_the_readme_are_as_written_down(script, cloud):
    text = ""
    for command in readme_commands(script):
        words = shlex.split(command)[1:]
        at = words.index("--") if "--" in words else len(words)
        result = launch(script, *words[:at], "--dry-run", *words[at:], path=cloud)
        assert result.returncode == 0, result.stderr
        text += f"$ {shlex.join([f'launch/{script}', *words])}\n{result.stdout}\n"
    assert not (cloud / "calls").exists()
    assert text and text == (ROOT / "tests" / "launch" / f"{script}.txt").read_text()


def test_images_are_those_of_the_readme(fake_gcloud):
    text = (ROOT / "launch" / "README.md").read_text()
    rows = re.findall(r"^\| v\S+.*?\| (`.*`) \| `(.*)` \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for types, image in rows:
        for kind in re.findall("`(.*?)`", types):
            options = ["create", "--name", "vm", "--type", kind, "--dry-run"]
            result = launch("tpu_vm.sh", *options)
            assert f"--accelerator-type={kind} --version={image}\n" in result.stdout
            options = [*QUEUED, "--type", kind, "--dry-run", "--", "--config=c"]
            result = launch("tpu_queued.sh", *options)
            assert f"={kind} --runtime-version={image} " in result.stdout


def test_a_queued_tpu_is_waited_for(cloud):
    states = "ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING, PROVISIONING, ACTIVE"
    result = tpu_queued(cloud, "create", "--wait", "--reserved", states=states)
    assert result.returncode == 0, result.stderr
    seen = re.findall(r": ([A-Z_]+)\b", result.stdout)
    assert seen == list(dict.fromkeys(states.split(", ")))
    assert "costs money until" in result.stdout
    assert tpu_calls(cloud) == ["create --reserved"]
    (call,) = creates(cloud)
    assert call[5:] == [
        *[f"--node-id={call[4]}", "--accelerator-type=v5litepod-8"],
        *["--runtime-version=v2-alpha-tpuv5-lite", "--reserved"],
        f"--metadata-from-file=startup-script=.cache/{call[4]}.startup.sh",
    ]


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ("WAITING_FOR_RESOURCES, FAILED", "no quota"),
        ("ACTIVE, SUSPENDING, SUSPENDED", "its TPU is gone"),
        ("ACTIVE, NONE", "no such queued resource"),
        ("ACTIVE, ACTIVE failed-1 finished-0-of-2", "the end of a log"),
    ],
)
def test_a_run_that_cannot_go_on_ends_the_watch(states, said, cloud):
    result = tpu_queued(cloud, "run", "--delete", states=f"NONE, {states}")
    assert result.returncode == 1 and said in result.stdout
    assert tpu_calls(cloud) == ["create"]


def test_a_finished_run_is_deleted_with_its_node(cloud):
    # The third mark is of an earlier TPU that was taken away at the end.
    first, last = "ACTIVE finished-1-of-2 finished-1-of-4", "ACTIVE finished-0-of-2"
    states = f"NONE, ACTIVE, {first}, ACTIVE, ACTIVE, ACTIVE, {last}"
    result = tpu_queued(cloud, "run", "--delete", states=states)
    assert result.returncode == 0, result.stderr
    assert (cloud / "states").read_text() == last  # waited for both workers
    assert tpu_calls(cloud) == ["create", "delete --force"]
    again = tpu_queued(cloud, "run", "--delete")
    assert again.returncode == 0 and tpu_calls(cloud) == ["create", "delete --force"]


def test_a_finished_run_stays_without_delete(cloud):
    states = "NONE, ACTIVE finished-0-of-1"
    result = tpu_queued(cloud, "run", states=states)
    assert result.returncode == 0 and tpu_calls(cloud) == ["create"]
    assert f"delete --name {queued_name(cloud)}" in result.stdout


@pytest.mark.parametrize(
    ("taken", "node"),
    [
        ("SUSPENDING, SUSPENDED", "READY"),
        ("ACTIVE, ACTIVE", "READY\nPREEMPTED\nREADY"),
        ("ACTIVE", "TERMINATED\nREADY"),
    ],
)
def test_a_spot_tpu_that_was_taken_away_is_created_anew(taken, node, cloud):
    (cloud / "node").write_text(node)
    states = (
        f"NONE, WAITING_FOR_RESOURCES, {taken}, PROVISIONING, ACTIVE finished-0-of-1"
    )
    result = tpu_queued(cloud, "run", "--spot", "--delete", states=states)
    assert result.returncode == 0, result.stderr
    once = ["create --spot", "delete --force"]
    assert tpu_calls(cloud) == [*once, *once]
    first, second = creates(cloud)
    assert first == second


def test_the_watch_outlives_a_lost_network(cloud):
    states = "NONE, ACTIVE, ERROR, ERROR, ERROR, ACTIVE finished-0-of-1"
    result = tpu_queued(cloud, "run", states=states)
    assert result.returncode == 0 and "no network" in result.stderr
    assert tpu_queued(cloud, "run", states="ERROR").returncode == 0  # finished before
    other = tpu_queued(cloud, "run", states="ERROR", arguments=["--config=d"])
    assert other.returncode == 1 and tpu_calls(cloud) == ["create"]


def test_the_same_command_watches_again_and_another_one_does_not(cloud):
    assert tpu_queued(cloud, "create").returncode == 0
    result = tpu_queued(cloud, "run", states="ACTIVE, ACTIVE finished-0-of-1")
    assert result.returncode == 0 and tpu_calls(cloud) == ["create"]
    other = tpu_queued(cloud, "run", states="ACTIVE", arguments=["--config=d"])
    assert other.returncode == 2 and "not for these arguments" in other.stderr


def test_the_committed_tree_goes_to_the_bucket(cloud):
    (cloud / "git").write_text('#!/bin/sh\necho code >"${3#--output=}"\n')
    (cloud / "git").chmod(0o755)
    name = queued_name(cloud)
    options = ["--name", name, "--workdir", "gs://b/r/", "--", "--config=c"]
    result = launch("tpu_queued.sh", "create", *options, path=cloud)
    assert result.returncode == 0, result.stderr
    assert (cloud / "bucket/b/r/launch/code.tar.gz").read_text() == "code\n"
    text = (ROOT / ".cache" / f"{name}.startup.sh").read_text()
    assert "--code gs://b/r/launch/code.tar.gz --workdir gs://b/r --" in text


# What the worker runs in place of pclseg; the lines of `program` are its statuses.
PROGRAM = """#!{python}
import json, pathlib, sys, time
here = pathlib.Path("{here}")
with open(here / "arguments", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
status, *rest = (here / "program").read_text().split()
(here / "program").write_text(" ".join(rest or [status]))
(run,) = (text for text in sys.argv if text.startswith("--workdir="))
run = pathlib.Path(run.removeprefix("--workdir="))
if not (here / "not_first").exists():
    run.mkdir(exist_ok=True)
    with open(run / "run.json", "a") as file:
        file.write("start\\n")
(run / "predictions").mkdir(parents=True, exist_ok=True)
(run / "predictions" / "case").write_text("mask")
time.sleep(float((here / "seconds").read_text()))
sys.exit(int(status))
"""


@pytest.fixture
def worker(cloud):
    """The cloud, and what the start-up script of a worker calls."""
    tree = cloud / "code"
    tree.mkdir()
    (tree / "README").write_text("the code")
    (cloud / "bucket" / "b").mkdir(parents=True)
    with tarfile.open(cloud / "bucket" / "b" / "code.tar.gz", "w:gz") as archive:
        archive.add(tree, arcname=".")
    python = sys.executable
    (cloud / "fake").write_text(
        PROGRAM.replace("{python}", python).replace("{here}", str(cloud))
    )
    for name, text in {
        "curl": 'case $* in *number) cat "$0.number" ;; *) cat "$0.endpoints" ;; esac',
        "python3": "echo 3.12",
        "make": f"mkdir -p .venv-tpu/bin; cp {cloud}/fake .venv-tpu/bin/python",
    }.items():
        (cloud / name).write_text(f"#!/bin/sh\n{text}\n")
        (cloud / name).chmod(0o755)
    (cloud / "fake").chmod(0o755)
    (cloud / "curl.number").write_text("0")
    (cloud / "curl.endpoints").write_text("a:0:10.0.0.1")
    (cloud / "program").write_text("0")
    (cloud / "seconds").write_text("0")
    return cloud


def start_up(worker, folder, *options, arguments=("--config=c",), **environment):
    """Writes the start-up script as tpu_queued.sh does and runs it as a boot does."""
    script = worker / "startup.sh"
    told = ["--code", "gs://b/code.tar.gz", *options, "--workdir", "gs://b/r"]
    written = launch("tpu_startup.sh", "--write", script, *told, "--", *arguments)
    assert written.returncode == 0, written.stderr
    subprocess.run(["bash", "-n", script], check=True)
    result = subprocess.run(
        ["bash", script, "--folder", worker / folder],
        cwd="/",
        timeout=60,
        check=False,
        env={
            **os.environ,
            "PATH": f"{worker}:{os.environ['PATH']}",
            "RETRY_SECONDS": "0",
            "POLL_SECONDS": "0.05",
            **environment,
        },
    )
    return result.returncode


def marks(worker):
    names = (path.name for path in (worker / "bucket/b/r/launch").glob("*/*"))
    return sorted(names)


def programs(worker):
    path = worker / "arguments"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def test_arguments_reach_the_worker_exactly(worker):
    arguments = [
        "--config=configs/pcl_nifti.py:images=a b,patient=(sub-\\d+|x)",
        "--config.stages=('pretrain',)",
        '--config.note=$HOME `id` "q" ^;^ *\t\\',
        "",
    ]
    result = tpu_queued(worker, "create", arguments=arguments)
    assert result.returncode == 0, result.stderr
    (call,) = creates(worker)
    script = ROOT / call[-1].removeprefix("--metadata-from-file=startup-script=")
    environment = {"PATH": f"{worker}:{os.environ['PATH']}", "POLL_SECONDS": "0.05"}
    command = ["bash", script, "--folder", worker / "opt"]
    subprocess.run(command, check=True, cwd="/", timeout=60, env=environment)
    run = f"--workdir={worker / 'opt' / 'run'}"
    own = ["-m", "pclseg.main", "--coordinator=auto", "--stopped_status=75", run]
    assert programs(worker) == [[*own, *arguments]]
    # With these very arguments the run counts as finished.
    again = tpu_queued(worker, "run", states="ACTIVE", arguments=arguments)
    assert again.returncode == 0, again.stdout


def test_a_finished_worker_does_not_start_over(worker):
    data = worker / "bucket" / "b" / "ACDC"
    data.mkdir()
    (data / "image").write_text("voxels")
    for folder in ("first", "first", "second"):  # a reboot, and another machine
        assert start_up(worker, folder, "--data", "gs://b/ACDC") == 0
    assert len(programs(worker)) == 1
    assert marks(worker) == ["finished-0-of-1"]
    assert (worker / "first/tree/data/ACDC/image").read_text() == "voxels"
    assert (worker / "bucket/b/r/predictions/case").read_text() == "mask"
    assert (worker / "bucket/b/r/run.json").read_text() == "start\n"
    assert "finished before" in (worker / "second/startup.log").read_text()
    log, *_ = sorted((worker / "bucket/b/r/launch").glob("worker-0-*.log"))
    assert "pclseg.main" in log.read_text()


@pytest.mark.parametrize("second", ["first", "second"])
def test_a_stopped_run_goes_on(second, worker):
    (worker / "program").write_text("75 0")
    assert start_up(worker, "first") == 0
    assert marks(worker) == []  # stopped is neither finished nor failed
    assert start_up(worker, second) == 0
    assert (worker / second / "run" / "run.json").read_text() == "start\nstart\n"
    assert marks(worker) == ["finished-0-of-1"]


def test_a_run_is_saved_while_it_goes_on(worker):
    (worker / "seconds").write_text("1")
    (worker / "program").write_text("9 0")  # as if killed
    assert start_up(worker, "first", "--save-minutes", "0") == 0
    saves = [call for call in calls(worker) if call[-1] == "gs://b/r/launch/state.tar"]
    assert len(saves) > 3  # one is that of the end of a try
    with tarfile.open(worker / "bucket/b/r/launch/state.tar") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
        assert {"run.json", "predictions/case"} <= names
    assert not (worker / "first" / "now").exists()


def test_a_terminated_worker_passes_it_on_and_saves(worker):
    (worker / "seconds").write_text("30")
    script = worker / "startup.sh"
    told = ["--code", "gs://b/code.tar.gz", "--workdir", "gs://b/r", "--", "--config=c"]
    assert launch("tpu_startup.sh", "--write", script, *told).returncode == 0
    process = subprocess.Popen(
        ["bash", script, "--folder", worker / "opt"],
        env={
            **os.environ,
            "PATH": f"{worker}:{os.environ['PATH']}",
            "POLL_SECONDS": "0.05",
        },
    )
    fake = worker / "fake"
    stopping = "import signal; signal.signal(15, lambda *_: sys.exit(75))\nhere ="
    fake.write_text(fake.read_text().replace("here =", stopping, 1))
    for _ in range(200):
        if (worker / "opt" / "run" / "predictions" / "case").exists():
            break
        subprocess.run(["sleep", "0.05"], check=True)
    assert (
        start_up(worker, "opt") == 0 and len(programs(worker)) == 1
    )  # it runs already
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert (worker / "bucket/b/r/launch/state.tar").exists() and marks(worker) == []


def test_a_run_that_fails_three_times_is_marked_with_its_log(worker):
    (worker / "program").write_text("1")
    assert start_up(worker, "opt") == 1
    assert len(programs(worker)) == 3 and marks(worker) == ["failed-0"]
    (mark,) = (worker / "bucket/b/r/launch").glob("*/failed-0")
    assert "ended with status 1, try 3 of 3" in mark.read_text()
    # Queued anew, the old mark must not count.
    result = tpu_queued(worker, "create")
    assert result.returncode == 0 and "failed-0" not in marks(worker)


def test_a_worker_without_its_environment_is_marked_too(worker):
    (worker / "make").write_text("#!/bin/sh\nexit 2\n")
    assert start_up(worker, "opt") == 1  # after retries
    assert programs(worker) == [] and marks(worker) == ["failed-0"]


def test_a_second_worker_sends_its_predictions_only(worker):
    (worker / "curl.number").write_text("1")
    (worker / "curl.endpoints").write_text("host-a,host-b")
    (worker / "not_first").write_text("")
    assert start_up(worker, "opt") == 0
    bucket = worker / "bucket" / "b" / "r"
    assert (bucket / "predictions" / "case").exists()
    assert not (bucket / "run.json").exists()
    assert not (bucket / "launch" / "state.tar").exists()
    assert marks(worker) == ["finished-1-of-2"]
    assert start_up(worker, "opt") == 0 and len(programs(worker)) == 2  # 0 is not done
    (mark,) = (bucket / "launch").glob("*/finished-1-of-2")
    shutil.copy(mark, mark.with_name("finished-0-of-2"))
    assert start_up(worker, "opt") == 0 and len(programs(worker)) == 2


def test_a_worker_reads_a_commit_of_a_repository(worker):
    tree = worker / "code"
    git = ["git", "-C", str(tree), "-c", "user.name=n", "-c", "user.email=e"]
    for rest in (["init", "-q"], ["add", "."], ["commit", "-qm", "1"], ["tag", "v1"]):
        subprocess.run([*git, *rest], check=True)
    (tree / "README").write_text("later")
    subprocess.run([*git, "commit", "-qam", "2"], check=True)
    (worker / "program").write_text("75")
    for _ in range(2):
        assert start_up(worker, "opt", "--code", f"file://{tree}", "--ref", "v1") == 0
        assert (worker / "opt" / "tree" / "README").read_text() == "the code"


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
    known = {f"--{flag}" for flag in train_flags()}
    own = {name for name in arguments if not name.startswith("--config.")}
    assert own <= known


def test_docker_copies_what_is_there():
    lines = (ROOT / "launch" / "docker" / "Dockerfile").read_text().splitlines()
    copied = [
        name for line in lines if line.startswith("COPY") for name in line.split()[2:-1]
    ]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert (ROOT / "requirements" / "base.lock").is_file()
