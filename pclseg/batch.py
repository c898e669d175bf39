"""The batch contract: every key an input pipeline may yield, with shape and dtype."""

from collections.abc import Iterable, Mapping
from typing import Any

UNLABELLED = "unlabelled_"  # before keys of the second stream, as unlabelled_image
# key: (dtype, number of axes, meaning). B is the number of slices of the step.
KEYS: dict[str, tuple[str, int, str]] = {
    "image": ("float32", 4, "[B, H, W, C] normalised intensities"),
    "label": ("int32", 3, "[B, H, W] class ids"),
    "volume": ("int32", 1, "[B] row of the volume in the prepared store"),
    "index": ("int32", 1, "[B] index of the slice in its volume, from 0"),
    "count": ("int32", 1, "[B] number of slices of that volume"),
    "position_bits": (
        "uint32",
        2,
        "[B, 3] float64 (index + 1) / count as words of weight 2^-31, 2^-63, 2^-95",
    ),
    "partition": (
        "int32",
        1,
        "[B] height class 1..4, by which the slice was drawn or is",
    ),
    "slice": ("int32", 1, "[B] number of the slice among those of the stage"),
    "num_slices": ("int32", 1, "[B] how many slices the stage has"),
}


def check_batch(
    batch: Mapping[str, Any], keys: Iterable[str], *, shares: bool = False
) -> None:
    """Raises ValueError unless `batch` holds `keys` with the dtypes and ranks above.

    With `shares` all arrays have the axis of `parallel.shard` in front.
    """
    for key in sorted(keys):
        dtype, rank, meaning = KEYS[key.removeprefix(UNLABELLED)]
        if key not in batch:
            raise ValueError(f"the batch lacks {key!r}: {meaning}.")
        value = batch[key]
        if value.dtype != dtype or value.ndim != rank + shares:
            raise ValueError(
                f"batch[{key!r}] is {value.dtype} with {value.ndim} axes;"
                f" expected {dtype}, {meaning}."
            )
