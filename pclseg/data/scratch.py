"""Arrays that lie on a disk, for volumes that memory cannot hold."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from pclseg.files import cannot_write


def empty(
    shape: Sequence[int], dtype: DTypeLike, folder: Path | None = None
) -> np.ndarray:
    """As `np.empty`; in a nameless file of `folder`, if any, instead of in memory.

    The system keeps of it in memory what there is room for. The file is gone with the
    array, also where the process is killed.

    Raises:
        UserError: the disk has not enough room, or cannot be written.
    """
    if folder is None:
        return np.empty(shape, dtype)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # A full disk is an error now, and would kill the process later.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(file, dtype, "r+", shape=tuple(shape)))
    except OSError as error:
        raise cannot_write(folder, error) from error


def slowest_axis(array: np.ndarray) -> int:
    """The axis along which the parts of an array lie one after another."""
    return int(np.argmax(np.abs(array.strides)))
