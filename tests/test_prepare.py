"""Preparing a dataset: complete or not at all, restartable, faults named."""

import dataclasses
import json
import os
import threading
from concurrent import futures
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pclseg.data import prepare, tfds_store, workers
from pclseg.data.datasets.base import Case, Dataset, Stray
from pclseg.errors import UserError

OPTIONS = dict(
    slice_axis="auto",
    spacing=(1.0, 1.0),
    clip_percentiles=(0.0, 100.0),
    integers=False,
    replace_below=(),
    image_order=3,
    label_order=1,
)


@dataclasses.dataclass(frozen=True)
class Lethal:
    """A path that kills the process it is sent to, as lack of memory would."""

    path: Path

    def __reduce__(self):
        return os._exit, (9,)

    def __getattr__(self, name):
        return getattr(self.path, name)

    def __fspath__(self):
        return str(self.path)

    def __str__(self):
        return str(self.path)


class ThreadPool(futures.ThreadPoolExecutor):
    """Stands in for the pool of processes where a test is not about processes."""

    def __init__(self, workers, mp_context, initializer):
        super().__init__(workers)


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.setattr(futures, "ProcessPoolExecutor", ThreadPool)


def make_dataset(folder, count=3, **changed):
    """Volumes of which the last is unlabelled; `changed` replaces files' arrays."""
    folder.mkdir(exist_ok=True)
    affine = np.diag([1.5, 1.5, 6.0, 1.0])
    cases = []
    for row in range(count):
        rng = np.random.default_rng(row)
        arrays = {
            f"image{row}": rng.integers(0, 99, (8, 6, 4 + row)).astype(np.int16),
            f"label{row}": rng.choice([0, 2, 5], (8, 6, 4 + row)).astype(np.uint8),
        }
        paths = {}
        for name, array in arrays.items():
            paths[name] = folder / f"{name}.nii.gz"
            array = changed.get(name, array)
            nib.save(nib.Nifti1Image(array, affine), paths[name])
        cases.append(
            Case(
                name=f"case{row}",
                patient=f"patient{row}",
                frame="",
                image_path=paths[f"image{row}"],
                label_path=paths[f"label{row}"] if row < count - 1 else None,
            )
        )
    return Dataset(
        name="toy",
        cases=tuple(cases),
        class_names=("background", "a", "b"),
        label_values=(0, 2, 5),
    )


def run(dataset, store_dir, workers=2, report=lambda line: None, **changed):
    options = {**OPTIONS, **changed}
    return prepare.prepare(
        dataset, store_dir, workers=workers, report=report, **options
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_processes_prepare_what_prepare_case_gives(tmp_path):
    dataset = make_dataset(tmp_path / "raw")
    lines = []
    path = run(dataset, tmp_path / "stores", report=lines.append)
    store = tfds_store.open_store(path)
    options = prepare.Options(**OPTIONS)
    for row, case in enumerate(dataset.cases):
        expected = prepare.prepare_case(case, options, dataset.label_values)
        volume = store.volume(row)
        assert volume.info == expected.info
        assert volume.info.shape == (4 + row, 9, 12)
        np.testing.assert_array_equal(volume.image, expected.image)
        assert volume.info.labelled == (row < 2)
        np.testing.assert_array_equal(volume.label, expected.label)
    assert (store.class_names, store.label_values) == (
        ("background", "a", "b"),
        (0, 2, 5),
    )
    assert path.name == f"toy-{store.fingerprint}"
    assert names(tmp_path / "stores") == [path.name, f"{path.name}.lock"]
    assert "prepared 3 of 3 volumes, 0:00 left" in lines
    assert lines[-1] == f"wrote {path}"


def test_a_killed_worker_is_reported_with_its_file_and_the_rest_is_kept(tmp_path):
    dataset = make_dataset(tmp_path / "raw")
    lethal = dataclasses.replace(
        dataset.cases[2], image_path=Lethal(dataset.cases[2].image_path)
    )
    deadly = dataclasses.replace(dataset, cases=(*dataset.cases[:2], lethal))
    expected = r"was killed.*: case2 \(.*image2\.nii\.gz\); .*workers=1"
    with pytest.raises(UserError, match=expected) as error:
        run(deadly, tmp_path / "stores", workers=1)
    assert "case0" not in str(error.value)
    (staging,) = (tmp_path / "stores").glob("*.staging")
    assert names(staging) == ["000000.npz", "000001.npz"]


def test_the_second_call_returns_at_once(tmp_path, threads, monkeypatch):
    dataset = make_dataset(tmp_path / "raw")
    path = run(dataset, tmp_path / "stores")
    monkeypatch.setattr(workers, "run", None)
    lines = []
    assert run(dataset, tmp_path / "stores", report=lines.append) == path
    assert lines == []


@pytest.mark.parametrize(
    "changed",
    [
        {"spacing": (2.0, 2.0)},
        {"spacing": ()},
        {"slice_axis": 1},
        {"clip_percentiles": (1.0, 99.0)},
        {"integers": True},
        {"replace_below": (10.0, 12.0)},
        {"image_order": 1},
        {"label_order": 0},
    ],
)
def test_other_options_make_another_store(tmp_path, threads, changed):
    dataset = make_dataset(tmp_path / "raw")
    paths = {run(dataset, tmp_path / "stores", **c) for c in ({}, changed)}
    assert len(paths) == 2


def test_other_files_classes_or_cases_make_another_fingerprint(tmp_path):
    options = prepare.Options(**OPTIONS)
    dataset = make_dataset(tmp_path / "raw")
    marks = [prepare.fingerprint(dataset, options)]
    assert prepare.fingerprint(dataclasses.replace(dataset), options) == marks[0]
    first = dataset.cases[0]
    for cases in (
        dataset.cases[1:],
        (dataclasses.replace(first, patient="other"), *dataset.cases[1:]),
        (dataclasses.replace(first, label_path=None), *dataset.cases[1:]),
        (dataclasses.replace(first, spacing_known=False), *dataset.cases[1:]),
    ):
        other = dataclasses.replace(dataset, cases=cases)
        marks.append(prepare.fingerprint(other, options))
    other = dataclasses.replace(dataset, label_values=(0, 5, 2))
    marks.append(prepare.fingerprint(other, options))
    other = dataclasses.replace(dataset, strays=(Stray(6, 6, 5),))
    marks.append(prepare.fingerprint(other, options))
    os.utime(first.image_path, (1, 1))
    marks.append(prepare.fingerprint(dataset, options))
    first.label_path.write_bytes(b"shorter")
    marks.append(prepare.fingerprint(dataset, options))
    assert len(set(marks)) == len(marks)


def test_a_restart_skips_finished_volumes_and_redoes_damaged_ones(
    tmp_path, threads, monkeypatch
):
    dataset = make_dataset(tmp_path / "raw")
    done = []

    def interrupted(task):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.case.name)
        return original(task)

    original = prepare._prepare_one
    monkeypatch.setattr(prepare, "_prepare_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "stores", workers=1)
    (staging,) = (tmp_path / "stores").glob("*.staging")
    assert names(staging) == ["000000.npz", "000001.npz"]
    data = bytearray((staging / "000001.npz").read_bytes())
    data[300:320] = bytes(20)  # inside the voxels; the table of the file stays whole
    (staging / "000001.npz").write_bytes(data)
    (staging / "000002.1.tmp").write_bytes(b"unfinished")
    again = []
    monkeypatch.setattr(
        prepare,
        "_prepare_one",
        lambda task: again.append(task.case.name) or original(task),
    )
    lines = []
    path = run(dataset, tmp_path / "stores", workers=1, report=lines.append)
    assert again == ["case1", "case2"]
    assert lines[0] == "1 of 3 volumes were prepared before"
    assert len(tfds_store.open_store(path).infos) == 3
    assert names(tmp_path / "stores") == [path.name, f"{path.name}.lock"]


def test_every_fault_is_listed_and_the_first_is_raised(tmp_path, threads):
    nan = np.full((8, 6, 5), np.nan, np.float32)
    gap = np.zeros((8, 6, 4), np.uint8)
    gap[0, 0, 0] = 255
    dataset = make_dataset(tmp_path / "raw", label0=gap, image1=nan)
    lines = []
    with pytest.raises(UserError) as error:
        run(dataset, tmp_path / "stores", report=lines.append)
    faults = sorted(line for line in lines if line.startswith("case"))
    assert len(faults) == 2
    assert "case0: " in faults[0] and "label0.nii.gz: label value 255" in faults[0]
    assert "image1.nii.gz: 240 of 240 voxels are NaN" in faults[1]
    assert str(error.value) == f"{faults[0]} (1 more, listed above)"
    assert not list((tmp_path / "stores").glob("toy-*/metadata.json"))


def test_voxels_that_join_a_class_are_told_and_stored_as_it(tmp_path, threads):
    label = np.zeros((8, 6, 4), np.int16)
    label[:2], label[2, 0] = 5, 6  # 12 columns of the class, 4 voxels beside it
    label[3] = 9
    dataset = dataclasses.replace(
        make_dataset(tmp_path / "raw", label0=label),
        strays=(Stray(6, 6, 5), Stray(7, 99, 0)),
    )
    lines = []
    path = run(dataset, tmp_path / "stores", report=lines.append, spacing=())
    notes = [line for line in lines if "is no class's" in line]
    file = tmp_path / "raw" / "label0.nii.gz"
    assert notes == [
        f"case0: {file}: 4 voxels hold a label value from 6 to 6, which is no class's;"
        " they are taken for 5."
    ]
    stored = tfds_store.open_store(path).volume(0).label
    assert (stored == 2).sum() == 2 * 6 * 4 + 4
    assert (stored == 0).sum() == label.size - (2 * 6 * 4 + 4)


def test_a_full_disk_is_told_with_the_case(tmp_path, threads, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="case0: cannot write .*No space left"):
        run(make_dataset(tmp_path / "raw", count=1), tmp_path / "stores")


def test_a_bug_is_raised_with_the_case_that_met_it(tmp_path, threads, monkeypatch):
    def broken(*args, **more):
        raise ZeroDivisionError

    monkeypatch.setattr(prepare, "prepare_case", broken)
    with pytest.raises(ZeroDivisionError) as error:
        run(make_dataset(tmp_path / "raw", count=1), tmp_path / "stores")
    assert "while preparing case0 from" in error.value.__notes__[0]


def test_what_a_run_left_that_was_killed_while_it_cleaned_up_is_removed(
    tmp_path, threads
):
    dataset = make_dataset(tmp_path / "raw")
    path = run(dataset, tmp_path / "stores")
    for kind in ("staging", "writing"):
        rest = path.with_name(f"{path.name}.{kind}")
        rest.mkdir()
        (rest / "000001.npz").write_bytes(b"of the volumes")
    assert run(dataset, tmp_path / "stores") == path
    assert names(tmp_path / "stores") == [path.name, f"{path.name}.lock"]
    assert len(tfds_store.open_store(path).infos) == 3


def test_callers_at_once_share_one_store(tmp_path, threads, monkeypatch):
    dataset = make_dataset(tmp_path / "raw")
    tasks = []
    original = prepare._prepare_one
    monkeypatch.setattr(
        prepare, "_prepare_one", lambda task: tasks.append(task) or original(task)
    )
    begin = threading.Barrier(3)
    lines = []

    def call():
        begin.wait()
        return run(dataset, tmp_path / "stores", report=lines.append)

    with futures.ThreadPoolExecutor(3) as pool:
        paths = {future.result() for future in [pool.submit(call) for _ in range(3)]}
    assert len(paths) == 1
    assert len(tasks) == 3
    assert len(tfds_store.open_store(paths.pop()).infos) == 3
    assert sum(line.startswith("wrote") for line in lines) == 1


@pytest.mark.parametrize(("memory", "most"), [(1, 1), (2**50, 3)])
def test_no_more_volumes_are_in_work_than_memory_holds(
    tmp_path, threads, monkeypatch, memory, most
):
    at_once = []
    working = set()
    original = prepare._prepare_one
    together = threading.Barrier(most)

    def watched(task):
        working.add(task.path)
        at_once.append(len(working))
        together.wait(timeout=30)
        fault = original(task)
        working.discard(task.path)
        return fault

    monkeypatch.setattr(workers, "memory_bytes", lambda: memory)
    monkeypatch.setattr(prepare, "_prepare_one", watched)
    run(make_dataset(tmp_path / "raw"), tmp_path / "stores", workers=3)
    assert max(at_once) == most


def test_workers_must_not_be_negative(tmp_path):
    with pytest.raises(UserError, match="workers is -1; use 0 or more"):
        run(make_dataset(tmp_path / "raw"), tmp_path / "stores", workers=-1)


@pytest.mark.data
def test_a_real_acdc_patient_prepares_at_the_spacing_of_the_authors(shared_data):
    from pclseg.data.datasets import acdc

    dataset = acdc.make(raw_dir=shared_data / "ACDC")
    options = prepare.Options(**{**OPTIONS, "spacing": (1.25, 1.25)})
    case = dataset.cases[0]
    volume = prepare.prepare_case(case, options, dataset.label_values)
    assert case.name == "patient002_frame01"
    assert volume.info.shape == (10, 312, 283)  # 256 and 232 pixels of 1.52344 mm
    np.testing.assert_allclose(
        volume.info.spacing, (10.0, 1.52344 * 256 / 312, 1.52344 * 232 / 283)
    )
    assert not volume.info.spacing_known
    assert set(np.unique(volume.label)) == {0, 1, 2, 3}


@pytest.mark.data
def test_acdc_as_an_nnunet_raw_folder_gives_the_same_arrays(shared_data, tmp_path):
    from pclseg.data.datasets import acdc, msd, nifti

    cases = acdc.make(raw_dir=shared_data / "ACDC").cases[:4]
    for case in cases:
        image = tmp_path / "imagesTr" / f"{case.name}_0000.nii.gz"
        label = tmp_path / "labelsTr" / f"{case.name}.nii.gz"
        for link, target in ((image, case.image_path), (label, case.label_path)):
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(target.resolve())
    labels = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
    about = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 4}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    by_globs = nifti.make(
        raw_dir=tmp_path,
        images="imagesTr",
        labels="labelsTr",
        patient=r"(patient\d+)",
    )
    assert [case.patient for case in by_globs.cases] == [c.patient for c in cases]
    options = prepare.Options(**{**OPTIONS, "spacing": (1.25, 1.25)})
    for dataset in (by_globs, msd.make(raw_dir=tmp_path)):
        for case, expected in zip(dataset.cases, cases, strict=True):
            found = prepare.prepare_case(case, options, dataset.label_values)
            wanted = prepare.prepare_case(expected, options, (0, 1, 2, 3))
            np.testing.assert_array_equal(found.image, wanted.image)
            np.testing.assert_array_equal(found.label, wanted.label)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone has it")
def test_takes_the_cpus_that_it_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert workers.usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert workers.usable_cpus() == len(before)
