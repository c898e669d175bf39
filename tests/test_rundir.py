import errno
import fcntl
import logging
import os
import re
import signal
import subprocess
import sys

import pytest
from tiny import ROOT

from pclseg import rundir
from pclseg.errors import UserError
from pclseg.files import read_json

CONFIG = {"seed": 0, "data": {"name": "phantom", "crop_size": [16, 16]}}
flock = fcntl.flock
HOLD = """
import sys, time
from pathlib import Path
from pclseg import rundir
lock = rundir.open_run(Path(sys.argv[1]), {})
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def logger():
    yield logging.getLogger("pclseg")
    rundir.log_to(None)


def test_a_new_run_keeps_its_config_and_its_start(tmp_path):
    rundir.open_run(tmp_path / "a" / "b", CONFIG).close()
    assert read_json(tmp_path / "a" / "b" / "config.json") == CONFIG
    (start,) = read_json(tmp_path / "a" / "b" / "run.json")
    assert start["packages"]["jax"] and start["python"] and start["command"]


def test_every_start_is_kept(tmp_path):
    for _ in range(3):
        rundir.open_run(tmp_path, CONFIG).close()
    assert len(read_json(tmp_path / "run.json")) == 3


def test_another_config_is_refused_with_the_difference(tmp_path):
    rundir.open_run(tmp_path, CONFIG).close()
    (tmp_path / "dataset.json").write_text("{}")
    other = {"seed": 1, "data": {"name": "phantom", "extra": 2}}
    with pytest.raises(UserError) as told:
        rundir.open_run(tmp_path, other)
    line = str(told.value)
    assert "config.seed: 0 there, 1 now" in line
    assert "config.data.crop_size: [16, 16] there, 'nothing' now" in line
    assert "config.data.extra: 'nothing' there, 2 now" in line
    assert "use a new --workdir" in line and "\n" not in line
    rundir.open_run(tmp_path, CONFIG).close()  # the refusal has let go of the folder


def test_a_setting_may_be_mended_until_the_volumes_are_prepared(tmp_path):
    rundir.open_run(tmp_path, CONFIG).close()
    rundir.open_run(tmp_path, {"seed": 1}).close()
    assert read_json(tmp_path / "config.json") == {"seed": 1}


def test_a_run_that_has_trained_keeps_its_config_whatever_else_is_deleted(tmp_path):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "patients.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json cannot be read: .*restore it"):
        rundir.open_run(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text('{"seed": 1}')
    with pytest.raises(UserError, match="belongs to another config"):
        rundir.open_run(tmp_path, CONFIG)


def test_a_folder_in_use_is_refused_and_free_after_a_kill(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    expected = rf"in use by a live run \(process {holder.pid} on .*\); wait for it"
    with pytest.raises(UserError, match=expected):
        rundir.open_run(tmp_path, {})
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    rundir.open_run(tmp_path, {}).close()


def as_on_nfs(file, kind):
    """Locks of NFS are of byte ranges: an exclusive one wants a writable file."""
    mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
    if kind & fcntl.LOCK_EX and mode == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    flock(file, kind)


def test_whether_a_run_is_live_shows_on_nfs_too(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    assert not rundir.is_live(tmp_path)
    with rundir.open_run(tmp_path, CONFIG):
        assert rundir.is_live(tmp_path)
    assert not rundir.is_live(tmp_path)


def test_a_file_system_without_locks_is_told_as_such(tmp_path, monkeypatch):
    def none(file, kind):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    expected = r"\.lock cannot be locked, .*: Function not implemented; use a folder of"
    with pytest.raises(UserError, match=expected):
        rundir.open_run(tmp_path, CONFIG)


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match=r"--workdir .*/a cannot be used: File exists"):
        rundir.open_run(tmp_path / "a", CONFIG)


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json is no JSON file"):
        rundir.open_run(tmp_path, CONFIG)


def test_the_log_file_holds_plain_lines_once_each(tmp_path, capsys, logger):
    for _ in range(3):  # as main does: first without a file
        rundir.log_to(None)
        rundir.log_to(tmp_path / "log.txt")
    logger.info("loss %.1f", 0.5)
    logging.getLogger("pclseg.train.loop").warning("collapsed")
    logging.getLogger("another").error("not ours")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    time_stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    for line, text in zip(lines, ["INFO loss 0.5", "WARNING collapsed"], strict=True):
        assert re.fullmatch(f"{time_stamp} {text}", line)
    assert "\x1b" not in "".join(lines)
    shown = capsys.readouterr().err
    assert shown.splitlines() == ["loss 0.5", "warning: collapsed"]


def test_a_second_run_appends_to_the_log(tmp_path, logger):
    for text in ("first", "second"):
        rundir.log_to(tmp_path / "log.txt")
        logger.info(text)
    assert (tmp_path / "log.txt").read_text().count("\n") == 2


def test_a_log_file_on_a_full_disk_is_one_warning(tmp_path, capsys, logger):
    rundir.log_to(tmp_path / "log.txt")

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    (file,) = (h for h in logger.handlers if isinstance(h, logging.FileHandler))
    file.flush = full
    for text in ("one", "two", "three"):
        logger.info(text)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 4 and {"one", "two", "three"} < set(shown)
    (told,) = set(shown) - {"one", "two", "three"}
    assert re.match(r"warning: .*log\.txt cannot be written: No space left", told)


def test_a_log_file_that_cannot_be_made_is_one_line(tmp_path, logger):
    with pytest.raises(UserError, match=r"log\.txt cannot be written: No such file"):
        rundir.log_to(tmp_path / "none" / "log.txt")


class Unclosable:
    def __del__(self):
        raise RuntimeError(self.text)


@pytest.mark.parametrize(
    ("text", "shown"), [("Event loop is closed", False), ("something else", True)]
)
def test_only_what_tensorstore_abandons_is_unreported(logger, text, shown, capsys):
    rundir.log_to(None)
    lost = Unclosable()
    lost.text = text
    del lost
    assert (text in capsys.readouterr().err) == shown


def test_a_run_directory_is_told_from_other_folders(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        rundir.read_config(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"stages": ["finetune"], "data": {}}')
    with pytest.raises(UserError, match=r"lacks evaluate, finetune"):
        rundir.read_config(tmp_path)
