"""Does an embedding know the position of a slice? Numbers for figures and reports.

Everywhere: embedding [N, D] float of any length (scaled to unit length here), position
[N] float in (0, 1], patient [N] of any comparable type. Pairs are taken block by block:
N of a data set (20,000) needs no N x N array.
"""

from collections.abc import Iterator

import numpy as np

BLOCK = 1024
EPS = 1e-8


def unit_length(embedding: np.ndarray) -> np.ndarray:
    """[N, D] float64: every row divided by its length; a row of zeros stays zeros."""
    embedding = np.asarray(embedding, np.float64)
    length = np.linalg.norm(embedding, axis=-1, keepdims=True)
    return embedding / np.maximum(length, EPS)


def similarity_curve(
    embedding: np.ndarray, position: np.ndarray, patient: np.ndarray, *, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean cosine similarity of slices of different patients against their distance.

    Bin b holds the pairs with b / bins <= |position difference| < (b + 1) / bins.

    Returns:
        distance: [bins] float64, centres of the bins.
        mean: [bins] float64 in -1..1, NaN for a bin without pairs.
        n: [bins] int64, number of pairs.
    """
    total = np.zeros(bins)
    n = np.zeros(bins, np.int64)
    for similarity, distance in _pairs(embedding, position, patient):
        # Equal distances differ in the last bit: 0.3 - 0.1 is to fall where 0.2 does.
        place = np.minimum((distance * bins + 1e-9).astype(np.int64), bins - 1)
        total += np.bincount(place, weights=similarity, minlength=bins)
        n += np.bincount(place, minlength=bins)
    mean = np.divide(total, n, out=np.full(bins, np.nan), where=n > 0)
    return (np.arange(bins) + 0.5) / bins, mean, n


def alignment(
    embedding: np.ndarray,
    position: np.ndarray,
    patient: np.ndarray,
    *,
    threshold: float,
) -> float:
    """Mean squared distance of slices at like height of different patients; 0 is best.

    Alignment (alpha = 2) of Wang and Isola 2020, arXiv 2005.10242, where the positive
    pairs are those with |position difference| < threshold. NaN without such a pair.
    """
    total, n = 0.0, 0
    for similarity, distance in _pairs(embedding, position, patient):
        near = distance < threshold
        total += float((2 - 2 * similarity[near]).sum())
        n += int(near.sum())
    return total / n if n else np.nan


def uniformity(embedding: np.ndarray) -> float:
    """Log mean of exp(-2 |u - v|^2) over all pairs; 0 is collapse, lower is better.

    Uniformity (t = 2) of Wang and Isola 2020, arXiv 2005.10242. NaN for fewer than two
    rows.
    """
    rows = np.arange(len(embedding))
    total, n = 0.0, 0
    # Every row counts as a patient of its own: all pairs take part.
    for similarity, _ in _pairs(embedding, np.zeros(len(rows)), rows):
        total += float(np.exp(-2 * (2 - 2 * similarity)).sum())
        n += len(similarity)
    return float(np.log(total / n)) if n else np.nan


def embedding_std(embedding: np.ndarray) -> float:
    """Standard deviation of unit-length embeddings, mean over the D components.

    0 means collapse, 1 / sqrt(D) a spread over the whole sphere (Chen and He 2021,
    arXiv 2011.10566, section 4.1).
    """
    return float(unit_length(embedding).std(axis=0).mean())


def position_r2(
    embedding: np.ndarray,
    position: np.ndarray,
    patient: np.ndarray,
    *,
    penalty: float,
    folds: int,
) -> float:
    """R2 of a ridge regression of position that is tested on other patients.

    Patients are dealt in sorted order to the folds, at most one fold per patient; each
    fold is predicted from the others: min |p - b - z w|^2 + penalty |w|^2, z of unit
    length, with a free intercept b. R2 = 1 - sum (p - p')^2 / sum (p - mean p)^2 of all
    predictions together. 1 is perfect, 0 no better than the mean.

    Args:
        embedding: [N, D] float.
        position: [N] float.
        patient: [N].
        penalty: positive.
        folds: at least 2.

    Returns:
        At most 1; NaN for fewer than two patients or where all positions are equal.
    """
    names, row_patient = np.unique(patient, return_inverse=True)
    position = np.asarray(position, np.float64)
    deviation = np.square(position - position.mean()).sum() if len(names) > 1 else 0.0
    if deviation == 0:
        return np.nan
    z = unit_length(embedding)
    fold = row_patient % min(folds, len(names))
    guess = np.empty_like(position)
    for test in (fold == f for f in range(fold.max() + 1)):
        mean_z, mean_p = z[~test].mean(axis=0), position[~test].mean()
        centred = z[~test] - mean_z
        gram = centred.T @ centred + penalty * np.eye(z.shape[1])
        weight = np.linalg.solve(gram, centred.T @ (position[~test] - mean_p))
        guess[test] = mean_p + (z[test] - mean_z) @ weight
    return float(1 - np.square(position - guess).sum() / deviation)


def neighbour_position_error(
    embedding: np.ndarray, position: np.ndarray, patient: np.ndarray
) -> tuple[float, float]:
    """How far in position the most similar slice of another patient lies.

    The evaluation by nearest neighbours of Wu et al. 2018, arXiv 1805.01978, section
    3.4, with k = 1, cosine similarity and position in place of a class. Of equally
    similar slices the first row counts.

    Returns:
        error: mean |position - position of the neighbour|, in 0..1; 0 is best.
        chance: the same with a neighbour drawn at random from the other patients. It
            depends on positions and patients only: an error near it means that the
            embedding does not know position.
        Both NaN for fewer than two patients.
    """
    z = unit_length(embedding)
    position = np.asarray(position, np.float64)
    patient = np.unique(patient, return_inverse=True)[1]
    if len(np.unique(patient)) < 2:
        return np.nan, np.nan
    error, chance = 0.0, 0.0
    for start in range(0, len(z), BLOCK):
        block = slice(start, start + BLOCK)
        other = patient[block, None] != patient[None, :]
        apart = np.abs(position[block, None] - position[None, :])
        nearest = np.where(other, z[block] @ z.T, -np.inf).argmax(axis=1)
        error += apart[np.arange(len(nearest)), nearest].sum()
        chance += (apart.sum(axis=1, where=other) / other.sum(axis=1)).sum()
    return float(error / len(z)), float(chance / len(z))


def principal_components(
    embedding: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """PCA of unit-length embeddings by SVD.

    The sign of a component, which is free, is such that its largest weight is positive.

    Returns:
        points: [N, count] float64.
        share: [count] float64, share of the variance; 0 if there is no variance.
    """
    z = unit_length(embedding)
    left, scale, right = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
    largest = np.abs(right[:count]).argmax(axis=1)
    sign = np.where(right[np.arange(len(largest)), largest] < 0, -1.0, 1.0)
    variance = np.square(scale)
    share = variance[:count] / max(variance.sum(), np.finfo(np.float64).tiny)
    return left[:, :count] * scale[:count] * sign, share


def _pairs(
    embedding: np.ndarray, position: np.ndarray, patient: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cosine and |position difference| of the pairs of rows of different patients."""
    z = unit_length(embedding)
    position = np.asarray(position, np.float64)
    patient = np.unique(patient, return_inverse=True)[1]
    row = np.arange(len(z))
    for start in range(0, len(z), BLOCK):
        block = slice(start, start + BLOCK)
        pair = row[block, None] < row[None, start:]  # each pair once
        pair &= patient[block, None] != patient[None, start:]
        distance = np.abs(position[block, None] - position[None, start:])
        yield (z[block] @ z[start:].T)[pair], distance[pair]
