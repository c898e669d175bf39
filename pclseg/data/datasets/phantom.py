"""A made-up dataset: nested structures whose shape tells the height of the slice.

It is written as real .nii.gz, so that the demo takes the same way as a user's data. One
volume is stored from right to left (LAS), one is 4-D, one lacks the inner structure.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from pclseg.data.datasets import nifti
from pclseg.data.datasets.base import Dataset
from pclseg.errors import UserError
from pclseg.files import replacing, write_json

SHAPE = (24, 64, 64)  # (Z, H, W)
SPACING = (5.0, 1.25, 1.25)  # (z, y, x) mm
CLASS_NAMES = ("background", "shell", "core")
LABEL_VALUES = (0, 2, 5)
LAS, FOUR_D, CORELESS = 1, 2, 3  # the volumes that differ, counted from 0
NUM_FRAMES = 2
RECORD = "phantom.json"
Height = float | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What differs between patients; lengths in units of half the field of view."""

    size: float  # of the body
    center: tuple[float, float]  # (y, x) of the body
    shift: tuple[float, float]  # (y, x) of the organ in the body
    turn: float  # radians, of the organ about its axis
    girth: float  # of the organ
    stretch: float  # of the organ's height, about mid-height
    lobes: float  # how far the outline departs from an ellipse
    core: float  # size of the core relative to the shell
    decoy: float  # size of the vessel that looks like the core


def make(*, raw_dir: str | Path, volumes: int, seed: int) -> Dataset:
    """The phantom that `generate` wrote there.

    Raises:
        UserError: there is none, or it was written for other arguments.
    """
    root = Path(raw_dir).expanduser()
    if _read_record(root) != _record(volumes, seed):
        raise UserError(
            f"{root} holds no phantom of volumes={volumes}, seed={seed}; write it with:"
            " python -c 'from pclseg.data.datasets import phantom;"
            f' phantom.generate("{root}", volumes={volumes}, seed={seed})\''
        )
    found = nifti.make(
        raw_dir=root,
        images="images/*.nii.gz",
        labels="labels/*.nii.gz",
        patient=r"(phantom_\d+)",
        label_values=LABEL_VALUES,
        class_names=CLASS_NAMES,
    )
    return dataclasses.replace(found, name="phantom")


def generate(raw_dir: str | Path, *, volumes: int, seed: int) -> None:
    """Writes images/phantom_NN.nii.gz and labels/phantom_NN.nii.gz, the same each time.

    Returns at once where that was done before; replaces a phantom of other arguments.

    Raises:
        UserError: volumes < 1, or the folder holds something else than a phantom.
    """
    if volumes < 1:
        raise UserError(
            f"a phantom of {volumes} volumes was asked for; give 1 or more."
        )
    root = Path(raw_dir).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    with _alone_in(root):
        if _read_record(root) != _record(volumes, seed):
            _generate(root, volumes, seed)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process generates there; a killed one frees the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _generate(root: Path, volumes: int, seed: int) -> None:
    if any(root.iterdir()) and not (root / RECORD).is_file():
        raise UserError(
            f"{root} is not empty and holds no phantom; give another folder."
        )
    (root / RECORD).write_text("{}\n")  # unfinished, yet ours
    for kind in ("images", "labels"):
        (root / kind).mkdir(exist_ok=True)
        for path in (root / kind).glob("phantom_*.nii.gz"):
            path.unlink()
    for index in range(volumes):
        image, label = _volume(index, seed)
        _write(root / "images" / f"phantom_{index:02d}.nii.gz", image, las=index == LAS)
        _write(root / "labels" / f"phantom_{index:02d}.nii.gz", label, las=index == LAS)
    write_json(root / RECORD, _record(volumes, seed))


def _record(volumes: int, seed: int) -> dict[str, int]:
    return {"version": 1, "volumes": volumes, "seed": seed}


def _read_record(root: Path) -> dict[str, int] | None:
    try:
        return json.loads((root / RECORD).read_text())
    except (OSError, json.JSONDecodeError):
        return None


def _write(path: Path, array: np.ndarray, *, las: bool) -> None:
    """Writes [Z,H,W] or [T,Z,H,W] as an (x,y,z) or (x,y,z,t) file in RAS or LAS."""
    voxels = array.T if array.ndim == 3 else array.transpose(3, 2, 1, 0)
    affine = np.diag([*SPACING[::-1], 1.0])
    affine[:3, 3] = (-40.0, -40.0, -60.0)
    if las:
        voxels = voxels[::-1]
        affine[0, 3] += (voxels.shape[0] - 1) * affine[0, 0]
        affine[0, 0] *= -1
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    with replacing(path) as temporary:
        nib.save(image, temporary)


def _volume(index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(int16 image, uint8 label), [Z,H,W], or [T,Z,H,W] for the 4-D one."""
    rng = np.random.Generator(np.random.Philox([seed, index]))
    anatomy = _draw_anatomy(rng)
    frames = NUM_FRAMES if index == FOUR_D else 1
    images, labels = [], []
    for frame in range(frames):  # the organ swells a little from frame to frame
        moved = dataclasses.replace(anatomy, girth=anatomy.girth * (1 + 0.1 * frame))
        tissue = _tissue(moved, with_core=index != CORELESS)
        images.append(_scan(rng, tissue, scanner=index % 2))
        labels.append(np.asarray([0, 0, 2, 5, 0, 0, 0], np.uint8)[tissue])
    if frames == 1:
        return images[0], labels[0]
    return np.stack(images), np.stack(labels)


def _draw_anatomy(rng: np.random.Generator) -> Anatomy:
    return Anatomy(
        size=rng.uniform(0.78, 0.92),
        center=tuple(rng.uniform(-0.06, 0.06, 2)),
        shift=tuple(rng.uniform(-0.1, 0.1, 2)),
        turn=rng.uniform(-0.5, 0.5),
        girth=rng.uniform(0.8, 1.2),
        stretch=rng.uniform(0.85, 1.15),
        lobes=rng.uniform(0.05, 0.25),
        core=rng.uniform(0.45, 0.65),
        decoy=rng.uniform(0.8, 1.25),
    )


@functools.cache
def _grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height in (0, 1) as [Z,1,1], y and x in (-1, 1) as [H,1] and [W]."""
    z, y, x = ((np.arange(n) + 0.5) / n for n in SHAPE)
    return z[:, None, None], 2 * y[:, None] - 1, 2 * x - 1


def _ellipse(
    y: np.ndarray,
    x: np.ndarray,
    center: tuple[Height, Height],
    radii: tuple[Height, Height],
    turn: Height = 0.0,
    lobes: float = 0.0,
    phase: Height = 0.0,
) -> np.ndarray:
    """Bool [Z,H,W]: inside a turned ellipse, its outline waved three times around.

    What depends on height is [Z,1,1].
    """
    dy, dx = y - center[0], x - center[1]
    v = (np.cos(turn) * dy + np.sin(turn) * dx) / radii[0]
    u = (-np.sin(turn) * dy + np.cos(turn) * dx) / radii[1]
    outline = 1 + lobes * np.cos(3 * np.arctan2(v, u) + phase)
    return v**2 + u**2 < outline**2


def _tissue(a: Anatomy, *, with_core: bool) -> np.ndarray:
    """uint8 [Z,H,W]: 0 air, 1 body, 2 shell, 3 core, 4 spine, 5 vessel, 6 muscle."""
    z, y, x = _grid()
    cy, cx = a.center
    tissue = np.zeros(SHAPE, np.uint8)
    # The body narrows and turns from wide to round upwards; so every height looks
    # different, whatever the organ does.
    body = (a.size * (0.62 + 0.25 * z), a.size * (1.0 - 0.2 * z))
    tissue[_ellipse(y, x, a.center, body)] = 1
    for side in (-1, 1):  # two muscles that part upwards
        at = (cy + 0.38 * a.size, cx + side * a.size * (0.18 + 0.3 * z))
        tissue[_ellipse(y, x, at, (0.12, 0.09 + 0.08 * (1 - z)))] = 6
    tissue[_ellipse(y, x, (cy + 0.48 * a.size, cx), (0.09, 0.07 + 0.07 * z))] = 4
    # The organ spans the middle; above and below it runs a vessel that looks like its
    # core. h is -1 at the lower end of the organ and 1 at the upper.
    h = (z - 0.5) / (0.36 * a.stretch)
    profile = np.sqrt(np.clip(1 - h**2, 0, None)) * (1 - 0.25 * h)
    profile = np.maximum(profile, 1e-6)
    at = (cy + a.shift[0] - 0.12, cx + a.shift[1] + 0.22 * h)
    radii = (0.3 * a.girth * profile, (0.34 - 0.08 * h) * a.girth * profile)
    turn = a.turn + 0.9 * h
    inside = np.abs(h) < 1
    vessel = _ellipse(y, x, at, (0.13 * a.decoy, 0.13 * a.decoy))
    ring = _ellipse(y, x, at, (0.2 * a.decoy, 0.2 * a.decoy))
    tissue[ring & ~inside] = 6
    tissue[vessel & ~inside] = 5
    shell = inside & _ellipse(y, x, at, radii, turn, a.lobes, 4 * h)
    tissue[shell] = 2
    if with_core:
        offset = (at[0] + 0.08 * profile * np.sin(3 * h), at[1] + 0.08 * profile)
        core = (radii[0] * a.core, radii[1] * a.core * (1.2 - 0.4 * np.abs(h)))
        tissue[shell & (h < 0.6) & _ellipse(y, x, offset, core, turn)] = 3
    return tissue


def _scan(rng: np.random.Generator, tissue: np.ndarray, *, scanner: int) -> np.ndarray:
    """int16 [Z,H,W] image: tissue, bias field, noise, the scanner's scale."""
    mean = np.asarray([0.02, 0.45, 0.62, 0.85, 0.2, 0.84, 0.6])
    mean = mean * rng.uniform(0.92, 1.08, mean.size)
    z, y, x = _grid()
    bias = sum(rng.uniform(-0.2, 0.2) * term for term in (z - 0.5, y, x, x * y, y**2))
    image = mean[tissue] * (1 + bias)
    image = image + (0.05, 0.08)[scanner] * rng.standard_normal(SHAPE)
    gain, gamma = ((1000.0, 1.0), (350.0, 0.75))[scanner]
    return np.round(gain * np.clip(image, 0, None) ** gamma).astype(np.int16)
