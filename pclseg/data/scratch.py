"""Arrays that lie on a disk, for volumes that memory cannot hold.

Their files have no name: they are gone with the array, also where the process is
killed.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from pclseg.files import cannot_write


def empty(
    shape: Sequence[int], dtype: DTypeLike, folder: Path | None = None
) -> np.ndarray:
    """As `np.empty`; in a file of `folder`, if any, instead of in memory.

    The system keeps of it in memory what there is room for.

    Raises:
        UserError: the disk has not enough room, or cannot be written.
    """
    if folder is None:
        return np.empty(shape, dtype)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with new_file(folder, size) as file:
        return np.asarray(np.memmap(file, dtype, "r+", shape=tuple(shape)))


def new_file(folder: Path, size: int) -> IO[bytes]:
    """A nameless file of `size` bytes; what maps it keeps it.

    Raises:
        UserError: the disk has not enough room, or cannot be written.
    """
    try:
        file = tempfile.TemporaryFile(dir=folder)
        try:
            if hasattr(os, "posix_fallocate"):
                # A full disk is an error now, and would kill the process later.
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError:
            file.close()
            raise
    except OSError as error:
        raise cannot_write(folder, error) from error
    return file


def slowest_axis(array: np.ndarray) -> int:
    """The axis along which the parts of an array lie one after another."""
    return int(np.argmax(np.abs(array.strides)))
