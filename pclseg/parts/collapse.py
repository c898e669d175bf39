"""Whether embeddings have become the same, and what the user is told then."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pclseg import parallel

Array = jax.Array

_GAP = 1e-3
_SPREAD = 0.05  # 1 - cosine is then about its square, on average


def spread(embedding: Array, axis_name: str | None) -> Array:
    """Standard deviation over the rows of all devices; 1 if even on the sphere.

    Args:
        embedding: [B, D] float, of unit length, of this device.
        axis_name: of the pmapped step; None also where the rows are those of all.
    """
    embedding = jax.lax.stop_gradient(embedding)
    mean = parallel.all_mean(embedding.mean(axis=0), axis_name)
    variance = jnp.square(embedding - mean[None]).mean(axis=0)
    std = jnp.sqrt(parallel.all_mean(variance, axis_name))
    return std.mean() * embedding.shape[-1] ** 0.5


def warn_of_collapse(metrics: Mapping[str, float]) -> str | None:
    """A warning when the loss sits at the value of a collapsed embedding."""
    if metrics["collapse_gap"] > _GAP:
        return None
    return (
        "the loss is that of a collapsed embedding (all similarities equal); if it"
        " stays so, try a larger batch, optimizer.warmup_steps or a lower"
        " optimizer.peak_lr."
    )


def warn_of_equal(what: str, metrics: Mapping[str, float], advice: str) -> str | None:
    """A warning when all of `what` are embedded alike, so that their contrast is idle.

    For methods whose loss does not tell, such as those with a memory bank, which keeps
    vectors of before the collapse.
    """
    if metrics["embedding_std"] > _SPREAD:
        return None
    return (
        f"all {what} are embedded alike (embedding_std {metrics['embedding_std']:.3f},"
        f" 1 where evenly spread), so a contrast of {what} teaches nothing; if it stays"
        f" so, try {advice}."
    )
