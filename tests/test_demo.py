"""The demo, which is a sequence of other commands."""

import os
import signal
import subprocess
import sys
import textwrap

from pclseg.cli import demo


def test_ctrl_c_leaves_the_step_time_to_save(tmp_path):
    saved = tmp_path / "saved"
    step = textwrap.dedent(f"""
        import pathlib, signal, time
        stop = []
        signal.signal(signal.SIGINT, lambda *_: stop.append(1))
        print("ready", flush=True)
        until = time.monotonic() + 60
        while not stop and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(1)
        if stop:
            pathlib.Path({str(saved)!r}).touch()
    """)
    program = textwrap.dedent("""
        import signal, sys
        from pclseg.cli import demo
        signal.signal(signal.SIGINT, signal.default_int_handler)  # maybe ignored so far
        demo.steps = lambda out: [("a step", ["step"]), ("the next", ["step"])]
        sys.exit(demo.main([]))
    """)
    (tmp_path / "step.py").write_text(step)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    running = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # to which the signal goes, as from a terminal
        env={**os.environ, "PYTHONPATH": path},
    )
    shown = ""
    for line in running.stdout:
        shown += line
        if "ready" in line:
            break
    os.killpg(running.pid, signal.SIGINT)
    shown += running.stdout.read()
    assert running.wait(timeout=60) == 130
    assert saved.exists()
    assert "interrupted" in shown and "the next" not in shown


def test_a_step_that_fails_ends_the_demo(monkeypatch, capsys):
    monkeypatch.setattr(demo, "steps", lambda out: [("x", ["no_such_module"])] * 2)
    assert demo.main([]) == 1
    assert "failed with exit code 1" in capsys.readouterr().out


def test_the_last_step_leaves_the_page_that_is_announced(tmp_path):
    *_, (_, command) = demo.steps(tmp_path)
    page = tmp_path / "report.html"
    assert command[0] == "pclseg.cli.report" and f"--out={page}" in command
    assert f"report       {page}" in demo.closing_words(tmp_path, 60)
