"""From a dataset's files to a finished store: in parallel, restartable, all or nothing.

Every volume is prepared by a worker process into a file of the staging folder; when all
are there, the store is written from them in one go and appears under its final name.
Memory: a worker holds one volume, at most BYTES_PER_VOXEL times its voxels, and no more
volumes are in work than fit in half of the machine's memory, whatever `workers` is (one
always is). Writing the store takes up to 28 bytes per voxel of the largest volume, and
1 GiB that TFDS buffers.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pclseg.data import scratch, tfds_store
from pclseg.data import workers as pool
from pclseg.data.datasets.base import (
    READ_ERRORS,
    Case,
    Dataset,
    Stray,
    open_nifti,
)
from pclseg.data.geometry import Geometry, orient, prepared_geometry
from pclseg.data.tfds_store import CaseInfo, Volume
from pclseg.data.volume import class_ids, prepare_image, prepare_label, stray_notes
from pclseg.data.volume_file import load_case, load_label, naming
from pclseg.errors import UserError
from pclseg.files import try_lock

VERSION = 1  # of the numbers: raised when preparation gives other arrays
# Of the larger of the file's grid and the prepared one. Measured: 9 to 11 for int16
# files, clipped or not, enlarged or shrunk; float64 and scaled integers take more.
BYTES_PER_VOXEL = 16

log = logging.getLogger(__name__)
Report = Callable[[str], None]
# What came of a volume: what the user has to mend, or None; what is to be told.
Outcome = tuple[str | None, list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How volumes are prepared: config.data.prepare without the number of workers."""

    slice_axis: int | str
    spacing: tuple[float, ...]
    clip_percentiles: tuple[float, float]
    integers: bool
    replace_below: tuple[float, ...]
    image_order: int
    label_order: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One volume to prepare, as it is sent to a worker."""

    case: Case
    options: Options
    label_values: tuple[int, ...]
    strays: tuple[Stray, ...]
    path: Path  # of the result in the staging folder


def prepare(
    dataset: Dataset,
    store_dir: str | Path,
    *,
    slice_axis: int | str,
    spacing: Sequence[float],
    clip_percentiles: Sequence[float],
    integers: bool,
    replace_below: Sequence[float],
    image_order: int,
    label_order: int,
    workers: int,
    report: Report,
) -> Path:
    """Prepares every volume of a dataset, unless that was done before.

    The store's name holds a fingerprint of the cases (with size and time of their
    files) and of the options. A run that was stopped goes on where it was; of several
    that run at once, one works and the others wait for it.

    Args:
        dataset: what to prepare.
        store_dir: the folder that stores are kept in.
        slice_axis: as in `geometry.prepared_geometry`.
        spacing: likewise.
        clip_percentiles: as in `volume.prepare_image`.
        integers: likewise.
        replace_below: likewise.
        image_order: likewise.
        label_order: as in `volume.prepare_label`.
        workers: number of processes; 0 is the number of CPUs that this process may use.
        report: takes lines of progress and one for each volume that is at fault.

    Returns:
        The store, for `tfds_store.open_store`.

    Raises:
        UserError: the first fault of the files; or a worker was killed.
    """
    if workers < 0:
        raise UserError(f"config.data.prepare.workers is {workers}; use 0 or more.")
    options = Options(
        slice_axis=slice_axis,
        spacing=tuple(spacing),
        clip_percentiles=(clip_percentiles[0], clip_percentiles[1]),
        integers=integers,
        replace_below=tuple(replace_below),
        image_order=image_order,
        label_order=label_order,
    )
    mark = fingerprint(dataset, options)
    store_dir = Path(store_dir).expanduser().absolute()
    path = store_dir / f"{dataset.name}-{mark}"
    lock, staging = (
        path.with_name(f"{path.name}.{kind}") for kind in ("lock", "staging")
    )
    if path.is_dir():
        if staging.is_dir():  # a run was killed while it cleaned up, or is at it
            # Whoever may only read there leaves it to others.
            with contextlib.suppress(PermissionError), _locked(lock, report):
                _clean_up(path, staging)
        return path
    store_dir.mkdir(parents=True, exist_ok=True)
    with _locked(lock, report):
        if path.is_dir():  # another process was faster
            return path
        staging.mkdir(exist_ok=True)
        for unfinished in staging.glob("*.tmp"):  # of a run that was stopped
            unfinished.unlink()
        tasks = [
            Task(
                case=case,
                options=options,
                label_values=dataset.label_values,
                strays=dataset.strays,
                path=staging / f"{row:06d}.npz",
            )
            for row, case in enumerate(dataset.cases)
        ]
        _prepare_all(tasks, workers, report)
        _write_store(path, dataset, mark, tasks, report)
        _clean_up(path, staging)
    return path


def _clean_up(path: Path, staging: Path) -> None:
    """Removes what the writing of a store leaves beside it, the staging folder last."""
    for folder in (tfds_store.writing_folder(path), staging):
        shutil.rmtree(folder, ignore_errors=True)


def fingerprint(dataset: Dataset, options: Options) -> str:
    """Sixteen hex digits of all that decides the content of a store."""

    def stamp(path: Path | None) -> list | None:
        if path is None:
            return None
        try:
            status = path.stat()
        except FileNotFoundError:  # reported when the case is loaded
            return [str(path.absolute())]
        return [str(path.absolute()), status.st_size, status.st_mtime_ns]

    cases = [
        [
            case.name,
            case.patient,
            case.frame,
            stamp(case.image_path),
            stamp(case.label_path),
            case.time_index,
            [[stamp(path), index] for path, index in case.more_channels],
            case.spacing_known,
            case.in_series,
        ]
        for case in dataset.cases
    ]
    content = {
        "versions": [VERSION, tfds_store.FORMAT],
        "dataset": [
            dataset.name,
            dataset.class_names,
            dataset.label_values,
            dataset.strays,
        ],
        "options": dataclasses.asdict(options),
        "cases": cases,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """Holds the lock of a file; the system frees it even if the process is killed."""
    with path.open("w") as file:
        if not try_lock(file):
            report(f"another process prepares the same volumes; waiting for {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare_all(tasks: list[Task], workers: int, report: Report) -> None:
    """Prepares what the staging folder lacks, and raises once all were tried."""
    waiting = [task for task in tasks if not _is_whole(task.path)]
    if len(waiting) < len(tasks):
        report(
            f"{len(tasks) - len(waiting)} of {len(tasks)} volumes were prepared before"
        )
    if not waiting:
        return
    progress = pool.Progress("prepared", len(waiting), report)
    faults: dict[Task, str] = {}
    outcomes = pool.run(waiting, _prepare_one, size=_task_bytes, workers=workers)
    try:
        for task, (fault, notes) in outcomes:
            for line in notes:
                report(line)
            if fault:
                faults[task] = fault
                report(fault)
            progress.step()
    except pool.WorkerKilled as error:
        raise _killed(error.tasks) from error
    if faults:
        others = f" ({len(faults) - 1} more, listed above)" if len(faults) > 1 else ""
        raise UserError(next(faults[t] for t in waiting if t in faults) + others)


def _killed(tasks: Iterable[Task]) -> UserError:
    unfinished = [task for task in tasks if _read_info(task.path) is None]
    files = ", ".join(f"{t.case.name} ({t.case.image_path})" for t in unfinished)
    return UserError(
        "a worker process was killed, most likely for lack of memory, while these were"
        f" in work: {files}; start again with fewer workers, such as"
        " --config.data.prepare.workers=1: finished volumes are kept."
    )


def _task_bytes(task: Task) -> int:
    return pool.BYTES + case_bytes(task.case, task.options)


def case_bytes(case: Case, options: Options) -> int:
    """An upper estimate of the memory that preparing a volume takes; 0 if unknown."""
    try:
        source = open_nifti(case.image_path)
        if len(source.shape) < 3:
            return 0
        geometry, new_shape, _ = prepared_geometry(
            source.shape[:3],
            np.asarray(source.affine),
            slice_axis=options.slice_axis,
            spacing=options.spacing,
        )
    except (*READ_ERRORS, UserError):  # whoever reads it says what is wrong
        return 0
    voxels = max(math.prod(geometry.native_shape), math.prod(new_shape))
    return BYTES_PER_VOXEL * voxels * len(case.channels)


def _prepare_one(task: Task) -> Outcome:
    """Prepares a volume in a worker and writes it to the staging folder."""
    case = task.case
    fault = None
    notes: list[str] = []
    try:
        prepared = prepare_case(
            case, task.options, task.label_values, strays=task.strays, note=notes.append
        )
        _write_staged(task.path, prepared)
    except UserError as error:
        fault = str(error)
    except MemoryError:
        fault = f"{case.name}: {case.image_path}: not enough memory for this volume."
    except OSError as error:
        fault = f"{case.name}: cannot write {task.path}: {error.strerror}."
    except Exception as error:
        error.add_note(f"while preparing {case.name} from {case.image_path}")
        raise
    return fault, notes


def _write_staged(path: Path, prepared: Volume) -> None:
    label = np.zeros(0, np.uint8) if prepared.label is None else prepared.label
    info = np.asarray(prepared.info.to_json())
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, image=prepared.image, label=label, info=info)
    os.replace(temporary, path)


def prepare_case(
    case: Case,
    options: Options,
    label_values: Sequence[int],
    *,
    strays: Sequence[Stray] = (),
    note: Report = log.warning,
    on_disk: Path | None = None,
) -> Volume:
    """One volume as it goes into the store.

    Args:
        case: by its files.
        options: how it is prepared.
        label_values: the file's value of class 0, 1, ...
        strays: what values that are no class's mean.
        note: takes a line where `strays` add voxels to a class.
        on_disk: folder for the image where memory cannot hold it.

    Raises:
        UserError: naming the case, the file and what is wrong with it.
    """
    loaded = load_case(case, on_disk)
    with naming(case, case.image_path):
        image, geometry, spacing = prepare_array(
            loaded.images, loaded.affine, options, on_disk
        )
    label = None
    if loaded.label is not None:
        with naming(case, case.label_path):
            label = prepare_label(
                loaded.label,
                geometry,
                label_values=label_values,
                label_order=options.label_order,
                strays=strays,
            )
            for line in stray_notes(loaded.label, label_values, strays):
                note(f"{case.name}: {case.label_path}: {line}")
    info = CaseInfo(
        name=case.name,
        patient=case.patient,
        frame=case.frame,
        shape=geometry.shape,
        channels=image.shape[-1],
        spacing=spacing,
        labelled=label is not None,
        spacing_known=case.spacing_known,
        in_series=case.in_series,
        geometry=geometry,
        image_path=str(case.image_path.absolute()),
    )
    return Volume(info, image, label)


def native_label(case: Case, dataset: Dataset, geometry: Geometry) -> np.ndarray:
    """The label of a case as class ids on the file's own grid.

    Args:
        case: by its files; labelled.
        dataset: whose classes count.
        geometry: of the prepared volume.

    Returns:
        [Z, H, W] ids, (Z, H, W) the native shape; dtype as of `class_ids`.

    Raises:
        UserError: naming case and file: it is gone, or not as it was.
    """
    if case.label_path is None:
        raise ValueError(f"{case.name} has no label.")
    shape, affine = geometry.file_shape, np.asarray(geometry.affine)
    label = load_label(case, case.label_path, shape, affine)
    with naming(case, case.label_path):
        ids = class_ids(label, dataset.label_values, dataset.strays)
    return orient(ids, geometry)


def prepare_array(
    channels: Sequence[np.ndarray],
    affine: np.ndarray,
    options: Options,
    on_disk: Path | None = None,
) -> tuple[np.ndarray, Geometry, tuple[float, float, float]]:
    """An image as the network sees it, each channel normalised by itself.

    Args:
        channels: [X, Y, Z] each, finite, not constant.
        affine: [4, 4] float64, voxel index to mm (RAS+).
        options: how it is prepared.
        on_disk: folder for what memory cannot hold.

    Returns:
        float32 [Z, H, W, C]; where it lies; its spacing (z, y, x) in mm.

    Raises:
        UserError: an option out of range, a single slice, or all voxels the same.
    """
    shape = channels[0].shape
    geometry, _, spacing = prepared_geometry(
        shape, affine, slice_axis=options.slice_axis, spacing=options.spacing
    )
    images = [
        prepare_image(
            channel,
            geometry,
            clip_percentiles=options.clip_percentiles,
            integers=options.integers,
            replace_below=options.replace_below,
            image_order=options.image_order,
            on_disk=on_disk,
        )
        for channel in channels
    ]
    if len(images) == 1:
        return images[0][..., None], geometry, spacing
    image = scratch.empty((*geometry.shape, len(images)), np.float32, on_disk)
    for number, channel in enumerate(images):
        image[..., number] = channel
    return image, geometry, spacing


def _read_info(path: Path) -> CaseInfo | None:
    """The info of a finished volume of the staging folder, else None."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return CaseInfo.from_json(str(arrays["info"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _is_whole(path: Path) -> bool:
    """Whether a volume of the staging folder is there, its checksums right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None and _read_info(path) is not None
    except (OSError, zipfile.BadZipFile):
        return False


def _write_store(
    path: Path, dataset: Dataset, mark: str, tasks: list[Task], report: Report
) -> None:
    infos = [info for task in tasks if (info := _read_info(task.path)) is not None]
    report(f"writing {len(tasks)} volumes to {path}")

    def volumes() -> Iterator[Volume]:
        for task, info in zip(tasks, infos, strict=True):
            with np.load(task.path, allow_pickle=False) as arrays:
                label = arrays["label"] if info.labelled else None
                yield Volume(info, arrays["image"], label)

    tfds_store.write_store(
        path,
        volumes=volumes(),
        infos=infos,
        class_names=dataset.class_names,
        label_values=dataset.label_values,
        fingerprint=mark,
    )
    report(f"wrote {path}")
