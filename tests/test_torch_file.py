"""Files of torch.save: what is read, and what is refused with nothing executed."""

import contextlib
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pclseg.errors import UserError
from pclseg.importing.torch_file import TorchFile, read_torch_file

REFERENCE = Path(__file__).parent / "reference"
FILES = sorted(REFERENCE.glob("torch_*.pth"))
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_tensors_are_those_of_pytorch(kind):
    expected = np.load(REFERENCE / "torch_import.npz")
    file = read_torch_file(REFERENCE / f"torch_tensors_{kind}.pth")
    names = [key[8:] for key in expected if key.startswith("tensors/")]
    assert list(file.tensors) == names and len(names) == 9
    for name, array in file.tensors.items():
        assert array.dtype == expected[f"tensors/{name}"].dtype
        np.testing.assert_array_equal(array, expected[f"tensors/{name}"])
    assert file.others == (("epoch",) if kind == "zip" else ())


# Opcodes of pickles, by hand.


def text(value):
    value = value.encode()
    return b"X" + struct.pack("<I", len(value)) + value


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def row(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def named(name):
    module, _, name = name.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def call(name, *arguments):
    return named(name) + b"(" + b"".join(arguments) + b"tR"


DEEP = b")" + 100_000 * b"\x85"  # hashing such a tuple would exhaust the C stack


def storage(size=6, key="0", kind="torch.FloatStorage"):
    words = text("storage") + named(kind) + text(key) + text("cuda:0") + number(size)
    return b"(" + words + b"tQ"


def tensor(shape=(2, 3), strides=(3, 1), offset=0, of=None):
    arguments = number(offset), row(*shape), row(*strides), b"\x89"
    hooks = call("collections.OrderedDict")
    name = "torch._utils._rebuild_tensor_v2"
    return call(name, storage() if of is None else of, *arguments, hooks)


def entry(value, name="w"):
    """A pickle of {name: value}."""
    return b"\x80\x02}" + text(name) + value + b"s."


NUMBERS = np.arange(6, dtype="<f4").tobytes()


def write_zip(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", NUMBERS)
    return path


def write_legacy(path, pickled):
    start = MAGIC + pickle.dumps(1001, 2) + pickle.dumps(SYSTEM, 2)
    end = pickle.dumps(["0"], 2) + struct.pack("<q", 6) + NUMBERS
    path.write_bytes(start + pickled.replace(b"tQ", b"NtQ") + end)
    return path


WRITERS = [write_zip, write_legacy]


def refusal(path):
    with pytest.raises(UserError) as error:
        read_torch_file(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_made_by_hand_is_read(write, tmp_path):
    file = read_torch_file(write(tmp_path / "x.pth", entry(tensor())))
    expected = np.arange(6, dtype="f4").reshape(2, 3)
    np.testing.assert_array_equal(file.tensors["w"], expected)
    assert not file.tensors["w"].flags.writeable


# Values that touch the file CANARY where Python's pickle loads them, and what is named.
SHELL = text("touch CANARY")
CODE = text("open('CANARY', 'w')")
SYSTEM_OF_OS = call(
    "builtins.getattr", call("builtins.__import__", text("os")), text("system")
)
PARTIAL = call("functools.partial", named("builtins.len"))
STATE = b"(" + named("posix.system") + SHELL + b"\x85}}t"  # func, args, keywords, dict
LIVE = {
    "reduce": (call("posix.system", SHELL), "posix.system"),
    "eval": (call("builtins.eval", CODE), "builtins.eval"),
    "exec": (call("builtins.exec", CODE), "builtins.exec"),
    "inst": (b"(" + SHELL + b"iposix\nsystem\n", "posix.system"),
    "obj": (b"(" + named("builtins.eval") + CODE + b"o", "builtins.eval"),
    "stack global": (
        text("posix") + text("system") + b"\x93" + SHELL + b"\x85R",
        "posix.system",
    ),
    "argument of a dict": (
        call("collections.OrderedDict", b"]" + call("posix.system", SHELL) + b"a"),
        "posix.system",
    ),
    "method": (SYSTEM_OF_OS + SHELL + b"\x85R", "builtins.getattr"),
    "setstate": (PARTIAL + STATE + b"b)R", "functools.partial"),
}


@pytest.mark.parametrize("name", LIVE)
def test_the_attacks_work_on_pickle(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(Exception):
        pickle.loads(entry(LIVE[name][0]))
    assert (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", LIVE)
def test_what_pickle_would_execute_is_named_and_not_executed(
    name, write, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    value, culprit = LIVE[name]
    message = refusal(write(tmp_path / "x.pth", entry(value)))
    assert f"names {culprit!r}: refused, and nothing" in message
    message = refusal(write(tmp_path / "y.pth", entry(tensor(of=value))))
    assert f"names {culprit!r}: refused, and nothing" in message
    assert not (tmp_path / "CANARY").exists()


# What a value says, and the reason why it is refused.
REFUSED = {
    "name below an allowed one": (
        named("torch._utils._rebuild_tensor_v2.__globals__"),
        "names 'torch._utils._rebuild_tensor_v2.__globals__'",
    ),
    "name that looks like an allowed one": (
        text("torch") + text("FloatStorage ") + b"\x93",
        "names 'torch.FloatStorage '",
    ),
    "new object": (
        named("subprocess.Popen") + SHELL + b"\x85\x81",
        "names 'subprocess.Popen'",
    ),
    "a network itself": (named("network.unet2d.UNet2D"), "'network.unet2d.UNet2D'"),
    "escape codes of a terminal": (
        named("os.\x1b[2J"),
        r"names 'os.\x1b[2J'",
    ),
    "state of a tensor": (tensor() + b"}b", "sets the attributes of an object"),
    "extension registry": (b"\x82\x01", "has the pickle opcode EXT1"),
    "persistent id as text": (b"P0\n", "has the pickle opcode PERSID"),
    "call of a storage": (call("torch.FloatStorage", number(3)), "damaged (KeyError)"),
    "call of a text": (text("posix.system") + b")R", "damaged (TypeError)"),
    "arguments of a dict": (
        call("collections.OrderedDict", b"]"),
        "damaged (TypeError)",
    ),
    "tensor of no storage": (tensor(of=text("0")), "damaged (TypeError)"),
    "parameter of no tensor": (
        call("torch._utils._rebuild_parameter", text("w")),
        "damaged (TypeError)",
    ),
    "tuple as key": (b"})Ns", "damaged (TypeError)"),
    "deep tuple as key": (b"}" + DEEP + b"Ns", "damaged (TypeError)"),
    "deep tuple as storage": (
        b"(" + storage()[1:].replace(text("0"), DEEP),
        "damaged (TypeError)",
    ),
    "item of a dict": (b"}Na", "damaged (TypeError)"),
    "memory of nothing": (b"h\x07", "damaged (KeyError)"),
    "text longer than the file": (b"X\xff\xff\xff\x7fa", "damaged (ValueError)"),
    "text longer than memory": (
        b"\x8d" + struct.pack("<Q", 2**62) + b"a",
        "damaged (ValueError)",
    ),
    "columns beyond the storage": (tensor((2, 4), (3, 1)), "damaged (ValueError)"),
    "offset beyond the storage": (tensor(offset=1), "damaged ("),
    "stride beyond the storage": (tensor((2, 3), (4, 1)), "damaged ("),
    "negative stride": (tensor((2, 3), (-3, 1)), "damaged (ValueError)"),
    "backwards": (tensor((6,), (-1,), offset=5), "damaged (ValueError)"),
    "negative offset": (tensor(offset=-1), "damaged (ValueError)"),
    "negative size": (tensor((-2, -3)), "damaged (ValueError)"),
    "huge size": (tensor((2**40, 2**40), (0, 0)), "damaged (ValueError)"),
    "size beyond 64 bits": (tensor((2**62, 1)), "damaged (ValueError)"),
    "one number many times": (tensor((10**9,), (0,)), "damaged (ValueError)"),
    "strides of another rank": (tensor((6,), (3, 1)), "damaged (ValueError)"),
    "storage larger than its bytes": (tensor(of=storage(10**12)), "damaged ("),
    "storage smaller than its bytes": (
        tensor((5,), (1,), of=storage(5)),
        "damaged (ValueError)",
    ),
    "storage of two kinds": (
        b"](" + storage() + storage(kind="torch.LongStorage") + b"e",
        "damaged (ValueError)",
    ),
    "storage that is missing": (tensor(of=storage(key="1")), "damaged ("),
    "storage outside of the archive": (
        tensor(of=storage(key="../../../etc/passwd")),
        "damaged (KeyError)",
    ),
    "storage of a foreign kind": (
        tensor(of=storage(kind="torch.BFloat16Storage")),
        "names 'torch.BFloat16Storage'",
    ),
}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_pickle_that_is_refused(name, write, tmp_path):
    value, expected = REFUSED[name]
    assert expected in refusal(write(tmp_path / "x.pth", entry(value)))


ONES = 5_000 * b"K\x01"
LONG = b"(" + ONES + b"t"
AGAIN = b"h\x01h\x00R"  # the call of number 1 with the arguments of number 0
REBUILD = named("torch._utils._rebuild_tensor_v2") + b"q\x01"
START = b"(" + storage() + number(0)
# A long tuple in arguments that stand in the file once and are used many times.
COPIES = {
    "shape": START + LONG + LONG + b"t",
    "arguments": START + row(1) + row(1) + ONES + b"t",
}


@pytest.mark.parametrize("name", COPIES)
def test_what_is_copied_often_is_refused_where_it_is_long(name, tmp_path):
    value = b"](" + COPIES[name] + b"q\x00" + REBUILD + 5_000 * AGAIN + b"e"
    path = write_zip(tmp_path / "x.pth", entry(value))
    assert "damaged (ValueError)" in refusal(path)


def test_a_shape_of_many_axes_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.pth", entry(tensor(9 * (1,), 9 * (1,))))
    assert "damaged (ValueError)" in refusal(path)


def test_storages_without_a_name_are_refused(tmp_path):
    path = write_legacy(tmp_path / "x.pth", entry(tensor()))
    keys = b"\x80\x02](" + DEEP + b"e."
    path.write_bytes(path.read_bytes().replace(pickle.dumps(["0"], 2), keys))
    assert "damaged (TypeError)" in refusal(path)


@pytest.mark.parametrize("write", WRITERS)
def test_a_dict_that_holds_itself_is_read(write, tmp_path):
    itself = b"\x80\x02}q\x00" + text("net") + b"h\x00s"
    pickled = itself + text("w") + tensor() + b"s."
    file = read_torch_file(write(tmp_path / "x.pth", pickled))
    assert list(file.tensors) == ["w"] and "net" in file.others


def test_a_pickle_of_no_dict_is_refused(tmp_path):
    assert "holds no dict" in refusal(write_zip(tmp_path / "x.pth", b"\x80\x02N."))


def zip_without_pickle(path):
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.with_suffix(".npz").rename(path)


def compressed_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", entry(tensor()))
        archive.writestr("archive/data/0", bytes(10**7))


def overlapping_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", entry(tensor()))
        archive.writestr("archive/data/0", bytes(4000))
        archive.filelist.extend(100 * [archive.filelist[-1]])


def big_endian_zip(path):
    write_zip(path, entry(tensor()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")


NO_WEIGHTS = {
    "empty": (lambda path: path.write_bytes(b""), "no file of torch.save"),
    "text": (lambda path: path.write_text("<html>404</html>"), "no file of torch.save"),
    "bare pickle": (
        lambda path: path.write_bytes(pickle.dumps({"net": {}})),
        "no file of torch.save",
    ),
    "folder": (lambda path: path.mkdir(), "is no file; name a .pth file"),
    "pipe": (os.mkfifo, "is no file; name a .pth file"),
    "missing": (lambda path: None, "cannot be read: No such file"),
    "zip without pickle": (zip_without_pickle, "no file of torch.save"),
    "compressed zip": (compressed_zip, "is compressed"),
    "overlapping zip": (overlapping_zip, "declares more bytes than it has"),
    "big-endian zip": (big_endian_zip, "written on a big-endian machine"),
    "magic number alone": (
        lambda path: path.write_bytes(MAGIC),
        "no file of torch.save, or is damaged",
    ),
    "rubbish behind the magic number": (
        lambda path: path.write_bytes(MAGIC + random.Random(0).randbytes(999)),
        "no file of torch.save, or is damaged",
    ),
    "live pickle behind the magic number": (
        lambda path: path.write_bytes(MAGIC + entry(LIVE["reduce"][0])),
        "names 'posix.system'",
    ),
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_what_is_no_file_of_weights(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, expected = NO_WEIGHTS[name]
    make(tmp_path / "x.pth")
    assert expected in refusal(tmp_path / "x.pth")
    assert not (tmp_path / "CANARY").exists()


def test_a_name_that_is_too_long_is_told(tmp_path):
    assert "cannot be read: File name too long" in refusal(tmp_path / (300 * "x"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_truncated_file_is_refused(path, tmp_path):
    whole = path.read_bytes()
    for part in (0.01, 0.3, 0.6, 0.9, 0.999):
        (tmp_path / "x.pth").write_bytes(whole[: int(part * len(whole))])
        refusal(tmp_path / "x.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_file_with_damaged_bytes_is_read_or_refused(kind, tmp_path):
    whole = (REFERENCE / f"torch_tensors_{kind}.pth").read_bytes()
    draw = random.Random(0)
    path, refused = tmp_path / "x.pth", 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 4))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(read_torch_file(path), TorchFile)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 100 < refused < 400
