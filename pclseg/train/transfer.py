"""Carries parts of a finished stage into the network of the next one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from pclseg.errors import UserError
from pclseg.state import TrainState, Tree

TEACHER = "teacher"  # its leaves are transferred as those of a module of this name

Variables = dict[str, Any]  # {"params": tree, "batch_stats": tree}
Path = tuple[str, ...]  # ("params", "encoder", "level1", "conv1", "kernel")
Leaves = tuple[tuple[str, tuple[int, ...]], ...]  # (joined path, shape) of every leaf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a transfer did with every leaf.

    Attributes:
        loaded: leaves copied from the source.
        skipped: leaves of the source that the target has no use for.
        fresh: leaves of the target that keep their initial values; those of a teacher
            are not listed, they become the student's.
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


def variables(params: Tree, model_state: Tree, method_state: Tree) -> Variables:
    """The parts of a state that can be transferred; a teacher's as part "teacher"."""
    own = {"params": params, "batch_stats": model_state["batch_stats"]}
    teacher = (method_state or {}).get(TEACHER)
    if teacher is None:
        return own
    return {kind: {**tree, TEACHER: teacher[kind]} for kind, tree in own.items()}


def started(
    state: TrainState, merged: Variables, *, parts: Sequence[str]
) -> TrainState:
    """A fresh state with weights that `transfer` merged.

    Its teacher, if it has one, begins as the student does, but for parts "teacher/...".

    Args:
        state: of which `variables` were the target.
        merged: of `transfer`.
        parts: likewise.
    """
    own = {
        kind: {name: leaves for name, leaves in tree.items() if name != TEACHER}
        for kind, tree in merged.items()
    }
    method_state = state.method_state
    if TEACHER in method_state:
        student, teacher = (_flatten(tree) for tree in (own, _teacher(merged)))
        moved = [part for part in parts if f"{part}/".startswith(f"{TEACHER}/")]
        leaves = {
            (kind, *path): teacher[kind, *path]
            if _is_in((kind, TEACHER, *path), moved)
            else np.copy(student[kind, *path])
            for kind, *path in teacher
        }
        method_state = {**method_state, TEACHER: traverse_util.unflatten_dict(leaves)}
    return state.replace(
        params=own["params"],
        model_state={**state.model_state, "batch_stats": own["batch_stats"]},
        method_state=method_state,
    )


def _teacher(variables: Variables) -> Variables:
    return {kind: tree[TEACHER] for kind, tree in variables.items()}


def transfer(
    source: Variables, target: Variables, *, parts: Sequence[str]
) -> tuple[Variables, Receipt]:
    """Copies every leaf of `parts`, running statistics included.

    Args:
        source: {"params", "batch_stats"} of the finished stage.
        target: the same of the next stage, freshly initialised.
        parts: submodules to copy, such as "encoder" or "decoder/level4"; of a teacher
            "teacher/encoder".

    Returns:
        `target` with the leaves of `parts` taken from `source`, and the receipt.

    Raises:
        UserError: if the two differ in a part; names the first such leaf.
    """
    old, new = _flatten(source), _flatten(target)
    for part in parts:
        _check_has(part, old, "the weights have")
        _check_has(part, new, "the new network has")
    old_part = {path: leaf for path, leaf in old.items() if _is_in(path, parts)}
    new_part = {path: leaf for path, leaf in new.items() if _is_in(path, parts)}
    _check_equal_shapes(old_part, new_part)
    receipt = Receipt(
        loaded=_leaves({path: old[path] for path in new_part}),
        skipped=_leaves({path: old[path] for path in old if path not in old_part}),
        fresh=_leaves(
            {
                path: new[path]
                for path in new
                if path not in new_part and path[1] != TEACHER
            }
        ),
    )
    merged = {path: old_part.get(path, leaf) for path, leaf in new.items()}
    return traverse_util.unflatten_dict(merged), receipt


def _flatten(variables: Variables) -> dict[Path, jax.Array]:
    leaves: Any = traverse_util.flatten_dict(variables)
    return leaves


def _leaves(leaves: dict[Path, jax.Array]) -> Leaves:
    return tuple(("/".join(path), np.shape(leaf)) for path, leaf in leaves.items())


def _is_in(path: Path, parts: Sequence[str]) -> bool:
    inner = "/".join(path[1:])  # without the collection
    return any(f"{inner}/".startswith(f"{part}/") for part in parts)


def _check_has(part: str, leaves: dict[Path, jax.Array], what: str) -> None:
    if not any(_is_in(path, [part]) for path in leaves):
        modules = dict.fromkeys(path[1] for path in leaves)
        raise UserError(
            f"{what} no {part!r} to start from; expected in init_parts: modules such as"
            f" {', '.join(modules)}, or layers of them such as 'decoder/level4'."
        )


def _check_equal_shapes(old: dict[Path, jax.Array], new: dict[Path, jax.Array]) -> None:
    for path in [*new, *(path for path in old if path not in new)]:
        ours, theirs = _shape_text(new, path), _shape_text(old, path)
        if ours != theirs:
            must = "model.width and the channels of the images must be those of"
            if path not in old or path not in new:
                must = "init_parts, model.backbone and model.name must suit"
            raise UserError(
                f"the weights do not fit: {'/'.join(path)} is {theirs} in the source,"
                f" but {ours} in the new network; {must} the stage the weights come"
                " from."
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
