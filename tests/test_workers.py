"""Worker processes: what a user sees of them when all is stopped by Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest

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
