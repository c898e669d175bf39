"""Carries the encoder of a finished stage into the network of the next one."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from pclseg.errors import UserError

Variables = dict[str, Any]  # {"params": tree, "batch_stats": tree}
Path = tuple[str, ...]  # ("params", "encoder", "level1", "conv1", "kernel")
Leaves = tuple[tuple[str, tuple[int, ...]], ...]  # (joined path, shape) of every leaf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a transfer did with every leaf.

    Attributes:
        loaded: leaves copied from the source.
        skipped: leaves of the source that the target has no use for.
        fresh: leaves of the target that keep their initial values.
    """

    loaded: Leaves
    skipped: Leaves
    fresh: Leaves

    def text(self) -> str:
        """A table: counts first, then the leaves, one line per layer."""
        counts, layers = [], []
        for field in dataclasses.fields(self):
            leaves: Leaves = getattr(self, field.name)
            numbers = sum(int(np.prod(shape)) for _, shape in leaves)
            counts.append(
                f"{field.name:<8}{len(leaves):>5} leaves {numbers:>12,} numbers"
            )
            layers += [f"{field.name:<8} {line}" for line in _by_layer(leaves)]
        return "\n".join(counts + layers)


def transfer(
    source: Variables, target: Variables, *, prefix: str = "encoder"
) -> tuple[Variables, Receipt]:
    """Copies every leaf below `prefix`, running statistics included.

    Args:
        source: {"params", "batch_stats"} of the finished stage.
        target: the same of the next stage, freshly initialised.
        prefix: name of the submodule to copy.

    Returns:
        `target` with the leaves below `prefix` taken from `source`, and the receipt.

    Raises:
        UserError: if the two differ below `prefix`; names the first such leaf.
    """
    old, new = _flatten(source), _flatten(target)
    old_part = {path: leaf for path, leaf in old.items() if path[1] == prefix}
    new_part = {path: leaf for path, leaf in new.items() if path[1] == prefix}
    _check_equal_shapes(old_part, new_part, prefix)
    receipt = Receipt(
        loaded=_leaves({path: old[path] for path in new_part}),
        skipped=_leaves({path: old[path] for path in old if path not in old_part}),
        fresh=_leaves({path: new[path] for path in new if path not in new_part}),
    )
    merged = {path: old_part.get(path, leaf) for path, leaf in new.items()}
    return traverse_util.unflatten_dict(merged), receipt


def _flatten(variables: Variables) -> dict[Path, jax.Array]:
    leaves: Any = traverse_util.flatten_dict(variables)
    return leaves


def _leaves(leaves: dict[Path, jax.Array]) -> Leaves:
    return tuple(("/".join(path), np.shape(leaf)) for path, leaf in leaves.items())


def _check_equal_shapes(
    old: dict[Path, jax.Array], new: dict[Path, jax.Array], prefix: str
) -> None:
    if not new:
        raise UserError(f"the new network has no {prefix!r} to load weights into.")
    for path in [*new, *(path for path in old if path not in new)]:
        ours, theirs = _shape_text(new, path), _shape_text(old, path)
        if ours != theirs:
            raise UserError(
                f"the weights do not fit: {'/'.join(path)} is {theirs} in the source,"
                f" but {ours} in the new network; model.width must be that of the stage"
                " the weights come from."
            )


def _shape_text(leaves: dict[Path, jax.Array], path: Path) -> str:
    return str(np.shape(leaves[path])) if path in leaves else "missing"


def _by_layer(leaves: Leaves) -> list[str]:
    """The lines `layer: name shape, name shape` in the order of the leaves."""
    layers: dict[str, list[str]] = {}
    for path, shape in leaves:
        layer, _, name = path.rpartition("/")
        layers.setdefault(layer, []).append(f"{name} {shape}")
    return [f"{layer}: {', '.join(names)}" for layer, names in layers.items()]
