"""Class probabilities of a whole volume, from a function that sees slices."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


def predict_volume(
    predict: Callable[[np.ndarray], ArrayLike],
    image: np.ndarray,
    *,
    min_shape: tuple[int, int],
    multiple: int = 16,
    batch_size: int,
) -> np.ndarray:
    """Predicts every slice of a volume as a whole, padded as in training.

    Slices are padded with 0 to `padded_shape`, floor((new - old) / 2) of it in front.
    The last batch is filled with slices of zeros, so that `predict` sees a single shape
    per volume shape and is compiled once for it.

    Args:
        predict: [B, H', W', 1] float32 -> logits [B, H', W', K].
        image: [Z, H, W] float32, normalised.
        min_shape: (H, W) of the training crop; smaller slices are padded up to it.
        multiple: what H' and W' are multiples of; 16 for four poolings by 2.
        batch_size: B.

    Returns:
        [Z, H, W, K] float32, softmax over the last axis.

    Raises:
        ValueError: an image that is not [Z, H, W], or logits of another shape.
    """
    if image.ndim != 3:
        raise ValueError(f"image has shape {image.shape}; expected [Z, H, W].")
    depth, height, width = image.shape
    high, wide = padded_shape((height, width), min_shape=min_shape, multiple=multiple)
    top, left = (high - height) // 2, (wide - width) // 2
    probs = []
    for start in range(0, depth, batch_size):
        slices = image[start : start + batch_size]
        batch = np.zeros((batch_size, high, wide, 1), np.float32)
        batch[: len(slices), top : top + height, left : left + width, 0] = slices
        logits = np.asarray(predict(batch), np.float32)
        if logits.ndim != 4 or logits.shape[:3] != batch.shape[:3]:
            raise ValueError(
                f"predict made logits {logits.shape} of images {batch.shape};"
                f" expected [{batch_size}, {high}, {wide}, K]."
            )
        inside = logits[: len(slices), top : top + height, left : left + width]
        probs.append(_softmax(inside))
    return np.concatenate(probs)


def padded_shape(
    shape: tuple[int, int], *, min_shape: tuple[int, int], multiple: int
) -> tuple[int, int]:
    """(H', W'): at least `shape` and `min_shape`, rounded up to a multiple."""
    height, width = (
        -(-max(size, least) // multiple) * multiple
        for size, least in zip(shape, min_shape, strict=True)
    )
    return height, width


def _softmax(logits: np.ndarray) -> np.ndarray:
    # The largest logit becomes 0, so that exp cannot overflow.
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)
