"""The prepared volumes on disk: one TFDS builder, array_record files, no TensorFlow.

A store is a folder that `tfds.builder_from_directory` opens too. Its examples are
whole volumes; the table of all cases lies in its metadata, so opening a store decodes
nothing.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pclseg.data.geometry import Geometry
from pclseg.errors import UserError

FORMAT = 2  # of the examples and the metadata; raised when either changes
SPLIT = "volumes"  # TFDS reserves "all"
BUILDER = "pclseg_volumes"
# What TFDS and array_record raise for files that were cut, changed or removed.
_DAMAGE = (OSError, RuntimeError, TypeError, ValueError)
_lock = threading.Lock()  # one thread at a time opens a reader
MAX_BYTES = 2**31 - 2**20  # of one example, as protocol buffers have it


@dataclasses.dataclass(frozen=True)
class CaseInfo:
    """All about a prepared volume except its voxels."""

    name: str
    patient: str
    frame: str
    shape: tuple[int, int, int]  # (Z, H, W)
    channels: int  # of the image
    spacing: tuple[float, float, float]  # (z, y, x) mm
    labelled: bool
    spacing_known: bool  # False: leave the case out of metrics in mm
    in_series: bool  # True: another case has the same image; not pre-trained on twice
    geometry: Geometry
    image_path: str  # of the input file

    def to_json(self) -> str:
        """The info as JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "CaseInfo":
        """The info that `to_json` wrote."""
        fields = json.loads(text)
        fields["geometry"] = Geometry.from_json(json.dumps(fields["geometry"]))
        fields["shape"] = tuple(fields["shape"])
        fields["spacing"] = tuple(fields["spacing"])
        return cls(**fields)


@dataclasses.dataclass
class Volume:
    """A prepared volume."""

    info: CaseInfo
    image: np.ndarray  # float32 [Z, H, W, C], normalised; read-only if from a store
    label: np.ndarray | None  # uint8 or uint16 [Z, H, W] class ids; None: unlabelled


@dataclasses.dataclass(frozen=True)
class Store:
    """A finished store, opened for reading; `row` counts its volumes from 0."""

    path: Path
    infos: tuple[CaseInfo, ...]
    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    fingerprint: str

    def volume(self, row: int) -> Volume:
        """Reads one volume, in any order; safe from several threads.

        Raises:
            IndexError: row out of range.
            UserError: the store's files do not hold what its metadata says.
        """
        info = self.infos[row]
        try:
            source = _source(self.path, self.fingerprint)
            example = source[range(len(self.infos))[row]]
        except _DAMAGE as error:
            raise _damaged(self.path, f"volume {row} cannot be read") from error
        if example["name"].decode() != info.name:
            found = example["name"].decode(errors="replace")
            raise _damaged(self.path, f"volume {row} is {found!r}, not {info.name!r}")
        label = example["label"] if info.labelled else None
        return Volume(info, example["image"], label)


def open_store(path: str | Path) -> Store:
    """Opens a store that `write_store` wrote, reading its metadata only.

    Raises:
        UserError: there is no finished store, or one of another format.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"there is no folder {path} of prepared volumes; prepare them.")
    try:
        metadata = json.loads((path / "metadata.json").read_text())
        if metadata["format"] != FORMAT:
            raise UserError(
                f"{path} has store format {metadata['format']}, this version reads"
                f" {FORMAT}; remove the folder and prepare again."
            )
        return Store(
            path=path,
            infos=tuple(CaseInfo.from_json(text) for text in metadata["infos"]),
            class_names=tuple(metadata["class_names"]),
            label_values=tuple(metadata["label_values"]),
            fingerprint=metadata["fingerprint"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "metadata.json is missing or damaged") from error


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; remove this folder and start again.")


def writing_folder(path: Path) -> Path:
    """Where a store is written before it appears under `path`."""
    return path.with_name(f"{path.name}.writing")


def check_size(info: CaseInfo) -> None:
    """Raises UserError where a volume is larger than an example may be."""
    if 4 * math.prod(info.shape) * info.channels > MAX_BYTES:  # float32
        raise UserError(
            f"{info.name}: {info.image_path} has {info.shape} voxels of {info.channels}"
            " channel(s) after preparation, more than the 2 GiB that a prepared volume"
            " may take; set a coarser config.data.prepare.spacing, or crop the file."
        )


def write_store(
    path: str | Path,
    *,
    volumes: Iterable[Volume],
    infos: Sequence[CaseInfo],
    class_names: Sequence[str],
    label_values: Sequence[int],
    fingerprint: str,
) -> Path:
    """Writes a store, which appears under `path` when it is complete.

    Args:
        path: the folder to make; its parent exists.
        volumes: in the order of `infos`; held in memory one at a time.
        infos: of every volume.
        class_names: the background first.
        label_values: the value in the label files of class 0, 1, ...
        fingerprint: of what the volumes were made from.

    Raises:
        UserError: a volume is larger than an example may be.
    """
    for info in infos:
        check_size(info)
    path = Path(path).expanduser().absolute()
    metadata = {
        "format": FORMAT,
        "infos": [info.to_json() for info in infos],
        "class_names": list(class_names),
        "label_values": [int(value) for value in label_values],
        "fingerprint": fingerprint,
    }
    dtype = np.uint8 if len(label_values) <= 256 else np.uint16
    writing = writing_folder(path)
    shutil.rmtree(writing, ignore_errors=True)
    tfds = _import_tfds()
    builder = _builder_class()(
        data_dir=writing,
        file_format="array_record",
        volumes=volumes,
        metadata=metadata,
        label_dtype=dtype,
    )
    with _quiet():
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    os.replace(builder.data_dir, path)
    shutil.rmtree(writing)
    return path


@functools.cache
def _builder_class() -> Any:
    """The TFDS builder; a class made on first use, since TFDS takes long to import."""
    tfds = _import_tfds()

    class PclsegVolumes(tfds.core.GeneratorBasedBuilder):
        """Prepared volumes, in a fixed order, one example each."""

        name = BUILDER
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None  # there are no files beside this class

        def __init__(
            self,
            *,
            volumes: Iterable[Volume],
            metadata: dict,
            label_dtype: type,
            **kwargs: Any,
        ) -> None:
            self._volumes = volumes
            self._store_metadata = metadata
            self._label_dtype = label_dtype
            super().__init__(**kwargs)

        def _info(self) -> Any:
            features = tfds.features
            shape = (None, None, None)
            return tfds.core.DatasetInfo(
                builder=self,
                description="Volumes prepared by pclseg.",
                features=features.FeaturesDict(
                    {
                        "name": features.Text(),
                        "info": features.Text(),
                        "image": features.Tensor(
                            shape=(*shape, None), dtype=np.float32, encoding="bytes"
                        ),
                        "label": features.Tensor(
                            shape=shape, dtype=self._label_dtype, encoding="zlib"
                        ),
                    }
                ),
                metadata=tfds.core.MetadataDict(self._store_metadata),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict:
            del dl_manager
            return {SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict]]:
            for row, volume in enumerate(self._volumes):
                yield row, _example(volume, self._label_dtype)

        def _log_download_bytes(self) -> None:
            """Nothing is downloaded, so nothing is said about it."""

        def _log_download_done(self) -> None:
            """Whoever prepares the volumes reports it."""

    return PclsegVolumes


def _example(volume: Volume, label_dtype: type) -> dict:
    empty = np.zeros((0, 0, 0), label_dtype)  # TFDS has no absent value
    return {
        "name": volume.info.name,
        "info": volume.info.to_json(),
        "image": volume.image,
        "label": empty if volume.label is None else volume.label,
    }


def _source(path: Path, fingerprint: str) -> Any:
    """The random-access reader of a store, made once."""
    with _lock:
        return _open_source(path, fingerprint)


@functools.lru_cache(maxsize=8)
def _open_source(path: Path, fingerprint: str) -> Any:
    tfds = _import_tfds()
    with _quiet():
        return tfds.builder_from_directory(path).as_data_source(split=SPLIT)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TFDS logs about its own files off the user's screen."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _import_tfds() -> Any:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    return tfds
