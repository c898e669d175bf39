"""Class probabilities of a whole volume, from a function that sees slices."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

MULTIPLE = 16  # of sides of images, for four poolings by 2
BLOCK = 32  # slices whose probabilities are in memory at a time
Predictor = Callable[[np.ndarray], np.ndarray]  # [Z, H, W, C] -> [Z, H, W, K]


def predict_volume(
    predict: Callable[[np.ndarray], ArrayLike],
    image: np.ndarray,
    *,
    min_shape: tuple[int, int],
    batch_size: int,
    tile: int | None = None,
) -> np.ndarray:
    """Predicts every slice of a volume, padded as in training, as a whole or in tiles.

    Slices are padded with 0 to `padded_shape`, floor((new - old) / 2) of it in front.
    The last batch is filled with slices of zeros, so that `predict` sees a single shape
    per volume shape and is compiled once for it. Tiles overlap by half or more; their
    probabilities are averaged with weights that fall from the middle of a tile as a
    Gaussian of an eighth of its side, as nnU-Net does (Isensee et al. 2021,
    doi 10.1038/s41592-020-01008-z).

    Args:
        predict: [B, H', W', C] float32 -> logits [B, H', W', K].
        image: [Z, H, W, C] float32, normalised.
        min_shape: (H, W) of the training crop; smaller slices are padded up to it.
        batch_size: B.
        tile: side of the tiles, a multiple of MULTIPLE; None for whole slices.

    Returns:
        [Z, H, W, K] float32, softmax over the last axis.

    Raises:
        ValueError: an image that is not [Z, H, W, C], a tile that is no multiple, or
            logits of another shape.
    """
    if image.ndim != 4:
        raise ValueError(f"image has shape {image.shape}; expected [Z, H, W, C].")
    if tile is not None and (tile < 1 or tile % MULTIPLE):
        raise ValueError(f"tile is {tile}; expected a multiple of {MULTIPLE}.")
    depth, height, width, channels = image.shape
    high, wide = padded_shape((height, width), min_shape=min_shape)
    top, left = (high - height) // 2, (wide - width) // 2
    padded = np.zeros((depth, high, wide, channels), np.float32)
    padded[:, top : top + height, left : left + width] = image
    size = (min(tile or high, high), min(tile or wide, wide))
    places = [(y, x) for y in _starts(high, size[0]) for x in _starts(wide, size[1])]
    weight = np.ones(size, np.float32) if len(places) == 1 else _gaussian(size)
    jobs = [(z, y, x) for z in range(depth) for y, x in places]
    total = None
    for first in range(0, len(jobs), batch_size):
        some = jobs[first : first + batch_size]
        batch = np.zeros((batch_size, *size, channels), np.float32)
        for row, (z, y, x) in enumerate(some):
            batch[row] = padded[z, y : y + size[0], x : x + size[1]]
        logits = np.asarray(predict(batch), np.float32)
        if logits.ndim != 4 or logits.shape[:3] != batch.shape[:3]:
            raise ValueError(
                f"predict made logits {logits.shape} of images {batch.shape};"
                f" expected [{batch_size}, {size[0]}, {size[1]}, K]."
            )
        if total is None:
            total = np.zeros((*padded.shape[:3], logits.shape[-1]), np.float32)
        for (z, y, x), probs in zip(some, _softmax(logits[: len(some)]), strict=True):
            place = total[z, y : y + size[0], x : x + size[1]]
            place += weight[..., None] * probs
    if total is None:
        raise ValueError("image has no slice.")
    inside = total[:, top : top + height, left : left + width]
    if len(places) > 1:
        inside /= inside.sum(axis=-1, keepdims=True)
    return inside


def in_blocks(
    predict: Predictor, image: np.ndarray, block: int
) -> Iterator[np.ndarray]:
    """Probabilities [z, H, W, K] of `block` slices after others, the last ones fewer.

    Those of a whole volume would take more memory than anything else.

    Args:
        predict: of some slices.
        image: [Z, H, W, C].
        block: slices at a time, see `block_of`.
    """
    for first in range(0, len(image), block):
        yield predict(image[first : first + block])


def block_of(batch_size: int) -> int:
    """About BLOCK slices, in whole batches."""
    return -(-BLOCK // batch_size) * batch_size


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin: evenly, the first at 0 and the last at the end."""
    number = 1 + -(-2 * (length - tile) // tile)
    return np.linspace(0, length - tile, number).round().astype(int).tolist()


def _gaussian(size: tuple[int, int]) -> np.ndarray:
    """Weights [H, W] of a tile, 1 in the middle, never 0."""
    axes = []
    for length in size:
        distance = (np.arange(length) - (length - 1) / 2) / (length / 8)
        axes.append(np.exp(-0.5 * distance**2))
    return np.outer(*axes).astype(np.float32).clip(min=1e-4)


def with_flips(predict: Predictor) -> Predictor:
    """The mean over the image and its mirror images, in-plane."""

    def flipped(axes: tuple[int, ...]) -> Predictor:
        return lambda image: np.flip(predict(np.flip(image, axes)), axes)

    return mean_of([flipped(axes) for axes in ((), (1,), (2,), (1, 2))])


def mean_of(predictors: Sequence[Predictor]) -> Predictor:
    """The mean probabilities of several networks; of one, its own."""
    first, *others = predictors
    if not others:
        return first

    def mean(image: np.ndarray) -> np.ndarray:
        total = np.array(first(image))
        for predict in others:
            total += predict(image)
        return total / np.float32(len(predictors))

    return mean


def padded_shape(
    shape: tuple[int, int], *, min_shape: tuple[int, int]
) -> tuple[int, int]:
    """(H', W'): at least `shape` and `min_shape`, rounded up to multiples of 16."""
    height, width = (
        -(-max(size, least) // MULTIPLE) * MULTIPLE
        for size, least in zip(shape, min_shape, strict=True)
    )
    return height, width


def _softmax(logits: np.ndarray) -> np.ndarray:
    # The largest logit becomes 0, so that exp cannot overflow.
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)
