"""A finished run as a function from image files to label files."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from pclseg import building, rundir, scoring
from pclseg.config import settings
from pclseg.data.datasets.base import Case, num_frames, safe_name, stem
from pclseg.data.geometry import Geometry
from pclseg.data.prepare import Options, prepare_case
from pclseg.data.volume import restore_label, restore_probabilities
from pclseg.data.volume_file import write_volume
from pclseg.errors import UserError
from pclseg.evaluation.inference import MULTIPLE, Predictor, mean_of, with_flips
from pclseg.files import read_json
from pclseg.named import checked_call
from pclseg.scoring import LEAST_TILE
from pclseg.state import TrainState
from pclseg.train.checkpoint import load_weights

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmenter:
    """A trained network, or several whose mean counts, with all that surrounds it.

    Attributes:
        predict: prepared image [Z, H, W] -> probabilities [Z, H, W, K].
        options: how images are prepared.
        class_names: of class id 0, 1, ..., the background first.
        label_values: of the same classes in label files.
        channel: the one to read of a 4-D image; -1 for every frame.
    """

    predict: Predictor
    options: Options
    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    channel: int

    def probabilities(self, case: Case) -> tuple[np.ndarray, Geometry]:
        """Class probabilities [Z, H, W, K] as prepared, and where they lie.

        Raises:
            UserError: the image cannot be used; the message names the file.
        """
        volume = prepare_case(case, self.options, self.label_values)
        return self.predict(volume.image), volume.info.geometry

    def segment(self, case: Case) -> np.ndarray:
        """Label values [X, Y, Z] on the grid of the case's image.

        Raises:
            UserError: as of `probabilities`.
        """
        probs, geometry = self.probabilities(case)
        return restore_label(probs, geometry, label_values=self.label_values)


def load_segmenter(
    runs: Sequence[Path],
    *,
    batch_size: int,
    tile: int | None = None,
    flips: bool = False,
) -> Segmenter:
    """Loads the last segmentation stage of finished runs, as one.

    Args:
        runs: run directories; of several, such as folds and seeds, the mean of the
            probabilities counts.
        batch_size: slices, or tiles, a forward pass.
        tile: side of tiles, a multiple of 16; None for whole slices.
        flips: whether to take the mean over in-plane mirror images.

    Raises:
        UserError: one is no run directory, that stage is not finished, or they differ
            in classes or in how images are prepared.
    """
    if tile is not None and (tile < LEAST_TILE or tile % MULTIPLE):
        raise UserError(
            f"--tile is {tile}; expected a multiple of {MULTIPLE} of {LEAST_TILE} or"
            " more."
        )
    found = [_load(run, batch_size=batch_size, tile=tile) for run in runs]
    for run, other in zip(runs, found, strict=True):
        for name in ("class_names", "label_values", "channel", "options"):
            mine, theirs = getattr(found[0], name), getattr(other, name)
            if mine != theirs:
                raise UserError(
                    f"{run} and {runs[0]} cannot predict together: {name} is {theirs}"
                    f" there, {mine} here; take runs of one dataset and preparation."
                )
    predict = mean_of([each.predict for each in found])
    return dataclasses.replace(
        found[0], predict=with_flips(predict) if flips else predict
    )


def _load(run: Path, *, batch_size: int, tile: int | None) -> Segmenter:
    config = rundir.read_config(run)
    dataset = read_json(run / "dataset.json")
    methods = {name: building.build_method(config[name]) for name in config.stages}
    able = [name for name in config.stages if methods[name].predict is not None]
    if not able:
        raise UserError(f"{run} trained no segmentation; its stages: {config.stages}.")
    name = able[-1]
    building.check_finished(run / name)
    step, params, batch_stats = load_weights(run / name / "checkpoints")
    log.info("weights of %s, step %d", run / name, step)
    state = TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state={},
        model_state={"batch_stats": batch_stats},
        method_state={},
    )
    return Segmenter(
        predict=scoring.volume_predictor(
            methods[name],
            state,
            crop_size=tuple(config[name].data.crop_size),
            batch_size=batch_size,
            tile=tile,
        ),
        options=options_of(run, config.data.prepare, slice_axis=dataset["slice_axis"]),
        class_names=tuple(dataset["class_names"]),
        label_values=tuple(dataset["label_values"]),
        channel=dataset["channel"],
    )


def options_of(
    run: Path, prepare: ml_collections.ConfigDict, *, slice_axis: int
) -> Options:
    """How a run prepared its volumes.

    Args:
        run: the run directory, for the message.
        prepare: `config.data.prepare` as the run saved it.
        slice_axis: the one that most of its volumes were sliced along.

    Raises:
        UserError: a setting is missing or unknown: another version saved it.
    """
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in settings(prepare).items()
        if key not in ("workers", "slice_axis")
    }
    what = f"config.data.prepare of {run}"
    return checked_call(Options, what, slice_axis=slice_axis, **values)


def cases_of(paths: Sequence[Path], *, channel: int) -> list[Case]:
    """One case a volume.

    Args:
        paths: NIfTI images.
        channel: the one to read of 4-D files; -1: every frame of them is a volume.

    Raises:
        UserError: two files would be predicted into the same file, or one lacks the
            channel.
    """
    cases: dict[str, Case] = {}
    for path in dict.fromkeys(paths):
        for suffix, index in _volumes_of(path, channel):
            name = safe_name(stem(path)) + suffix
            if name in cases:
                raise UserError(
                    f"{path} and {cases[name].image_path} would both be written to"
                    f" {name}.nii.gz; predict them into different folders."
                )
            cases[name] = _case(name, path, index)
    return list(cases.values())


def _volumes_of(path: Path, channel: int) -> list[tuple[str, int | None]]:
    """(suffix of the name, index on the fourth axis) of what is read of a file."""
    frames = num_frames(path)
    if frames == 1:
        return [("", None)]
    if channel < 0:
        return [(f"_frame{index:02d}", index) for index in range(frames)]
    if channel >= frames:
        raise UserError(
            f"{path} has {frames} channels, but the run was trained on channel"
            f" {channel}, counted from 0; give images like those of the training."
        )
    return [("", channel)]


def _case(name: str, path: Path, time_index: int | None) -> Case:
    return Case(
        name=name,
        patient=name,
        frame="",
        image_path=path,
        label_path=None,
        time_index=time_index,
    )


def predict_files(
    segmenter: Segmenter,
    paths: Sequence[Path],
    out: Path,
    *,
    overwrite: bool = False,
    skip: bool = False,
    probabilities: bool = False,
) -> list[Path]:
    """Writes `<name>.nii.gz` for every volume, each whole or not at all.

    Args:
        segmenter: from `load_segmenter`.
        paths: NIfTI images, 3-D or 4-D.
        out: folder for the label files, on the grid of their image.
        overwrite: replace files that are there, which may be labels drawn by hand.
        skip: leave out volumes whose label file is there, as after a stop.
        probabilities: write `<name>_probabilities.nii.gz`, [X, Y, Z, K] float32, first.

    Returns:
        The label files.

    Raises:
        UserError: a file would be overwritten; the first file that cannot be used or
            written, while earlier ones stay written.
    """
    cases = cases_of(paths, channel=segmenter.channel)
    targets = [out / f"{case.name}.nii.gz" for case in cases]
    _check_spared(targets, paths, overwrite=overwrite or skip)
    for number, (case, target) in enumerate(zip(cases, targets, strict=True), start=1):
        if skip and target.exists():
            log.info("predict %d/%d %s: is there", number, len(cases), target)
            continue
        start = time.monotonic()
        probs, geometry = segmenter.probabilities(case)
        if probabilities:
            whole = restore_probabilities(probs, geometry)
            beside = out / f"{case.name}_probabilities.nii.gz"
            write_volume(beside, whole, like=case.image_path)
        label = restore_label(probs, geometry, label_values=segmenter.label_values)
        write_volume(target, label, like=case.image_path)
        log.info(
            "predict %d/%d %s: %s; %.1f s",
            number,
            len(cases),
            target,
            _voxels(label, segmenter),
            time.monotonic() - start,
        )
    return targets


def _check_spared(
    targets: Sequence[Path], images: Sequence[Path], *, overwrite: bool
) -> None:
    """Raises UserError where a label file would replace an image, or any file."""
    resolved = {image.resolve() for image in images}
    for target in targets:
        if target.resolve() in resolved:
            raise UserError(
                f"{target} is one of the images and would be overwritten; choose"
                " another --out."
            )
        if target.exists() and not overwrite:
            raise UserError(
                f"{target} exists; choose another --out, or add --overwrite to replace"
                " what is there."
            )


def _voxels(label: np.ndarray, segmenter: Segmenter) -> str:
    named: Any = zip(segmenter.class_names, segmenter.label_values, strict=True)
    counted = [f"{name} {int((label == value).sum())}" for name, value in named]
    return "voxels of " + ", ".join(counted[1:])
