"""A trained model as one file that runs without pclseg: a `jax.export` artefact."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, export

from pclseg import __version__, building, network
from pclseg.data.geometry import AS_STORED, SLICES
from pclseg.data.prepare import Options, prepare_array
from pclseg.errors import UserError
from pclseg.evaluation.inference import MULTIPLE
from pclseg.files import check_new, replacing
from pclseg.network import Network
from pclseg.templating import render
from pclseg.trained import predictor

Array = jax.Array
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-4  # of probabilities, against pclseg itself
_CHECKED = ((3, 45, 70), (2, 64, 64))
# Where canonical axes run to.
_TOWARDS = ("the right", "the front", "the head")


def write_export(
    folder: Path, networks: Sequence[Network], *, platforms: Sequence[str] = PLATFORMS
) -> float:
    """Writes model.jax_export and a README.md that says how to call it.

    Args:
        folder: must not exist; it appears whole or not at all.
        networks: alike.
        platforms: "cpu", "cuda", "tpu": where it is to run.

    Returns:
        The largest difference of probabilities to those of pclseg, on noise.

    Raises:
        UserError: the networks are not alike, the folder exists or cannot be written,
            or the numbers differ by more than TOLERANCE.
    """
    check_new("the folder", folder)
    here = _platform()
    if here not in platforms:
        raise UserError(
            f"--platforms is {' '.join(platforms)}; add {here}, this machine's, where"
            " the numbers are checked."
        )
    data = export_model(networks, platforms=platforms).serialize()
    apart = _difference(data, networks)
    if not apart <= TOLERANCE:
        raise UserError(
            f"the exported function differs from pclseg by {apart:.2g} in probability;"
            " nothing was written: report this with the versions of `pclseg doctor`."
        )
    first = networks[0]
    axis, rows, columns = _axes(first.options)
    channels = first.num_channels
    text = render(
        "export.md.jinja",
        name=folder.name,
        platforms=platforms,
        jax=jax.__version__,
        as_stored=first.options.slice_axis == AS_STORED,
        axis=SLICES[axis],
        towards=f"towards {_TOWARDS[axis]}",
        rows=_TOWARDS[rows],
        columns=_TOWARDS[columns],
        spacing=_spacing(first.options.spacing),
        classes=list(zip(first.class_names, first.label_values, strict=True)),
        networks=len(networks),
        checked=[" x ".join(map(str, shape)) for shape in _CHECKED],
        version=__version__,
        apart=f"{apart:.1g}",
        here=here,
        clipped=tuple(first.options.clip_percentiles) != (0, 100),
        order=_axes(first.options),
        shape=f"[Z, H, W, {channels}]" if channels > 1 else "[Z, H, W]",
        channels=first.channels if channels > 1 else (),
    )
    with replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "model.jax_export").write_bytes(data)
        (temporary / "README.md").write_text(text, encoding="utf-8")
    return apart


def _platform() -> str:
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


def _axes(options: Options) -> list[int]:
    """Canonical axes of [Z, H, W], as `geometry.prepared_geometry` has them."""
    if options.slice_axis == AS_STORED:
        return [2, 1, 0]  # of the file
    along = int(options.slice_axis)
    return [along, *sorted({0, 1, 2} - {along}, reverse=True)]


def _spacing(spacing: Sequence[float]) -> str:
    if not any(spacing):
        return "Pixels are as large as in the training: none were resampled."
    sizes = [f"{size:g} mm" if size else "the file's" for size in spacing]
    return f"Pixels (H x W) are {' x '.join(sizes)}: resample yours to that."


def _difference(data: bytearray, networks: Sequence[Network]) -> float:
    """The largest difference of probabilities between the artefact and pclseg."""
    exported = export.deserialize(data)
    generator = np.random.default_rng(0)
    options = networks[0].options
    most = 0.0
    channels = networks[0].num_channels
    for shape in _CHECKED:
        noise = generator.normal(100, 30, (*shape, channels)).astype(np.float32)
        as_in_a_file = [
            channel.transpose(np.argsort(_axes(options)))
            for channel in np.moveaxis(noise, -1, 0)
        ]
        image, _, _ = prepare_array(
            as_in_a_file, np.eye(4), dataclasses.replace(options, spacing=())
        )
        wanted = predictor(networks, batch_size=1)(image)
        volume = noise if channels > 1 else noise[..., 0]
        found = np.asarray(exported.call(volume)[1])
        most = max(most, float(np.abs(found - wanted).max()))
    return most


def export_model(
    networks: Sequence[Network], *, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """The function `volume [Z, H, W] -> (labels, probabilities)`, compiled for export.

    The volume is float32 with intensities as in the file, its slices along the first
    axis and already resampled to the spacing of the options; Z, H and W are free. Of a
    network of several channels it is [Z, H, W, C].
    Inside are clipping, normalisation, padding, the networks, their mean, and the
    values of labels. Labels are int32 [Z, H, W], probabilities float32 [Z, H, W, K].

    Raises:
        UserError: the networks are not alike.
    """
    network.check_alike(networks)
    z, h, w = export.symbolic_shape("z, h, w", constraints=("z >= 2",))
    channels = networks[0].num_channels
    last = (channels,) if channels > 1 else ()
    shape = jax.ShapeDtypeStruct((z, h, w, *last), jnp.float32)
    function = jax.jit(as_function(networks))
    return export.export(function, platforms=platforms)(shape)


def as_function(networks: Sequence[Network]) -> Callable[[Array], tuple[Array, Array]]:
    """What `export_model` exports, as a pure function."""
    first = networks[0]
    values = jnp.asarray(first.label_values, jnp.int32)
    members = [
        (building.build_method(each.stage).predict, each.state(), each.stage)
        for each in networks
    ]

    def segment(volume: Array) -> tuple[Array, Array]:
        image = volume if volume.ndim == 4 else volume[..., None]
        normalise = functools.partial(_normalised, options=first.options)
        image = jnp.stack(
            [normalise(image[..., c]) for c in range(image.shape[-1])], axis=-1
        )
        each = [
            _probabilities(
                functools.partial(predict, state),
                image,
                least=tuple(stage.data.crop_size),
            )
            for predict, state, stage in members
            if predict is not None  # a Network segments
        ]
        probs = functools.reduce(jnp.add, each) / len(each)
        return values[jnp.argmax(probs, axis=-1)], probs

    return segment


def _normalised(volume: Array, options: Options) -> Array:
    """As `data.volume.prepare_image` does after resampling."""
    image = jnp.trunc(volume) if options.integers else volume
    if tuple(options.clip_percentiles) != (0, 100):
        limits = jnp.percentile(image, jnp.asarray(options.clip_percentiles))
        limits = jnp.trunc(limits) if options.integers else limits
        image = jnp.clip(image, limits[0], limits[1])
    if options.replace_below:
        limit, value = options.replace_below
        image = jnp.where(image < limit, value, image)
    # About 0 and 1, and summed slice by slice, or the rounding of float32 would show.
    image = image - image[0, 0, 0]
    image = image / jnp.abs(image).max()
    centred = image - image.mean(axis=(1, 2)).mean()
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=(1, 2)).mean())


def _probabilities(
    predict: Callable[[Array], Array], image: Array, *, least: tuple[int, int]
) -> Array:
    """As `evaluation.inference.predict_volume` does, one slice at a time."""
    _, height, width, _ = image.shape
    high, wide = (
        -(-core.max_dim(size, at_least) // MULTIPLE) * MULTIPLE
        for size, at_least in zip((height, width), least, strict=True)
    )
    top, left = (high - height) // 2, (wide - width) // 2

    def of_slice(plane: Array) -> Array:
        around = ((top, high - height - top), (left, wide - width - left), (0, 0))
        logits = predict(jnp.pad(plane, around)[None])[0]
        logits = jax.lax.dynamic_slice(
            logits, (top, left, 0), (height, width, logits.shape[-1])
        )
        return jax.nn.softmax(logits.astype(jnp.float32))

    return jax.lax.map(of_slice, image)
