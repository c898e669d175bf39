"""Worker processes: what a user sees of them when all is stopped by Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pclseg.data import workers

PROGRAM = """
import time
from pclseg.data import workers

if __name__ == "__main__":
    print("begins", flush=True)
    tasks = [60.0 + number for number in range(4)]
    for _ in workers.run(tasks, time.sleep, size=lambda task: 1, workers=2):
        pass
"""


# They are being started, import, work.
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.5, 3.0])
def test_ctrl_c_ends_workers_without_a_word(tmp_path, seconds):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None and process.stdout.readline() == "begins\n"
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=50)
    assert process.returncode != 0
    # The traceback of the program alone: commands turn theirs into one line.
    assert said.count("Traceback") == 1 and "program.py" in said, said
    assert "Process Spawn" not in said


OBEYS = """
import multiprocessing, os, signal, sys, time
from pclseg.data import workers

def ask_all(number):
    for process in multiprocessing.active_children():
        os.kill(process.pid, number)

if __name__ == "__main__":
    tasks = [2.0, 2.1]
    for number in (signal.SIGTERM, signal.SIGINT):
        for _ in workers.run(tasks, time.sleep, size=lambda task: 1, workers=2):
            ask_all(number)
        print("done", flush=True)
"""


def test_a_signal_to_workers_alone_is_left_to_their_parent(tmp_path):
    """As a queue sends it to every process of a job, each in its turn."""
    program = tmp_path / "program.py"
    program.write_text(OBEYS)
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "done\ndone\n", done.stderr


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/", {"memory.max": "max"}, None),
        ("0::/", {"memory.max": "1000"}, 1000),
        (
            "0::/job/step",
            {"job/memory.max": "2000", "job/step/memory.max": "max"},
            2000,
        ),
        (
            "4:memory:/slurm/job_7\n3:cpu:/",
            {"memory/slurm/job_7/memory.limit_in_bytes": "3000"},
            3000,
        ),
        # Inside a container: the path is the host's, the limit lies at the root.
        (
            "4:cpu,memory:/docker/ab\n0::/",
            {"memory/memory.limit_in_bytes": "4000"},
            4000,
        ),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        (None, {}, None),
    ],
)
def test_memory_is_that_of_the_job_where_it_has_less(
    tmp_path, groups, limits, expected
):
    if groups is not None:
        write_to(tmp_path / "proc/self/cgroup", f"{groups}\n")
    for name, limit in limits.items():
        write_to(tmp_path / "sys/fs/cgroup" / name, f"{limit}\n")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert workers.memory_bytes(tmp_path) == (expected or whole)


def write_to(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
