"""Two processes of two devices each against one of four, and what may go wrong."""

import csv
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import ROOT, main_command, main_env, run_main, tiny_args

from pclseg import processes

pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True)
class Place:
    """Folders that the runs of this module share."""

    root: Path

    def args(self, workdir, *extra, **more):
        changes = dict(
            data__options__volumes=15,  # three are held out: one process has two
            pretrain__augment={"name": "none"},
            pretrain__train__steps=3,  # few: rounding may carry a ReLU over its kink
            pretrain__train__checkpoint_every=100,
            finetune__augment={"name": "none"},
            finetune__train__steps=3,
            # Adam would make much of the rounding of near-zero gradients
            finetune__optimizer__name="sgd",
        )
        folders = self.root / "phantom", self.root / "prepared", self.root / workdir
        return [*tiny_args(*folders, **{**changes, **more}), *extra]

    def env(self, devices):
        return main_env(cache=self.root / "cache", devices=devices)

    def start(self, args, *, others=None, devices=2, **more):
        """Two processes; `others` are the arguments of the second if they differ."""
        port = free_port()
        return [
            subprocess.Popen(
                main_command(
                    [
                        *own,
                        f"--coordinator=127.0.0.1:{port}",
                        "--processes=2",
                        f"--process={number}",
                    ]
                ),
                cwd=ROOT,
                env=self.env(devices),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **more,
            )
            for number, own in enumerate((args, others or args))
        ]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finish(running, timeout=300):
    """(exit code, standard error) of every process."""
    try:
        texts = [process.communicate(timeout=timeout)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(p.returncode, text) for p, text in zip(running, texts, strict=True)]


def wait_for(text, log, running):
    """Returns once the log says so; fails where the first process ends before."""
    deadline = time.monotonic() + 120
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline and running[0].poll() is None
        time.sleep(0.2)


def numbers(path):
    """{column: values} of a CSV file, numbers as such."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {
        key: [float(row[key]) if _is_number(row[key]) else row[key] for row in rows]
        for key in rows[0]
    }


def _is_number(text):
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) is not None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def one(place):
    """The run of a single process."""
    done = run_main(place.args("one"), env=place.env(4))
    assert done.returncode == 0, done.stderr
    return place.root / "one"


@pytest.mark.parametrize(
    ("pipeline", "devices"),
    [pytest.param("tf", 1, marks=pytest.mark.tf), ("device", 2)],
)
def test_two_processes_give_the_numbers_of_one(pipeline, devices, place, one):
    args = place.args(pipeline, data__pipeline=pipeline)
    for code, text in finish(place.start(args, devices=devices)):
        assert code == 0, text
    two = place.root / pipeline
    tables = ("pretrain/metrics.csv", "finetune/metrics.csv", "finetune/validation.csv")
    for table in (*tables, "cases.csv"):
        have, want = numbers(two / table), numbers(one / table)
        assert list(have) == list(want)
        for key, values in want.items():
            if isinstance(values[0], str):
                assert have[key] == values
            else:
                np.testing.assert_allclose(have[key], values, rtol=1e-4, atol=1e-6)
    predictions = sorted(path.name for path in (two / "predictions").iterdir())
    assert len(predictions) == 3
    assert predictions == sorted(path.name for path in (one / "predictions").iterdir())


def test_a_signal_to_one_stops_both_and_one_process_goes_on(place, one):
    args = place.args("stopped", "--stopped_status=75", pretrain__train__steps=4000)
    running = place.start(args)
    log = place.root / "stopped" / "log.txt"
    wait_for("pretrain step 8/", log, running)
    running[1].send_signal(signal.SIGTERM)
    for code, text in finish(running, timeout=60):
        assert code == 75, text
    text = log.read_text()
    step = int(re.search(r"the state of step (\d+) of 4000 is saved", text)[1])
    saved = place.root / "stopped" / "pretrain" / "checkpoints"
    assert [path.name for path in saved.iterdir()] == [str(step)]
    go_on_in_two(place, args, log, step)
    step = max(int(path.name) for path in saved.iterdir())
    again = subprocess.Popen(
        main_command(args),
        cwd=ROOT,
        env=place.env(4),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(f"going on from step {step}", log, [again])
    again.send_signal(signal.SIGTERM)
    ((code, text),) = finish([again], timeout=60)
    assert code == 75, text


def test_a_job_that_ends_while_volumes_are_prepared_stops_both(place):
    """A queue sends the signal to every process, workers included."""
    store = place.root / "stopped_store"
    more = dict(data__options__volumes=120, data__store_dir=store)
    raw = place.root / "many"
    args = place.args("early", "--stopped_status=75", data__raw_dir=raw, **more)
    running = place.start(args, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(store.glob("*.staging/*.npz")):
        assert time.monotonic() < deadline and running[0].poll() is None
        time.sleep(0.005)
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
    for code, text in finish(running, timeout=60):
        assert code == 75, text
        assert "error" not in text and "Traceback" not in text
    assert not list(store.glob("*/dataset_info.json"))  # stopped, not finished


def go_on_in_two(place, args, log, step):
    """Two processes go on from `step`, and are stopped again."""
    running = place.start(args)
    wait_for(f"pretrain step {(step // 4 + 2) * 4}/", log, running)
    running[0].send_signal(signal.SIGTERM)
    for code, text in finish(running, timeout=60):
        assert code == 75, text
    assert f"going on from step {step} of 4000" in log.read_text()


def test_a_dry_run_of_two_processes_writes_nothing(place, one):
    for code, text in finish(place.start(place.args("dry", "--dry_run"))):
        assert code == 0, text
    assert not (place.root / "dry").exists()


def test_another_config_in_one_process_stops_both_and_is_named(place, one):
    args = place.args("differ")
    others = [*args, "--config.seed=7"]
    for code, text in finish(place.start(args, others=others)):
        assert code == 1
        assert "process 1 has another config" in text and "config.seed: 7" in text
    assert not (place.root / "differ").exists()


def test_a_batch_that_does_not_split_is_refused_by_both(place, one):
    args = place.args("uneven", pretrain__data__batch_size=6)
    for code, text in finish(place.start(args)):
        assert code == 1
        assert "batch_size is 6; expected a multiple of the 4 devices" in text


@pytest.mark.parametrize(
    ("where", "codes"),
    [
        ("pretrain: a new start", (70,)),
        # A step waits for the other in one of several collectives. Gloo itself gives
        # up after 30 s in one of them, the reduce-scatter, and in no other.
        ("pretrain step 8/", (69, 70)),
    ],
)
def test_a_process_that_stands_still_ends_the_other_and_is_told(
    place, one, where, codes
):
    name = f"stuck_{len(where)}"
    # Long enough for the first step to compile on a busy machine.
    args = place.args(name, "--stall_seconds=60", pretrain__train__steps=4000)
    running = place.start(args)
    log = place.root / name / "log.txt"
    wait_for(where, log, running)
    running[1].send_signal(signal.SIGSTOP)
    try:
        _, text = running[0].communicate(timeout=200)
    finally:
        for process in running:
            process.kill()
    code = running[0].returncode
    assert code in codes, text
    if code == 70:
        assert "process 0 of 2: nothing moved for" in text
        assert "Current thread" in text or "most recent call first" in text
    else:
        assert "process 0 of 2: a collective failed" in text


def test_an_unreachable_coordinator_is_named(place):
    address = f"127.0.0.1:{free_port()}"
    args = [*place.args("lost"), f"--coordinator={address}", "--join_seconds=2"]
    done = run_main([*args, "--processes=2", "--process=1"], env=place.env(2))
    assert done.returncode == 1
    assert f"error: --coordinator={address} did not answer in 2 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_coordinator_that_no_machine_can_be_called_is_named(place):
    args = [*place.args("odd"), "--coordinator=node..x:1234", "--join_seconds=2"]
    done = run_main([*args, "--processes=2", "--process=1"], env=place.env(2))
    assert done.returncode == 1
    assert "is 'node..x:1234', which is no name of a machine" in done.stderr
    assert "Traceback" not in done.stderr


def test_others_that_do_not_come_are_missed(place):
    address = f"127.0.0.1:{free_port()}"
    args = [*place.args("alone"), f"--coordinator={address}", "--join_seconds=2"]
    done = run_main([*args, "--processes=2", "--process=0"], env=place.env(2))
    assert done.returncode == 1
    assert f"error: not all processes came to --coordinator={address}" in done.stderr
    assert "Traceback" not in done.stderr and "Check failure" not in done.stderr


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--processes=2"], "--coordinator is missing"),
        (["--coordinator=here", "--processes=2"], "expected 'auto' or HOST:PORT"),
        (["--coordinator=a:1", "--processes=2", "--process=2"], "expected 0 to 1"),
        (["--coordinator=a:1", "--devices=1"], "--devices is for a single process"),
        (["--coordinator=127.0.0.1:99999", "--processes=2"], "HOST:PORT of process 0"),
        (["--coordinator=auto"], "'auto' is for TPU pods, SLURM and Open MPI"),
        (["--stall_seconds=-1"], "--stall_seconds is -1; expected >= 0"),
        (["--stopped_status=256"], "expected 0 to 125"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(place, extra, expected):
    done = run_main([*place.args("flags"), *extra], env=place.env(1))
    assert done.returncode == 1 and expected in done.stderr
    assert "Traceback" not in done.stderr


def test_the_local_runner_prints_what_it_would_start():
    script = ROOT / "launch" / "local_multiprocess.py"
    args = ["--processes", "2", "--dry-run", "--", "--config=a b.py", "--workdir=r"]
    done = subprocess.run(
        [sys.executable, str(script), *args], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines):
        assert "'--config=a b.py' --workdir=r --coordinator=127.0.0.1:1234" in line
        assert line.endswith(f"--processes=2 --process={number}")


def test_an_error_in_one_process_ends_both(place, one):
    """A disk that is full for the first process, which alone writes."""
    args = place.args("full", pretrain__train__steps=4000)
    running = place.start(args)
    log = place.root / "full" / "log.txt"
    wait_for("pretrain step 8/", log, running)
    metrics = place.root / "full" / "pretrain" / "metrics.csv"
    metrics.unlink()
    metrics.mkdir()  # cannot be appended to
    (code, text), (other_code, _) = finish(running, timeout=60)
    assert code == 1 and "metrics.csv" in text and "Traceback" not in text
    assert other_code != 0


@pytest.mark.parametrize("where", ["pretrain: a new start", "pretrain step 8/"])
def test_a_killed_process_ends_the_other_with_one_line(place, one, where):
    name = f"killed_{len(where)}"
    running = place.start(place.args(name, pretrain__train__steps=4000))
    wait_for(where, place.root / name / "log.txt", running)
    running[1].kill()
    (code, text), _ = finish(running, timeout=150)
    assert code != 0 and "Traceback" not in text, text
    if "a collective failed" in text:  # else jax missed the heart of the other first
        assert code == processes.LOST
        assert "process 0 of 2: a collective failed" in text
