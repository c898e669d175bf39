"""What was trained as a function from images to labels."""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pclseg import building, network, scoring
from pclseg.data import scratch
from pclseg.data.channels import Channel
from pclseg.data.geometry import Geometry
from pclseg.data.prepare import Options, prepare_array
from pclseg.data.volume import (
    label_dtype,
    restore_label,
    restore_probabilities,
)
from pclseg.data.volume_file import check_affine, check_image
from pclseg.errors import UserError
from pclseg.evaluation.components import chosen_classes, keep_largest
from pclseg.evaluation.inference import (
    BLOCK,
    MULTIPLE,
    Predictor,
    block_of,
    in_blocks,
    mean_of,
    with_flips,
)
from pclseg.network import Network
from pclseg.scoring import LEAST_TILE

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmenter:
    """A trained network, or several whose mean counts, with all that surrounds it.

    Attributes:
        predictor: prepared image [Z, H, W, C] -> probabilities [Z, H, W, K].
        options: how images are prepared.
        class_names: of class id 0, 1, ..., the background first.
        label_values: of the same classes in label files.
        channels: what those of an image of several are called, see `data.channels`; ()
            for an image of one, each frame of a 4-D file by itself.
        alone: ids of the classes of which only the largest part is kept.
        block: slices whose probabilities are in memory at a time.
    """

    predictor: Predictor
    options: Options
    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    channels: tuple[Channel, ...]
    alone: tuple[int, ...] = ()
    block: int = BLOCK

    @property
    def classes(self) -> dict[str, int]:
        """The value of every class in label files, by its name."""
        return dict(zip(self.class_names, self.label_values, strict=True))

    def predict(
        self,
        volume: np.ndarray,
        spacing: Sequence[float] = (),
        *,
        affine: np.ndarray | None = None,
        probabilities: bool = False,
    ) -> np.ndarray:
        """Segments a volume in memory.

        Args:
            volume: [X, Y, Z] whole or real numbers, as `nibabel` reads them; or
                [X, Y, Z, C] where the network was trained on several channels. The axes
                run to the right, to the front and upwards, unless `affine` says else.
            spacing: (x, y, z) mm of its voxels.
            affine: [4, 4], voxel index to mm (RAS+), in place of `spacing`.
            probabilities: whether to return those of the classes.

        Returns:
            [X, Y, Z] label values; or [X, Y, Z, K] float32 probabilities.

        Raises:
            UserError: the volume cannot be segmented.
        """
        channels = _checked_channels(volume, len(self.channels) or 1)
        affine = _checked_affine(spacing, affine)
        image, geometry, _ = prepare_array(channels, affine, self.options)
        slices = itertools.chain.from_iterable(self.blocks(image))
        if probabilities:
            return restore_probabilities(slices, geometry)
        return self.label(slices, geometry)

    def blocks(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Class probabilities of a prepared image [Z, H, W, C], see `in_blocks`."""
        return in_blocks(self.predictor, image, self.block)

    def label(
        self,
        slices: Iterable[np.ndarray],
        geometry: Geometry,
        on_disk: Path | None = None,
    ) -> np.ndarray:
        """Label values [X, Y, Z] on the file's grid, of prepared slices [H, W, K].

        They lie in files of the folder `on_disk`, if any, and not in memory.
        """
        label = restore_label(
            slices, geometry, label_values=self.label_values, on_disk=on_disk
        )
        return self._cleaned(label, on_disk)

    def likeliest(
        self, probabilities: np.ndarray, on_disk: Path | None = None
    ) -> np.ndarray:
        """Label values [X, Y, Z] of probabilities [X, Y, Z, K] on the file's grid."""
        values = np.asarray(self.label_values, label_dtype(self.label_values))
        axis = scratch.slowest_axis(probabilities[..., 0])
        planes = np.moveaxis(probabilities, axis, 0)
        label = scratch.empty(planes.shape[:3], values.dtype, on_disk)
        for plane, of_plane in zip(label, planes, strict=True):
            plane[...] = values[of_plane.argmax(axis=-1)]
        return self._cleaned(np.moveaxis(label, 0, axis), on_disk)

    def _cleaned(self, label: np.ndarray, on_disk: Path | None) -> np.ndarray:
        return keep_largest(
            label,
            [self.label_values[class_id] for class_id in self.alone],
            background=self.label_values[0],
            on_disk=on_disk,
        )


def _checked_channels(volume: np.ndarray, number: int) -> list[np.ndarray]:
    """The channels of a volume, [X, Y, Z] each, as a file would give them.

    Raises:
        UserError: they cannot be used.
    """
    array = np.asarray(volume)
    several = number > 1
    fits = array.ndim == 3 + several and (not several or array.shape[3] == number)
    if not fits or array.dtype.kind not in "iuf" or 0 in array.shape:
        raise UserError(
            f"the volume has shape {array.shape} and dtype {array.dtype}; expected"
            f" [X, Y, Z{f', {number}' if several else ''}] of whole or real numbers."
        )
    with np.errstate(over="ignore"):  # what becomes infinite is told next
        array = (
            array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
        )
    channels = list(np.moveaxis(array, -1, 0)) if several else [array]
    for channel in channels:
        check_image(channel)
    return channels


def _checked_affine(spacing: Sequence[float], affine: np.ndarray | None) -> np.ndarray:
    """The affine, as a file would give it.

    Raises:
        UserError: neither is given, both are, or one cannot be used.
    """
    if affine is None:
        sizes = _numbers(spacing)
        if sizes.shape != (3,) or not (np.isfinite(sizes) & (sizes > 0)).all():
            hint = " (did you mean affine=?)" if sizes.shape == (4, 4) else ""
            raise UserError(
                f"spacing has shape {sizes.shape}{hint}; expected three sizes in mm,"
                " larger than 0, or give affine."
            )
        return np.diag([*sizes, 1.0])
    if np.size(spacing):
        raise UserError("spacing and affine are both given; affine holds the spacing.")
    matrix = _numbers(affine)
    if matrix.shape != (4, 4) or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise UserError(
            f"affine has shape {matrix.shape}; expected (4, 4) with 0, 0, 0, 1 below."
        )
    return check_affine(matrix)


def _numbers(values: object) -> np.ndarray:
    """As float64; empty where it is no array of real numbers."""
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        return np.empty(0)
    return array.astype(np.float64) if array.dtype.kind in "iuf" else np.empty(0)


def load_segmenter(
    paths: Sequence[Path | str],
    *,
    batch_size: int = 10,
    tile: int | None = None,
    flips: bool = False,
    largest_part: bool = False,
) -> Segmenter:
    """Loads what finished runs, or model folders, have learnt, as one.

    Args:
        paths: run directories, of which the last segmentation stage counts, model
            folders, or hf://OWNER/NAME for models on the Hugging Face hub; of several,
            such as folds and seeds, the mean of the probabilities counts.
        batch_size: slices, or tiles, a forward pass.
        tile: side of tiles, a multiple of 16; None for whole slices.
        flips: whether to take the mean over in-plane mirror images.
        largest_part: whether to keep only the largest part of those classes whose Dice
            that raised on held-out patients, over all the runs.

    Raises:
        UserError: one is neither, not finished or damaged, or they differ in classes or
            in how images are prepared.
    """
    if not paths or not all(isinstance(path, str | Path) for path in paths):
        raise UserError(
            f"cannot load {paths!r}; name runs or model folders, one by one."
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected a whole number from 1.")
    if tile is not None and (
        not isinstance(tile, int) or tile < LEAST_TILE or tile % MULTIPLE
    ):
        raise UserError(
            f"tile is {tile}; expected a multiple of {MULTIPLE} of {LEAST_TILE} or"
            " more."
        )
    networks = [each for path in paths for each in network.read(path)]
    network.check_alike(networks)
    predict = predictor(networks, batch_size=batch_size, tile=tile)
    first = networks[0]
    return Segmenter(
        predictor=with_flips(predict) if flips else predict,
        options=first.options,
        class_names=first.class_names,
        label_values=first.label_values,
        channels=first.channels,
        alone=_alone(networks) if largest_part else (),
        block=block_of(batch_size),
    )


def _alone(networks: Sequence[Network]) -> tuple[int, ...]:
    """Ids of the classes of which the largest part is to be kept alone."""
    names = networks[0].class_names
    found = []
    for each in networks:
        if each.gains is None or set(each.gains) != set(names[1:]):
            raise UserError(
                f"{each.source} does not say whether the largest part of a class alone"
                " is better on held-out patients; delete its summary.json and give its"
                " command again, or do without --largest_part."
            )
        found.append(each.gains)
    chosen = chosen_classes(found, names)
    kept = ", ".join(names[class_id] for class_id in chosen) or "no class"
    log.info("only the largest part is kept of: %s", kept)
    return chosen


def predictor(
    networks: Sequence[Network], *, batch_size: int, tile: int | None = None
) -> Predictor:
    """Prepared image [Z, H, W, C] -> mean probabilities [Z, H, W, K] of networks."""
    return mean_of(
        [
            scoring.volume_predictor(
                building.build_method(each.stage),
                each.state(),
                crop_size=tuple(each.stage.data.crop_size),
                batch_size=batch_size,
                tile=tile,
            )
            for each in networks
        ]
    )
