"""Overlap of prediction and label: the authors' pooled Dice, and Dice of a case."""

import numpy as np


def counts(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Voxel counts of every class; those of several batches may simply be added.

    Args:
        prediction: class ids of any shape, integer.
        label: class ids of the same shape, integer.
        num_classes: K, background included.

    Returns:
        [K, 3] int64: voxels in both, voxels predicted, voxels labelled.

    Raises:
        ValueError: the shapes differ, or an id lies outside 0..K-1.
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"prediction {prediction.shape} and label {label.shape} differ in shape."
        )
    for name, ids in (("prediction", prediction), ("label", label)):
        if ids.size and not 0 <= ids.min() <= ids.max() < num_classes:
            raise ValueError(
                f"{name} holds ids {ids.min()}..{ids.max()};"
                f" expected 0..{num_classes - 1}."
            )
    parts = (label[prediction == label], prediction, label)
    return np.stack(
        [np.bincount(part.ravel(), minlength=num_classes) for part in parts], axis=-1
    ).astype(np.int64)


def dice_from_counts(total: np.ndarray) -> np.ndarray:
    """Dice of the authors' evaluation: voxels of all cases pooled, absent class = 0.

    dice_c = 2 I_c / (P_c + G_c). The authors' code (github.com/dewenzeng/positional_cl)
    reports the plain mean of this over the foreground classes.

    Args:
        total: [K, 3] int, `counts` summed over everything that was evaluated.

    Returns:
        [K - 1] float64 in 0..1, background left out.
    """
    return np.nan_to_num(case_dice_from_counts(total), nan=0.0)


def legacy_dice_from_counts(total: np.ndarray) -> np.ndarray:
    """Dice of one case as the code of SSL4MIS and ACTION has it.

    An empty prediction is 0, also where it is right; a prediction of what the label
    lacks, which is wrong, is 1. To compare with their tables, and for nothing else.

    Args:
        total: [K, 3] int, `counts` of the case.

    Returns:
        [K - 1] float64 in 0..1, background left out.
    """
    _, predicted, labelled = total[1:].T
    only_predicted = (predicted > 0) & (labelled == 0)
    return np.where(only_predicted, 1.0, dice_from_counts(total))


def case_dice_from_counts(total: np.ndarray) -> np.ndarray:
    """Dice of one case: NaN where both masks are empty, 0 where one of them is.

    Args:
        total: [K, 3] int, `counts` of the case.

    Returns:
        [K - 1] float64 in 0..1 or NaN, background left out.
    """
    both, predicted, labelled = total[1:].astype(np.float64).T
    size = predicted + labelled
    return np.divide(2 * both, size, out=np.full_like(size, np.nan), where=size > 0)
