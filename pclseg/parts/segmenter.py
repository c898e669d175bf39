"""What methods that train a segmentation network share: its start and its use."""

from typing import Any

import jax

from pclseg.methods.base import Array, Batch
from pclseg.state import TrainState, Tree


def start(model: Any, key: Array, batch: Batch) -> tuple[Tree, Tree]:
    """Fresh (params, model_state) of `model`."""
    variables = model.init(key, batch["image"], train=False)
    return variables["params"], {"batch_stats": variables["batch_stats"]}


def predict(model: Any, state: TrainState, images: Array) -> jax.Array:
    """Logits of the trained weights, normalised by the running statistics."""
    variables = {"params": state.params, **state.model_state}
    return model.apply(variables, images, train=False)


def predict_teacher(model: Any, state: TrainState, images: Array) -> jax.Array:
    """The same of the teacher in the method's state."""
    return model.apply(state.method_state["teacher"], images, train=False)
