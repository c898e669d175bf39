"""Files of `torch.save`, read without PyTorch and without executing what they hold.

Since torch 1.6 such a file is a zip archive: `data.pkl`, a pickle in which tensors
refer to storages, and `data/<key>`, the bytes of every storage, not compressed. Before,
it was five pickles in a row (magic number, version, byte order, the value, the keys of
the storages) and after them, for every storage, its length and its bytes.
"""

import dataclasses
import io
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pclseg.errors import UserError
from pclseg.importing.inert_pickle import Global, Refused, read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C  # of a file before torch 1.6
_VERSION = 1001
_DTYPES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ByteStorage": np.dtype("u1"),
}
_ENTRIES = ("net", "state_dict")  # the authors' name, and the usual one
_LARGEST = 2**48  # of a length that is believed
_MOST_AXES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchFile:
    """The weights of a file.

    Attributes:
        path: of the file.
        tensors: name -> read-only array, in the order and dtype of the file.
        others: names of what is beside the weights, such as "epoch".
    """

    path: Path
    tensors: dict[str, np.ndarray]
    others: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A flat array of `size` numbers, which tensors are views of."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: Path) -> TorchFile:
    """Reads the weights of a `.pth` or `.pt` file, of either format.

    They are the entry `net` or `state_dict` of the file, or else the file's own; a
    `module.` in front of every name, which DataParallel puts there, is taken off.

    Raises:
        UserError: no such file, none of torch.save, a damaged one, or one that holds
            more than weights; nothing of it was executed.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe may never end
        raise UserError(f"{path} is no file; name a .pth file.")
    try:
        with open(path, "rb") as file:
            value, storages = _read(file)
        tensors, others = _named_tensors(value)
        arrays = {name: _array(t, storages) for name, t in tensors.items()}
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; name a .pth file."
        ) from error
    except Refused as error:
        raise UserError(
            f"{path} {error}: refused, and nothing of it was executed; expected what"
            " torch.save writes of a state_dict() alone."
        ) from error
    except Exception as error:  # zipfile and pickletools raise what they stumble over
        raise UserError(
            f"{path} is no file of torch.save, or is damaged ({type(error).__name__});"
            " fetch it again."
        ) from error
    return TorchFile(path=path, tensors=arrays, others=others)


def _read(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """The value, in which tensors are `_Tensor`s, and the bytes of the storages."""
    head = file.read(64)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if head.startswith(b"PK"):
        return _read_zip(file, size)
    if _MAGIC.to_bytes(10, "little") in head:
        return _read_legacy(io.BytesIO(file.read()))
    raise ValueError


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise Refused("is compressed")
        if sum(member.file_size for member in members) > size:
            raise Refused("declares more bytes than it has")
        (pickled,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist():
            _check_little(archive.read(f"{root}byteorder") == b"little")
        value, storages = _unpickle(io.BytesIO(archive.read(pickled)))
        contents = {key: archive.read(f"{root}data/{key}") for key in storages}
    for key, storage in storages.items():
        _check_length(contents[key], storage)
    return value, contents


def _read_legacy(file: io.BytesIO) -> tuple[Any, dict[str, bytes]]:
    magic, version, system = (read_pickle(file, constructors={}) for _ in range(3))
    if magic != _MAGIC or version != _VERSION:
        raise ValueError
    _check_little(system["little_endian"] is True)
    value, storages = _unpickle(file)
    contents = {}
    for key in _strings(read_pickle(file, constructors={})):
        storage = storages[key]
        if file.read(8) != struct.pack("<q", storage.size):
            raise ValueError
        contents[key] = file.read(storage.size * storage.dtype.itemsize)
        _check_length(contents[key], storage)
    return value, contents


def _check_little(little: bool) -> None:
    if not little:
        raise Refused("was written on a big-endian machine")


def _check_length(content: bytes, storage: _Storage) -> None:
    if len(content) != storage.size * storage.dtype.itemsize:
        raise ValueError


def _unpickle(file: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """The value of a pickle, and every storage that it refers to, by key."""
    storages: dict[str, _Storage] = {}

    def load(identifier: Any) -> _Storage:
        kind, dtype, key, _, size, *view = identifier
        if kind != "storage" or view not in ([], [None]) or type(dtype) is not Global:
            raise ValueError
        (key,) = _strings([key])
        storage = _Storage(key, _DTYPES[dtype.name], *_counts([size]))
        if storages.setdefault(key, storage) != storage:
            raise ValueError
        return storage

    constructors = {
        "collections.OrderedDict": lambda: {},
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
    }
    names = frozenset(_DTYPES)
    value = read_pickle(file, constructors=constructors, names=names, load=load)
    return value, storages


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_gradient: Any
) -> _Tensor:
    if type(storage) is not _Storage:
        raise TypeError
    (offset,), shape, strides = _counts([offset]), _counts(shape), _counts(strides)
    # A stride of 0 may repeat a number more often than there is memory.
    if len(shape) != len(strides) or math.prod(shape) > storage.size:
        raise ValueError
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_gradient: Any) -> _Tensor:
    if type(tensor) is not _Tensor:
        raise TypeError
    return tensor


def _counts(values: Any) -> tuple[int, ...]:
    # First: a few bytes may name the same long list again and again.
    if len(values) > _MOST_AXES:
        raise ValueError
    if any(type(value) is not int or not 0 <= value < _LARGEST for value in values):
        raise ValueError
    return tuple(values)


def _strings(values: Any) -> list[str]:
    if any(type(value) is not str for value in values):
        raise TypeError
    return list(values)


def _named_tensors(value: Any) -> tuple[dict[str, _Tensor], tuple[str, ...]]:
    """The weights by name, and the names of what is no weight."""
    if type(value) is not dict:
        raise Refused("holds no dict")
    others = []
    for entry in _ENTRIES:
        if type(value.get(entry)) is dict:
            others = [str(name) for name in value if name != entry]
            value = value[entry]
            break
    tensors = {str(n): t for n, t in value.items() if type(t) is _Tensor}
    others += [str(name) for name in value if str(name) not in tensors]
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): t for name, t in tensors.items()}
    return tensors, tuple(others)


def _array(tensor: _Tensor, contents: dict[str, bytes]) -> np.ndarray:
    """The tensor as a view; NumPy refuses one that leaves its storage."""
    dtype = tensor.storage.dtype
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, dtype)
    return np.ndarray(
        tensor.shape,
        dtype,
        buffer=contents[tensor.storage.key],
        offset=tensor.offset * dtype.itemsize,
        strides=[stride * dtype.itemsize for stride in tensor.strides],
    )
