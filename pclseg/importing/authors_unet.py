"""The U-Net of PCL's authors in PyTorch, leaf by leaf into the networks of `unet2d`.

Both nets of their code: the one of pre-training (encoder and head), and the U-Net
(encoder and decoder). The width is read off the shapes.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from pclseg import models
from pclseg.errors import UserError
from pclseg.importing.torch_file import TorchFile
from pclseg.train.transfer import Variables

Shape = tuple[int, ...]

_LEVELS = (1, 2, 3, 4)
# Axes of PyTorch's array in the order of ours.
_CONV = (2, 3, 1, 0)  # [O, I, kh, kw] -> [kh, kw, I, O]
_UP_CONV = (0, 2, 3, 1)  # [I, O, u, v] -> [I, u, v, O]
_DENSE = (1, 0)
_VECTOR = (0,)
_FIRST = "encoder.contr_1_1.0.weight"


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Where an array of PyTorch goes."""

    path: tuple[str, ...]
    axes: tuple[int, ...]

    def theirs(self, shape: Shape) -> Shape:
        """PyTorch's shape of a leaf of `shape`; our 1 x 1 kernel is a matrix."""
        full = (1,) * (len(self.axes) - len(shape)) + shape
        return tuple(full[self.axes.index(axis)] for axis in range(len(full)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of every entry of a file.

    Attributes:
        variables: {"params", "batch_stats"}, float32, with "encoder" and, where the
            file has them whole and finite, "head" and "decoder".
        width: channels of the first level.
        leaves: name in the file -> (joined path of ours, shape of ours).
        dropped: known and without use here: counters of batches.
        unknown: everything else, which was left out.
    """

    variables: Variables
    width: int
    leaves: dict[str, tuple[str, Shape]]
    dropped: tuple[str, ...]
    unknown: tuple[str, ...]


def convert(file: TorchFile) -> Imported:
    """Maps the names and axes of PyTorch to ours.

    Raises:
        UserError: an entry of the encoder is missing, has another shape or kind, or
            holds NaN, infinity or a negative variance; the first one is named.
    """
    layout, tensors = _layout(), file.tensors
    shapes = _shapes(
        width=_size(tensors, _FIRST),
        out_dim=_size(tensors, "head.4.weight"),
        num_classes=_size(tensors, "decoder.head.0.weight"),
    )
    misfits = dict(_misfits(tensors, layout, shapes))
    _refuse_misfit_of_encoder(file, misfits)
    without = {_part(name) for name in misfits}
    flat, leaves = {}, {}
    for name, leaf in layout.items():
        if _part(name) not in without:
            array = _float32(tensors[name]).transpose(leaf.axes)
            flat[leaf.path] = np.ascontiguousarray(array.reshape(shapes[leaf.path]))
            leaves[name] = ("/".join(leaf.path), shapes[leaf.path])
    counters = {
        f"{name.removesuffix('running_mean')}num_batches_tracked"
        for name in leaves
        if name.endswith("running_mean")
    }
    rest = [name for name in tensors if name not in leaves]
    return Imported(
        variables=traverse_util.unflatten_dict(flat),
        width=_size(tensors, _FIRST),
        leaves=leaves,
        dropped=tuple(name for name in rest if name in counters),
        unknown=(*(n for n in rest if n not in counters), *file.others),
    )


def _layout() -> dict[str, _Leaf]:
    """Every array of the authors' nets, from input to output."""
    return {
        name: _Leaf(path, axes)
        for part in (_encoder_leaves, _head_leaves, _decoder_leaves)
        for name, path, axes in part()
    }


_Rows = Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]


def _encoder_leaves() -> _Rows:
    for level in _LEVELS:
        yield from _block(f"encoder.contr_{level}", ("encoder", f"level{level}"))
    for i, index in ((1, 0), (2, 2)):
        path = ("encoder", "centre", f"conv{i}")
        yield from _linear(f"encoder.center.{index}", path, _CONV)


def _head_leaves() -> _Rows:
    for i, index in ((1, 2), (2, 4)):
        yield from _linear(f"head.{index}", ("head", f"dense{i}"), _DENSE)


def _decoder_leaves() -> _Rows:
    for level in reversed(_LEVELS):
        # They number a step up by the level that it comes from.
        path = ("decoder", f"up{level}")
        yield from _linear(f"decoder.upscale{level + 1}", path, _UP_CONV)
        yield from _block(f"decoder.expand_{level}", ("decoder", f"level{level}"))
    yield "decoder.head.0.weight", ("params", "decoder", "logits", "kernel"), _CONV


def _block(name: str, path: tuple[str, ...]) -> _Rows:
    for i in (1, 2):
        yield from _linear(f"{name}_{i}.0", (*path, f"conv{i}"), _CONV)
        for theirs, kind, ours in (
            ("weight", "params", "scale"),
            ("bias", "params", "bias"),
            ("running_mean", "batch_stats", "mean"),
            ("running_var", "batch_stats", "var"),
        ):
            yield f"{name}_{i}.1.{theirs}", (kind, *path, f"norm{i}", ours), _VECTOR


def _linear(name: str, path: tuple[str, ...], axes: tuple[int, ...]) -> _Rows:
    yield f"{name}.weight", ("params", *path, "kernel"), axes
    yield f"{name}.bias", ("params", *path, "bias"), _VECTOR


def _part(name: str) -> str:
    return name.partition(".")[0]


def _size(tensors: Mapping[str, np.ndarray], name: str) -> int:
    """Length of the first axis; 1 for what is missing or empty, which fits nothing."""
    array = tensors.get(name)
    return array.shape[0] if array is not None and array.ndim and array.size else 1


def _shapes(*, width: int, out_dim: int, num_classes: int) -> dict[tuple, Shape]:
    """Path -> shape of every leaf of both our nets."""
    common = {"width": width, "dtype": "float32", "bn_groups": 1}
    nets = (
        models.make("unet2d_contrast", out_dim=out_dim, **common),
        models.make("unet2d", num_classes=num_classes, **common),
    )
    return {path: shape for net in nets for path, shape in _leaf_shapes(net).items()}


def _leaf_shapes(net: nn.Module) -> dict[tuple, Shape]:
    images = jax.ShapeDtypeStruct((1, 16, 16, 1), np.float32)
    made = jax.eval_shape(
        lambda images: net.init(jax.random.key(0), images, train=False), images
    )
    leaves: Any = traverse_util.flatten_dict(made)
    return {path: leaf.shape for path, leaf in leaves.items()}


def _misfits(
    tensors: Mapping[str, np.ndarray],
    layout: Mapping[str, _Leaf],
    shapes: Mapping[tuple, Shape],
) -> Iterator[tuple[str, str]]:
    """(name, what is wrong with it), in the order of the layout."""
    for name, leaf in layout.items():
        expected = leaf.theirs(shapes[leaf.path])
        if name not in tensors:
            yield name, "is missing"
        elif tensors[name].shape != expected:
            yield name, f"has shape {tensors[name].shape}, where {expected} is expected"
        elif not np.issubdtype(tensors[name].dtype, np.floating):
            yield name, f"is {tensors[name].dtype}, where floats are expected"
        elif not np.isfinite(_float32(tensors[name])).all():
            yield name, "holds NaN or infinity, as of a net that diverged"
        elif name.endswith("running_var") and tensors[name].min() < 0:
            yield name, "holds a negative variance"


def _refuse_misfit_of_encoder(file: TorchFile, misfits: Mapping[str, str]) -> None:
    for name, problem in misfits.items():
        if _part(name) == "encoder":
            found = ", ".join(ascii(n) for n in list(file.tensors)[:3]) or "none"
            raise UserError(
                f"{file.path}: {name} {problem}; expected sound weights of the 2-D"
                f" U-Net of PCL's authors with one input channel; the file's first"
                f" names are {found:.300}."
            )


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return array.astype(np.float32)
