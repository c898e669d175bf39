"""Pages of the site that are written from the code: commands, and keys of configs."""

import contextlib
import importlib
import inspect
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pclseg import augment, methods
from pclseg.__main__ import COMMANDS, main
from pclseg.augment import spatial
from pclseg.config import load_config
from pclseg.data import geometry, prepare, volume
from pclseg.data.datasets import nifti
from pclseg.methods import action_pp, pcl, tcsm
from pclseg.models import unet2d
from pclseg.parts.anatomical import anatomical_term
from pclseg.parts.distillation import distillation
from pclseg.parts.equivariance import equivariance_term
from pclseg.parts.neighbours import neighbour_term
from pclseg.parts.pseudo_labels import pseudo_labelled
from pclseg.parts.tail import tail_term
from pclseg.parts.two_views import two_views
from pclseg.train import optimizer

ROOT = Path(__file__).resolve().parents[2]
# Where the keys of a section are explained: what takes them, the last one counts.
SECTIONS: list[tuple[str, Any]] = [
    ("data.options", nifti.make),
    ("data.prepare", prepare.prepare),
    ("data.prepare", geometry.prepared_geometry),
    ("data.prepare", volume.prepare_image),
    ("data.prepare", volume.prepare_label),
    ("*.method", pcl.make),
    ("*.model", unet2d.UNet2D),
    ("*.model", unet2d.UNet2DContrast),
    ("*.augment", spatial.make),
    ("*.optimizer", optimizer.make),
]
# What explains settings of several methods.
SHARED: list[Any] = [
    tcsm.make,
    two_views,
    distillation,
    anatomical_term,
    tail_term,
    equivariance_term,
    neighbour_term,
    action_pp.centre_term,
    pseudo_labelled,
]
# The keys that no single function takes.
MEANT = {
    "arm": "the name of this kind of run in tables",
    "seed": "of weights, batches and augmentation",
    "stages": "sections that are trained, in this order",
    "wandb": "a project at Weights & Biases for a copy of the scalars, or empty",
    "data.name": "the dataset, a file of pclseg/data/datasets",
    "data.raw_dir": "folder of its files",
    "data.store_dir": "where prepared volumes are kept, by content; may be shared",
    "data.transductive": "may pre-training see images of scored patients?",
    "data.pipeline": "tf or numpy, which give the same batches, or device: the slices"
    " of a stage lie in device memory",
    "data.device_dtype": "of the slices there: float32, float16, int16 or uint8",
    "data.split.file": "a JSON file of folds, in place of drawn ones",
    "data.split.folds": "number of folds, by patient",
    "data.split.fold": "the one whose validation patients are held out, from 0",
    "data.split.labelled": "training patients whose labels are used; 0: all",
    "data.split.fold_seed": "of the folds",
    "data.split.draw_seed": "of the draw of labelled patients",
    "data.split.holdout": "labelled patients of the training side to score in place of"
    " the fold's, for tuning",
    "*.init_from": "an earlier stage, RUN/STAGE of another run, or empty",
    "*.init_parts": "what is taken from there: encoder, decoder",
    "*.data.subset": "train: images of all training patients; labelled: those with"
    " labels in use",
    "*.data.crop_size": "rows and columns in pixels, multiples of 16; smaller slices"
    " are padded with 0",
    "*.data.random_crop": "at a random place, else in the centre",
    "*.data.batch_size": "slices a step, on all devices together",
    "*.data.sampling": "slices, or partitions: a slice of every quarter of the height",
    "*.data.last_batch": "of an epoch: drop, or fill up with slices of the same epoch",
    "*.data.unlabelled_batch_size": "slices a step of a second stream without labels",
    "*.train.epochs": "length, or 0 where steps say it",
    "*.train.steps": "length, or 0 where epochs say it",
    "*.train.log_every": "steps between log lines",
    "*.train.checkpoint_every": "steps between checkpoints",
    "*.train.keep": "checkpoints that are kept",
    "*.method.name": "see Methods",
    "*.model.name": "see Models",
    "*.augment.name": "see Augmentations",
    "evaluate.every_epochs": "epochs between validations",
    "evaluate.batch_size": "slices a forward pass",
    "evaluate.tolerance_mm": "of the normalised surface distance",
    "evaluate.grid": "that cases are scored on: of the file, or prepared",
}


def pages() -> dict[str, str]:
    """Markdown by file name."""
    return {"commands.md": commands(), "config.md": config()}


def commands() -> str:
    """What `--help` of every command says."""
    parts = ["# Commands\n\n`pclseg COMMAND ...`, or `python -m pclseg COMMAND ...`.\n"]
    for name, (_, what) in COMMANDS.items():
        parts.append(f"\n## {name}\n\n{what[0].upper()}{what[1:]}.\n")
        parts.append(f"\n```text\n{_help(name).rstrip()}\n```\n")
    return "".join(parts)


def _help(name: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main([name, "--help"])
        except SystemExit:
            pass
    return out.getvalue()


def config() -> str:
    """Every key of `configs/pcl_acdc.py`, with its value and what it means."""
    settings = load_config(f"{ROOT}/configs/pcl_acdc.py")
    meant = dict(_explained())
    parts = [
        "# Keys of a config\n\nEvery key is in every config and is changed by"
        " `--config.KEY=VALUE`; a file may leave out `wandb` alone. The values"
        " shown are those of `configs/pcl_acdc.py`;"
        " keys of `finetune` that `pretrain` has too mean the same. Methods and"
        " augmentations have keys of their own, shown below.\n"
    ]
    parts.append("\n## The run\n\n| key | value | meaning |\n| --- | --- | --- |\n")
    parts.append(
        "".join(
            f"| `{key}` | `{settings[key]!r}` | {_cell(meant[key])} |\n"
            for key in ("arm", "seed", "stages", "wandb")
        )
    )
    for section in ("data", "pretrain", "finetune", "evaluate"):
        rows = [
            f"| `{section}.{key}` | `{value!r}` |"
            f" {_cell(meant.get(f'{section}.{key}', meant.get(f'*.{key}', '')))} |"
            for key, value in _flat(settings[section].to_dict())
        ]
        parts.append(
            f"\n## {section}\n\n| key | value | meaning |\n| --- | --- | --- |\n"
        )
        parts.append("\n".join(rows) + "\n")
    for title, package in (
        ("Methods", methods),
        ("Augmentations", augment),
    ):
        parts.append(f"\n## {title}\n")
        parts.extend(_modules(package))
    return "".join(parts)


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, dict):
            yield f"{prefix}{key}", value


def _explained() -> Iterator[tuple[str, str]]:
    yield from MEANT.items()
    for section, source in SECTIONS:
        for name, text in arguments(source).items():
            yield f"{section}.{name}", text


def _modules(package: Any) -> Iterator[str]:
    """A table of arguments for each module of the package that has a `make`."""
    for path in sorted(Path(package.__path__[0]).glob("*.py")):
        module = importlib.import_module(f"{package.__name__}.{path.stem}")
        make = getattr(module, "make", None)
        if path.stem.startswith("_") or make is None:
            continue
        summary = (inspect.getdoc(module) or "").partition("\n")[0]
        yield f"\n### {path.stem}\n\n{summary}\n\n"
        # Some say that their arguments are those of others, which they import.
        others = [f for f in SHARED if f.__name__ in vars(module)]
        explained = {k: v for f in (*others, make) for k, v in arguments(f).items()}
        rows = [
            f"| `{name}` | {_cell(explained.get(name, ''))} |"
            for name in inspect.signature(make).parameters
            if name not in ("model", "augment", "axis_name")
        ]
        if rows:
            yield "| key | meaning |\n| --- | --- |\n" + "\n".join(rows) + "\n"


def arguments(function: Any) -> dict[str, str]:
    """{argument: what the docstring says of it}."""
    text = inspect.getdoc(function) or ""
    found = re.search(r"\n(?:Args|Attributes):\n(.*?)(?=\n\S|\Z)", text, re.S)
    explained: dict[str, str] = {}
    name = ""
    for line in (found[1] if found else "").splitlines():
        start = re.match(r"    (\*{0,2}\w+): (.*)", line)
        if start:
            name, explained[start[1]] = start[1], start[2]
        elif name and line.strip():
            explained[name] += f" {line.strip()}"
    return explained


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
