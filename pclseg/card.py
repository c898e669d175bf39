"""The model card: what a network is, expects, has seen and scored, from its run."""

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from pclseg import rundir
from pclseg.data.prepare import Options
from pclseg.files import read_json
from pclseg.network import Network

AXES = ("sagittal", "coronal", "axial")


def write_card(
    runs: Sequence[Path], networks: Sequence[Network], folder: Path, *, licence: str
) -> str:
    """The card as Markdown. It names no patient and no path of this machine.

    Args:
        runs: run directories.
        networks: of the same runs.
        folder: where the model will lie, for the examples.
        licence: of the weights, such as "CC-BY-4.0"; "" where it is not stated.
    """
    first = networks[0]
    start = read_json(runs[0] / "run.json")[-1]
    stages = {name for run in runs for name in _methods(run)}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pclseg"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.jinja").render(
        name=folder.name,
        folder=folder.name,
        licence=licence,
        version=start["pclseg"],
        commit=start["commit"],
        networks=len(networks),
        images=f"{AXES[int(first.options.slice_axis)]} slices of volumes",
        classes=list(zip(first.class_names, first.label_values, strict=True)),
        expects=_expects(first.options, first.channel),
        runs=[{"data": _data(run), "stages": _stages(run)} for run in runs],
        tolerance=rundir.read_config(runs[0]).evaluate.tolerance_mm,
        scores=[row for i, run in enumerate(runs, 1) for row in _scores(run, i)],
        sources=sorted(_source(name) for name in stages),
    )


def _expects(options: Options, channel: int) -> list[str]:
    spacing = [size for size in options.spacing if size]
    lines = [
        "a NIfTI file with a right affine; any orientation, which the label file keeps",
        f"intensities as exported: clipped to the percentiles"
        f" {options.clip_percentiles[0]:g} and {options.clip_percentiles[1]:g} of the"
        " volume and normalised inside",
    ]
    if spacing:
        size = " x ".join(f"{value:g}" for value in spacing)
        lines.append(f"any voxel size: slices are resampled to {size} mm inside")
    else:
        lines.append("voxels as large as those it was trained on: none are resampled")
    if channel >= 0:
        lines.append(f"of a file of several channels, number {channel} is read")
    return lines


def _data(run: Path) -> str:
    config, dataset = rundir.read_config(run), read_json(run / "dataset.json")
    fold = read_json(run / "splits.json")["folds"][config.data.split.fold]
    seen = read_json(run / config.stages[-1] / "patients.json")
    return (
        f"dataset {dataset['name']}, prepared as {dataset['fingerprint']}; labels of"
        f" {len(seen['labels'])} patients, {len(fold['validation'])} patients held out"
        f" (fold {config.data.split.fold}, seed {config.seed})."
    )


def _methods(run: Path) -> list[str]:
    config = rundir.read_config(run)
    return [config[name].method.name for name in config.stages]


def _stages(run: Path) -> list[str]:
    config = rundir.read_config(run)
    lines = []
    for name in config.stages:
        stage = config[name]
        done = read_json(run / name / "done.json")
        seen = read_json(run / name / "patients.json")
        labelled = stage.data.subset == "labelled"
        patients = len(seen["labels" if labelled else "images"])
        lines.append(
            f"{name}: {stage.method.name}, {done['steps']} steps of"
            f" {stage.data.batch_size} slices of {patients} patients,"
            f" {stage.optimizer.name} at {stage.optimizer.peak_lr:g}, width"
            f" {stage.model.width}"
        )
    return lines


def _scores(run: Path, number: int) -> list[list[str]]:
    path = run / "summary.json"
    if not path.is_file():
        return []

    def shown(values: dict[str, Any], digits: int) -> str:
        if values["mean"] is None:
            return "-"
        spread = "" if values["sd"] is None else f" ± {values['sd']:.{digits}f}"
        return f"{values['mean']:.{digits}f}{spread}"

    return [
        [
            str(number),
            name,
            shown(values["dice"], 3),
            shown(values["hd95_mm"], 2),
            shown(values["nsd"], 3),
            str(values["dice"]["n"]),
        ]
        for name, values in read_json(path)["classes"].items()
    ]


def _source(method: str) -> str:
    """The method's own words: what it is, and the paper."""
    text = inspect.getdoc(importlib.import_module(f"pclseg.methods.{method}")) or ""
    return f"{method}: {' '.join(text.split())}"
