import errno
import os

import pytest

from pclseg.errors import Stopped, UserError
from pclseg.files import append_text, read_json, replacing, write_json, write_text


def failing_fsync(monkeypatch, error):
    def fsync(number):
        raise error

    monkeypatch.setattr(os, "fsync", fsync)


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    write_text(path, "line\r\n")
    assert path.read_bytes() == b"line\r\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_take_its_place_is_removed(tmp_path):
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(UserError, match="link cannot be written"):
        with replacing(tmp_path / "link") as temporary:
            temporary.mkdir()
            (temporary / "a.txt").touch()
    assert os.listdir(tmp_path) == ["link"]


@pytest.mark.parametrize("write", [write_text, append_text])
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, monkeypatch, write):
    path = tmp_path / "a.txt"
    failing_fsync(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(UserError, match=r"a\.txt.*No space left.*free space") as caught:
        write(path, "text")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), Stopped(), KeyboardInterrupt()], ids=repr
)
def test_the_old_file_survives_a_write_that_fails(tmp_path, monkeypatch, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    failing_fsync(monkeypatch, error)
    with pytest.raises((UserError, type(error))):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_append_grows_a_file(tmp_path):
    append_text(tmp_path / "a", "1\n")
    append_text(tmp_path / "a", "2\n")
    assert (tmp_path / "a").read_text() == "1\n2\n"


def test_json_comes_back(tmp_path):
    value = {"b": [1, 2.5, None], "a": "ü"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("content", [b"", b"{", b"\x00\xff"])
def test_a_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is no JSON file"):
        read_json(tmp_path / "a.json")


def test_a_missing_json_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.json cannot be read: No such file"):
        read_json(tmp_path / "a.json")
