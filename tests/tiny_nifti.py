"""Small NIfTI trees under the names that real ones have, and `main` in-process."""

import json
import logging
import signal
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from ml_collections import ConfigDict

from pclseg import main
from pclseg.config import load_config, override
from pclseg.data.datasets import chd, hvsmr, mmwhs
from pclseg.data.prepare import Options
from pclseg.state import TrainState
from pclseg.train.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[1]


def write(path: Path, array: np.ndarray, *, spacing=(1.5, 1.5, 8.0)) -> None:
    """Writes [X, Y, Z] or [X, Y, Z, T] voxels with `spacing` (x, y, z) in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path)


def image(shape, *, seed: int = 0) -> np.ndarray:
    """int16 noise."""
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def label(shape, *, values=(0, 1, 2)) -> np.ndarray:
    """uint8, holds all of `values`."""
    return np.resize(np.repeat(np.asarray(values, np.uint8), 7), shape)


def nifti_tree(root: Path, *, volumes: int = 6, labelled: int = 6) -> None:
    """images/caseNN.nii.gz and labels/caseNN.nii.gz of 20 x 18 x 5 voxels."""
    for number in range(volumes):
        shape = (20, 18, 5)
        write(root / f"images/case{number:02d}.nii.gz", image(shape, seed=number))
        if number < labelled:
            write(root / f"labels/case{number:02d}.nii.gz", label(shape))


def acdc_tree(root: Path, *, patients: int = 12, series_frames: int = 3) -> None:
    """training/patientNNN/ with two labelled frames each; patient002 has a 4-D file."""
    shape = (24, 20, 9)
    for number in range(1, patients + 1):
        name = f"patient{number:03d}"
        folder = root / "training" / name
        for frame in (1, 8):
            write(folder / f"{name}_frame{frame:02d}.nii.gz", image(shape))
            truth = label(shape, values=(0, 1, 2, 3))
            write(folder / f"{name}_frame{frame:02d}_gt.nii.gz", truth)
        (folder / "Info.cfg").write_text("ED: 1\nES: 8\nGroup: DCM\nNbFrame: 12\n")
        if number == 2:
            write(folder / f"{name}_4d.nii.gz", image((*shape, series_frames)))


def hippocampus_tree(root: Path, *, volumes: int = 8, unlabelled: int = 2) -> None:
    """imagesTr, labelsTr and imagesTs; 1 mm, long along axis 1."""
    for number in range(volumes + unlabelled):
        shape = (20, 30 + number, 18)
        name = f"hippocampus_{number:03d}.nii.gz"
        folder = "imagesTr" if number < volumes else "imagesTs"
        write(root / folder / name, image(shape), spacing=(1, 1, 1))
        if number < volumes:
            write(root / "labelsTr" / name, label(shape), spacing=(1, 1, 1))


def chd_tree(root: Path) -> None:
    """All in one folder; one volume has a label above those of the classes."""
    for number in chd.PATIENTS:
        values = (0, 1, 7, 9) if number == "1001" else (0, 1, 2, 3, 4, 5, 6, 7)
        pair(root, f"ct_{number}_image", f"ct_{number}_label", values)


def mmwhs_tree(root: Path) -> None:
    """ct_train, and beside it an unlabelled ct_test and an MRI that do not count."""
    for number in mmwhs.PATIENTS:
        name = f"ct_train/ct_train_{number}"
        pair(root, f"{name}_image", f"{name}_label", (0, 205, 420, 500, 820))
    for name in ("ct_test/ct_test_2001_image", "mr_train/mr_train_1001_image"):
        write(root / f"{name}.nii.gz", image((12, 10, 4)))


def hvsmr_tree(root: Path) -> None:
    """The challenge's folders, an axial version of the first volume among them."""
    for number in hvsmr.PATIENTS:
        name = f"training_sa_crop_pat{number}"
        folders = "Training_dataset_sx_cropped", "Ground_truth"
        images, labels = (f"{folder}/{name}" for folder in folders)
        pair(root, images, f"{labels}-label", (0, 1, 2))
    axial = "training_axial_crop_pat0"
    pair(root, f"axial/{axial}", f"Ground_truth/{axial}-label", (0, 1, 2))


def pair(root: Path, image_name: str, label_name: str, values) -> None:
    """An image and its label of 12 x 10 x 4 voxels."""
    shape = (12, 10, 4)
    write(root / f"{image_name}.nii.gz", image(shape))
    voxels = np.resize(np.asarray(values, np.int16), shape)
    write(root / f"{label_name}.nii.gz", voxels)


def options_of(config: str) -> Options:
    """How configs/CONFIG.py prepares volumes."""
    values = load_config(f"{ROOT}/configs/{config}.py").data.prepare.to_dict()
    return Options(**{key: value for key, value in values.items() if key != "workers"})


def z_score(values: np.ndarray) -> np.ndarray:
    """By the population's standard deviation, in float64."""
    values = np.asarray(values, np.float64)
    return (values - values.mean()) / values.std()


def contents(root: Path) -> dict[str, bytes | None]:
    """Every path below `root` with the bytes of its file; folders have None."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def config_for(root: Path, arm: str = "pcl", *more: str) -> ConfigDict:
    """configs/ARM_nifti.py for `nifti_tree(root / "data")`, made tiny."""
    config = load_config(
        f"{ROOT}/configs/{arm}_nifti.py:size=cpu,crop=16,classes=3,seed=5"
    )
    values = {
        "data.raw_dir": root / "data",
        "data.store_dir": root / "prepared",
        "data.pipeline": "numpy",
        "data.prepare.workers": 1,
        "finetune.data.batch_size": 4,
        "finetune.model.width": 2,
        "finetune.train.steps": 2,
    }
    if arm == "pcl":
        values |= {
            "pretrain.data.batch_size": 4,
            "pretrain.model.width": 2,
            "pretrain.model.out_dim": 4,
            "pretrain.train.steps": 2,
        }
    override(config, [f"--config.{key}={value}" for key, value in values.items()])
    override(config, more)
    return config


def stage_folder(folder, stage, *, patients, labels=()):
    """RUN/STAGE of a finished run, as another run starts from it."""
    shapes = stage.abstract

    def zeros(tree):
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)

    state = TrainState(
        step=np.int32(7),
        params=zeros(shapes.params),
        opt_state={},
        model_state=zeros(shapes.model_state),
        method_state={},
    )
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(state)
    checkpoints.close()
    seen = {"images": list(patients), "labels": list(labels)}
    (folder / "patients.json").write_text(json.dumps(seen))
    (folder / "done.json").write_text('{"steps": 7}')


class InlinePool(futures.Executor):
    """A process pool without processes, which take seconds to start."""

    def __init__(self, *args, **kwargs):
        del args, kwargs

    def submit(self, function, /, *args, **kwargs):
        future = futures.Future()
        future.set_result(function(*args, **kwargs))
        return future


@contextmanager
def clean_process() -> Iterator[None]:
    """Undoes what `main` changes in this process: signal handlers and logging."""
    logger = logging.getLogger("pclseg")
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    about = (logger.level, logger.propagate, list(logger.handlers))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for handler in logger.handlers:
            handler.close()
        logger.level, logger.propagate, logger.handlers = about


def call_main(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    """(exit code, stderr) of `python -m pclseg.main *args`, in this process."""
    with clean_process():
        code = main.main(["pclseg.main", *map(str, args)])
    return code, capsys.readouterr().err
