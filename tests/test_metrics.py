import errno
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from pclseg.errors import UserError
from pclseg.train.metrics import MetricWriter, read_rows

NUMBERS = [1 / 3, 1e-30, float("nan"), float("inf"), 7.0]


def write(folder, steps, *, first_step=0, **more):
    writer = MetricWriter(folder, first_step=first_step)
    for step in steps:
        writer.append("metrics", {step: {"loss": step / 3, **more}})
    writer.close()


def events(folder):
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its CRC, the event, its CRC
            (size,) = struct.unpack_from("Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


def test_floats_come_back_to_the_last_bit(tmp_path):
    writer = MetricWriter(tmp_path, first_step=0)
    rows = {step: {"a": x} for step, x in enumerate(NUMBERS)}
    writer.append("metrics", rows)
    found = [float(row["a"]) for row in read_rows(tmp_path / "metrics.csv")]
    assert repr(found) == repr(NUMBERS)
    assert writer.steps("metrics") == set(rows)
    assert writer.steps("validation") == set()
    assert writer.rows("metrics", after=3) == [{"a": 7.0}]
    assert writer.rows("validation", after=0) == []


def test_a_resumed_file_equals_one_written_at_once(tmp_path):
    write(tmp_path / "once", range(1, 8))
    write(tmp_path / "twice", range(1, 6))
    write(tmp_path / "twice", range(4, 8), first_step=3)
    once, twice = (tmp_path / name / "metrics.csv" for name in ("once", "twice"))
    assert once.read_bytes() == twice.read_bytes()


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_last_line_cut_short_is_dropped(tmp_path, cut):
    write(tmp_path, range(1, 4))
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert [row["step"] for row in read_rows(path)] == ["1", "2"]
    write(tmp_path, [3], first_step=3)
    assert path.read_bytes() == whole


def test_a_file_cut_back_to_nothing_gets_its_header_again(tmp_path):
    write(tmp_path, range(1, 4))
    whole = (tmp_path / "metrics.csv").read_bytes()
    write(tmp_path, [], first_step=0)
    assert read_rows(tmp_path / "metrics.csv") == []
    write(tmp_path, range(1, 4))
    assert (tmp_path / "metrics.csv").read_bytes() == whole


def test_a_new_column_is_empty_in_earlier_rows(tmp_path):
    write(tmp_path, [1])
    write(tmp_path, [2], first_step=1, late=5)
    write(tmp_path, [3], first_step=2)
    rows = read_rows(tmp_path / "metrics.csv")
    assert [row["late"] for row in rows] == ["", "5.0", ""]


@pytest.mark.parametrize(
    "content", [b"\x00\x00\n\x00\n", b"\xff\xfe\n1\n", b"loss\n1\n", b"step\nx\n"]
)
def test_a_damaged_table_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv .* delete it to go on"):
        MetricWriter(tmp_path, first_step=5)


def test_event_files_hold_the_scalars_as_soon_as_they_are_written(tmp_path):
    writer = MetricWriter(tmp_path, first_step=4)
    writer.scalars("train", 6, {"loss": 0.5, "lr": 0.25})
    version, restart, *rest = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (restart.step, restart.session_log.status) == (5, SessionLog.START)
    values = [(e.step, v.tag, v.simple_value) for e in rest for v in e.summary.value]
    assert values == [(6, "train/loss", 0.5), (6, "train/lr", 0.25)]
    assert all(event.wall_time > 0 for event in rest)


def test_a_full_disk_is_one_line_for_event_files_too(tmp_path, monkeypatch):
    writer = MetricWriter(tmp_path, first_step=0)

    def fsync(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    for _ in range(100):  # more than any queue would hold
        with pytest.raises(UserError, match=r"tensorboard cannot be written: No space"):
            writer.scalars("train", 1, {"loss": 1.0})
    with pytest.raises(UserError, match=r"metrics\.csv cannot be written: No space"):
        writer.append("metrics", {1: {"loss": 1.0}})
