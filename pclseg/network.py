"""Trained segmentation networks, from run directories and from model folders."""

import dataclasses
import hashlib
import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pclseg import __version__, building, rundir
from pclseg.data.channels import Channel, checked_saved
from pclseg.data.datasets.base import LARGEST
from pclseg.data.geometry import AS_STORED
from pclseg.data.prepare import Options, prepare_array
from pclseg.errors import UserError
from pclseg.evaluation import components
from pclseg.files import check_new, read_json, replacing, write_json
from pclseg.named import checked_call
from pclseg.state import TrainState
from pclseg.train.checkpoint import load_weights

log = logging.getLogger(__name__)

MODEL_FILE = "model.json"
FORMAT = 2  # of a model folder
# What a JSON file raises that is not as it should be.
_ODD = (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError)
_HUB = "hf://"
_LEAST_MM = 1e-2  # of a pixel
# Of a stage's config what training alone needs, such as paths of the machine.
_TRAINING_ONLY = ("init_from", "init_parts", "train", "optimizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What is needed to segment new images.

    Attributes:
        source: where it comes from, for messages.
        stage: the section of the config that it was trained by.
        step: how many steps it was trained.
        params: nested dicts of float32 arrays.
        batch_stats: likewise.
        options: how images are prepared.
        class_names: of class id 0, 1, ..., the background first.
        label_values: of the same classes in label files.
        channels: what those of an image of several are called, see `data.channels`; ()
            for an image of one, each frame of a 4-D file by itself.
        gains: what keeping the largest part of a class alone did to held-out cases, see
            `components.summarise_gains`; None where it was not asked.
    """

    source: str
    stage: ml_collections.ConfigDict
    step: int
    params: Mapping[str, Any]
    batch_stats: Mapping[str, Any]
    options: Options
    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    channels: tuple[Channel, ...]
    gains: Mapping[str, Mapping[str, Any]] | None

    @property
    def num_channels(self) -> int:
        """How many channels an image has."""
        return len(self.channels) or 1

    def state(self) -> TrainState:
        """What `Method.predict` takes."""
        return TrainState(
            step=jnp.int32(self.step),
            params=self.params,
            opt_state={},
            model_state={"batch_stats": self.batch_stats},
            method_state={},
        )


def read(where: Path | str) -> list[Network]:
    """The networks of a run directory (one) or of a model folder.

    Args:
        where: the folder; or hf://OWNER/NAME, or hf://OWNER/NAME@REVISION, of a model
            on the Hugging Face hub. Downloads are kept where the environment variable
            HF_HOME says; with HF_HUB_OFFLINE=1 nothing is asked of the network.

    Raises:
        UserError: it is neither, not finished, damaged, or of another version.
    """
    if str(where).startswith(_HUB):
        return _of_model(_fetched(str(where)))
    path = Path(where)
    if (path / MODEL_FILE).is_file():
        return _of_model(path)
    return [of_run(path)]


def of_run(run: Path) -> Network:
    """The last segmentation stage of a finished run.

    Raises:
        UserError: `run` is no run directory, or that stage is not finished.
    """
    config = rundir.read_config(run)
    dataset = read_json(run / "dataset.json")
    methods = {name: building.build_method(config[name]) for name in config.stages}
    able = [name for name in config.stages if methods[name].predict is not None]
    if not able:
        raise UserError(f"{run} trained no segmentation; its stages: {config.stages}.")
    name = able[-1]
    prepare = config.data.prepare.to_dict()
    del prepare["workers"]
    as_stored = prepare["slice_axis"] == AS_STORED
    building.check_finished(run / name)
    step, params, batch_stats = load_weights(run / name / "checkpoints")
    log.info("weights of %s, step %d", run / name, step)
    try:
        # The canonical axis that most volumes were sliced along, channels, classes.
        axis, channels = dataset["slice_axis"], checked_saved(dataset["channels"])
        names, values = dataset["class_names"], dataset["label_values"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run}/dataset.json is not as a run writes it ({error!r}): a hand or"
            " another version changed it; restore it, or train again."
        ) from error
    network = Network(
        source=str(run),
        stage=config[name],
        step=step,
        params=params,
        batch_stats=batch_stats,
        options=options_of(
            f"config.data.prepare of {run}",
            prepare | ({} if as_stored else {"slice_axis": axis}),
        ),
        class_names=tuple(names),
        label_values=tuple(values),
        channels=channels,
        gains=read_json(gains) if (gains := run / components.FILE).is_file() else None,
    )
    return _fitting(network, run / "dataset.json")


def options_of(what: str, values: Mapping[str, Any]) -> Options:
    """How volumes are prepared, as saved in JSON.

    Args:
        what: what it is, for the message.
        values: of the fields of Options, lists for tuples.

    Raises:
        UserError: a field is missing or unknown: another version saved it.
    """
    plain = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
    }
    return checked_call(Options, what, **plain)


def check_alike(networks: Sequence[Network]) -> None:
    """Raises UserError where networks cannot predict together."""
    first = networks[0]
    for other in networks[1:]:
        for name in ("class_names", "label_values", "channels", "options"):
            mine, theirs = getattr(first, name), getattr(other, name)
            if mine != theirs:
                raise UserError(
                    f"{other.source} and {first.source} cannot predict together:"
                    f" {name} is {theirs} there, {mine} here; take runs of one dataset"
                    " and preparation."
                )


def write_model(folder: Path, networks: Sequence[Network], card: str) -> None:
    """Writes a model folder: weights, what they need, and the card.

    Weights are in safetensors files, which hold numbers and no code. The folder appears
    whole or not at all.

    Args:
        folder: must not exist.
        networks: alike, see `check_alike`.
        card: README.md.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    check_new("the folder", folder)
    check_alike(networks)
    first = networks[0]
    with replacing(folder) as temporary:
        temporary.mkdir()
        members = []
        for number, network in enumerate(networks, start=1):
            name = f"weights_{number}.safetensors"
            (temporary / name).write_bytes(save(_flat(network)))
            stage = json.loads(network.stage.to_json_best_effort())
            kept = {k: v for k, v in stage.items() if k not in _TRAINING_ONLY}
            members.append(
                {
                    "weights": name,
                    "sha256": _sha256(temporary / name),
                    "step": network.step,
                    "stage": kept,
                    "largest_part": network.gains,
                }
            )
        write_json(
            temporary / MODEL_FILE,
            {
                "format": FORMAT,
                "pclseg": __version__,
                "class_names": first.class_names,
                "label_values": first.label_values,
                "channels": first.channels,
                "prepare": dataclasses.asdict(first.options),
                "networks": members,
            },
        )
        (temporary / "README.md").write_text(card, encoding="utf-8")


def _fetched(where: str) -> Path:
    """The local copy of a model on the hub."""
    try:
        huggingface_hub = importlib.import_module("huggingface_hub")  # an extra
    except ImportError:
        raise UserError(
            f"{where} is on the Hugging Face hub, which needs `pip install"
            " huggingface_hub`."
        ) from None
    name, _, revision = where.removeprefix(_HUB).partition("@")
    patterns = [MODEL_FILE, "*.safetensors", "README.md"]
    try:
        fetched = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=patterns
        )
    except Exception as error:  # of the hub, of the network, of several libraries
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{where} cannot be fetched ({reason}); look at its name and the network."
        ) from error
    if not (Path(fetched) / MODEL_FILE).is_file():
        raise UserError(f"{where} holds no {MODEL_FILE}: it is no model of pclseg.")
    log.info("%s lies in %s", where, fetched)
    return Path(fetched)


def _of_model(folder: Path) -> list[Network]:
    """The networks of a model folder; UserError where a file is damaged."""
    path = folder / MODEL_FILE
    advice = "fetch the folder again"
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} is of format {content['format']}; this is pclseg"
                f" {__version__}, which reads format {FORMAT}: install the version that"
                " wrote it."
            )
        shared = _shared(content)
        networks = []
        for member in content["networks"]:
            tree = _read_weights(
                folder / Path(member["weights"]).name, member["sha256"]
            )
            networks.append(
                Network(
                    source=str(folder),
                    stage=ml_collections.ConfigDict(member["stage"]),
                    step=int(member["step"]),
                    params=tree.get("params", {}),
                    batch_stats=tree.get("batch_stats", {}),
                    gains=member["largest_part"],
                    **shared,
                )
            )
        if not networks:
            raise ValueError("it has no network")
    except _ODD as error:
        raise UserError(
            f"{path} is not as pclseg writes it ({error!r}); {advice}."
        ) from error
    networks = [_fitting(each, path) for each in networks]
    log.info("%d network(s) of %s", len(networks), folder)
    return networks


def _shared(content: Mapping[str, Any]) -> dict[str, Any]:
    """What all networks of a model folder have in common."""
    names, values = content["class_names"], content["label_values"]
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    whole = all(type(value) is int and abs(value) <= LARGEST for value in values)
    if not (texts and whole and len(values) == len(set(values)) == len(names) > 1):
        raise ValueError(f"label_values are {values} for the classes {names}")
    options = options_of(f"'prepare' of {MODEL_FILE}", content["prepare"])
    if options.slice_axis not in (0, 1, 2, AS_STORED):
        raise ValueError(f"slice_axis is {options.slice_axis!r}")
    if any(0 < float(size) < _LEAST_MM for size in options.spacing):
        raise ValueError(f"spacing is {options.spacing}")
    few = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    channels = checked_saved(content["channels"])
    try:
        prepare_array([few], np.eye(4), options)
    except UserError as error:  # which speaks of a config
        raise ValueError(str(error)) from error
    return dict(
        options=options,
        class_names=tuple(names),
        label_values=tuple(values),
        channels=channels,
    )


def _fitting(network: Network, about: Path) -> Network:
    """The network; UserError where its weights do not fit what the file says of it."""
    try:
        _check_fit(network)
    except Exception as error:  # of flax, which knows what a network needs
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"the weights in {about.parent} do not fit {about.name} ({reason}): it was"
            " changed by hand, or damaged; fetch it again, or train again."
        ) from error
    return network


def _check_fit(network: Network) -> None:
    """Raises some error where a network cannot predict with its weights."""
    method = building.build_method(network.stage)
    if method.predict is None:
        raise ValueError(f"{network.stage.method.name} does not segment")
    height, width = network.stage.data.crop_size
    shape = (1, height, width, network.num_channels)
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    logits = jax.eval_shape(method.predict, network.state(), image)
    if logits.shape != (1, height, width, len(network.class_names)):
        raise ValueError(
            f"logits are {logits.shape}, classes are {len(network.class_names)}"
        )
    for name, value in _flat(network).items():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise ValueError(f"{name} holds {value.dtype}, or what is not finite")


def _flat(network: Network) -> dict[str, np.ndarray]:
    tree = {"params": network.params, "batch_stats": network.batch_stats}
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {name: np.ascontiguousarray(value) for name, value in flat.items()}


def _read_weights(path: Path, sha256: str) -> dict[str, Any]:
    advice = "fetch the folder again (with `git lfs pull` where git holds it)."
    if not path.is_file():
        raise UserError(f"{path} does not exist; {advice}")
    if _sha256(path) != sha256:
        raise UserError(
            f"{path} is not the file that {MODEL_FILE} names: it is cut short, was"
            f" changed, or stands for a large file; {advice}"
        )
    try:
        return traverse_util.unflatten_dict(load_file(path), sep="/")
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); {advice}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
