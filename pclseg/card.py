"""The model card: what a network is, expects, has seen and scored, from its run."""

import importlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from pclseg import rundir
from pclseg.data.channels import Channel
from pclseg.data.geometry import AS_STORED, SLICES
from pclseg.data.prepare import Options
from pclseg.errors import UserError
from pclseg.evaluation.cases import read_cases
from pclseg.files import read_json
from pclseg.network import Network
from pclseg.reports.runs import grid_of
from pclseg.reports.stages import read_fingerprints
from pclseg.templating import render

# Licences by the names that the Hugging Face hub takes in the head of a card.
_HUB_LICENCES = frozenset(
    "apache-2.0 mit bsd-2-clause bsd-3-clause gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 cc0-1.0"
    " cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-sa-4.0 cc-by-nc-nd-4.0"
    " openrail unlicense".split()
)


def write_card(
    runs: Sequence[Path], networks: Sequence[Network], name: str, *, licence: str
) -> str:
    """The card as Markdown. It names no patient and no path of this machine.

    Args:
        runs: run directories.
        networks: of the same runs.
        name: of the folder of the model, for title and examples.
        licence: of the weights, such as "CC-BY-4.0"; "" where it is not stated.

    Raises:
        UserError: a file of a run is missing or damaged, or the licence has several
            lines.
    """
    if len(licence.splitlines()) > 1:
        raise UserError("--licence has line breaks; name it in one line.")
    about = []
    for run in runs:
        try:
            about.append(_about(run))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(
                f"a JSON file in {run} is not as a run writes it ({error!r}): a hand or"
                " another version changed it; restore it, or train again."
            ) from error
    first = networks[0]
    sources = {method for run in about for method in run["methods"]}
    return render(
        "model_card.md.jinja",
        name=name,
        head=_head(licence),
        licence=licence,
        versions=sorted({run["version"] for run in about}),
        channels=first.num_channels,
        images=_images(first.options),
        classes=list(zip(first.class_names, first.label_values, strict=True)),
        expects=_expects(first.options, first.channels, about[0]["pixel"]),
        runs=about,
        scores=[
            [str(number), *row]
            for number, run in enumerate(about, 1)
            for row in run["scores"]
        ],
        foreign=any(run["foreign"] for run in about),
        sources=[_source(name) for name in sorted(sources)],
    )


def _head(licence: str) -> list[str]:
    """The lines of YAML that say the licence as the Hugging Face hub takes them."""
    known = licence.strip().lower()
    if known in _HUB_LICENCES:
        return [f"license: {known}"]
    if not known:
        return ["license: unknown"]
    return ["license: other", f"license_name: {json.dumps(licence.strip())}"]


def _images(options: Options) -> str:
    if options.slice_axis == AS_STORED:
        return "slices, along the third axis of their files, of volumes"
    return f"{SLICES[int(options.slice_axis)]} slices of volumes"


def _expects(
    options: Options, channels: Sequence[Channel], pixel: Sequence[float]
) -> list[str]:
    low, high = options.clip_percentiles
    clipped = (
        "normalised inside, not clipped"
        if (low, high) == (0, 100)
        else f"clipped to the percentiles {low:g} and {high:g} of the volume, and"
        " normalised, inside"
    )
    stored = "any orientation, which the label file keeps"
    if options.slice_axis == AS_STORED:
        stored = "stored as in the training, for the third axis is sliced as it is"
    lines = [
        f"a NIfTI file with a right affine; {stored}",
        f"intensities as exported: {clipped}",
    ]
    if options.integers:
        lines.append("intensities in whole numbers, as of CT: fractions are dropped")
    if options.replace_below:
        limit, value = options.replace_below
        lines.append(f"what is below {limit:g} is taken for {value:g}")
    if any(options.spacing):
        sizes = [f"{size:g} mm" if size else "the file's" for size in options.spacing]
        lines.append(
            f"any pixel size: slices are resampled to {' x '.join(sizes)} (rows x"
            " columns) inside"
        )
    else:
        rows, columns = pixel
        lines.append(
            f"pixels about as large as in the training, {rows:.3g} x {columns:.3g} mm"
            " (rows x columns, medians): none are resampled"
        )
    if len(channels) > 1:
        numbered = isinstance(channels[0], int)
        lines.append(
            f"{len(channels)} channels on one grid, in this order:"
            f" {', '.join(map(str, channels))}"
            f"{', as numbered in a 4-D file or in x_0000.nii.gz' if numbered else ''}"
        )
    elif channels:
        number = channels[0]
        lines.append(f"of a file of several channels, number {number}, counted from 0")
    else:
        lines.append("of a 4-D file every frame is segmented by itself")
    return lines


def _about(run: Path) -> dict[str, Any]:
    config, dataset = rundir.read_config(run), read_json(run / "dataset.json")
    start = read_json(run / "run.json")[-1]
    marks = ", earlier ".join(read_fingerprints(run))
    commit = f" ({start['commit']})" if start["commit"] else ""
    stages, methods, foreign = [], set(), False
    for name in config.stages:
        start_from = config[name].init_from
        if start_from and start_from not in config.stages:
            line, method = _other_stage(Path(start_from))
            stages.append(f"before {name}: {line}")
            methods |= {method} - {""}
            foreign = True
        stages.append(_stage(run / name, config[name]))
        methods.add(config[name].method.name)
    return {
        "version": f"{start['pclseg']}{commit}",
        "data": f"dataset {dataset['name']}, prepared as {marks}; fold"
        f" {config.data.split.fold}, seed {config.seed}.",
        "stages": stages,
        "methods": methods,
        "pixel": dataset["spacing"][1:],
        "foreign": foreign,
        "scored": _scored(run, config),
        "scores": _scores(run, dataset["class_names"][1:]),
    }


def _stage(folder: Path, stage: ml_collections.ConfigDict) -> str:
    """One line on what a stage did; of a folder that is gone, what its config says."""
    what = (
        f"{folder.name}: {stage.method.name}, batches of {stage.data.batch_size} slices"
    )
    if stage.data.unlabelled_batch_size:
        what += f" and {stage.data.unlabelled_batch_size} without label"
    try:
        done = read_json(folder / "done.json")
        seen = read_json(folder / "patients.json")
        kinds = f"images of {len(seen['images'])} patients"
        if seen["labels"]:
            kinds += f" and labels of {len(seen['labels'])} of them"
        seen_so_far = f"{done['steps']} steps; seen by its end: {kinds}"
        if done.get("warning"):
            seen_so_far += f"; its last warning: {done['warning']}"
    except UserError:
        seen_so_far = "its folder is gone"
    rate = f"{stage.optimizer.name} at {stage.optimizer.peak_lr:g}"
    return f"{what}, {rate}, width {stage.model.width}; {seen_so_far}"


def _other_stage(folder: Path) -> tuple[str, str]:
    """(a line on the stage of another run that weights came from, its method)."""
    try:
        if (folder / "import.json").is_file():
            return "weights of the PCL authors' PyTorch code, imported", "pcl"
        config = rundir.read_config(folder.parent)
        return _stage(folder, config[folder.name]), config[folder.name].method.name
    except (UserError, KeyError):
        return "weights of another run, which is gone", ""


def _scored(run: Path, config: ml_collections.ConfigDict) -> str:
    """Who was scored, and what the network had seen of them."""
    if not (run / "cases.csv").is_file():
        return ""
    rows = read_cases(run / "cases.csv")
    scored = {row["patient"] for row in rows}
    seen = set()
    for name in config.stages:
        path = run / name / "patients.json"
        seen |= set(read_json(path)["images"]) if path.is_file() else set()
    learnt = (
        "none of whose labels it learnt from, but whose images it saw in training"
        " (transductive)"
        if scored & seen
        else "none of whom it saw in training"
    )
    cases = len({row["case"] for row in rows})
    tolerance, grid = config.evaluate.tolerance_mm, grid_of(config)
    return (
        f"{cases} cases of {len(scored)} patients, {learnt}. Scored on {grid}; NSD at"
        f" {tolerance:g} mm."
    )


def _scores(run: Path, class_names: Sequence[str]) -> list[list[str]]:
    path = run / "summary.json"
    if not path.is_file():
        return []
    classes = read_json(path)["classes"]

    def shown(values: dict[str, Any], digits: int) -> str:
        if values["mean"] is None:
            return "-"
        spread = "" if values["sd"] is None else f" ± {values['sd']:.{digits}f}"
        return f"{values['mean']:.{digits}f}{spread}"

    return [
        [
            name,
            shown(classes[name]["dice"], 3),
            shown(classes[name]["hd95_mm"], 2),
            shown(classes[name]["nsd"], 3),
            str(classes[name]["dice"]["n"]),
        ]
        for name in class_names
    ]


def _source(method: str) -> str:
    """The method's own words: what it is, and the paper."""
    text = inspect.getdoc(importlib.import_module(f"pclseg.methods.{method}")) or ""
    return f"{method}: {' '.join(text.split())}"
