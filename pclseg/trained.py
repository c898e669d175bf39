"""What was trained as a function from images to labels, in memory or in files."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pclseg import building, network, scoring
from pclseg.data.datasets.base import CHANNEL, Case, num_frames, safe_name, stem
from pclseg.data.datasets.nifti import further_channel
from pclseg.data.geometry import Geometry
from pclseg.data.prepare import Options, prepare_array, prepare_case
from pclseg.data.volume import restore_label, restore_probabilities
from pclseg.data.volume_file import check_affine, check_image, write_volume
from pclseg.errors import UserError
from pclseg.evaluation.components import chosen_classes, keep_largest
from pclseg.evaluation.inference import MULTIPLE, Predictor, mean_of, with_flips
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
        channels: those to read of an image of several, by number; () for an image of
            one, each frame of a 4-D file by itself.
        alone: ids of the classes of which only the largest part is kept.
    """

    predictor: Predictor
    options: Options
    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    channels: tuple[int, ...]
    alone: tuple[int, ...] = ()

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
        probs = self.predictor(image)
        if probabilities:
            return restore_probabilities(probs, geometry)
        return self.label(probs, geometry)

    def label(self, probs: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Label values [X, Y, Z] on the file's grid, of probabilities as prepared."""
        label = restore_label(probs, geometry, label_values=self.label_values)
        values = [self.label_values[class_id] for class_id in self.alone]
        return keep_largest(label, values, background=self.label_values[0])

    def probabilities(self, case: Case) -> tuple[np.ndarray, Geometry]:
        """Class probabilities [Z, H, W, K] as prepared, and where they lie.

        Raises:
            UserError: the image cannot be used; the message names the file.
        """
        volume = prepare_case(case, self.options, self.label_values)
        return self.predictor(volume.image), volume.info.geometry


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


def cases_of(
    paths: Sequence[Path],
    *,
    channels: Sequence[int],
    more_paths: Sequence[Sequence[Path]] = (),
) -> list[Case]:
    """One case a volume.

    Args:
        paths: NIfTI images.
        channels: those to read of an image of several, by number; (): every frame of a
            4-D file is a volume.
        more_paths: for each channel after the first its files, where these are not
            named as nnU-Net does.

    Raises:
        UserError: two volumes would be predicted into the same file, or one lacks a
            channel.
    """
    paths = list(dict.fromkeys(paths))
    if more_paths:
        volumes = _of_named_channels(paths, more_paths, channels)
    elif len(channels) > 1:
        volumes = _of_channels(paths, channels)
    else:
        volumes = [found for path in paths for found in _of_file(path, channels)]
    cases: dict[str, Case] = {}
    for name, ((path, index), *more) in volumes:
        if name in cases:
            raise UserError(
                f"{path} and {cases[name].image_path} would both be written to"
                f" {name}.nii.gz; predict them into different folders."
            )
        cases[name] = Case(
            name=name,
            patient=name,
            frame="",
            image_path=path,
            label_path=None,
            time_index=index,
            more_channels=tuple(more),
        )
    return list(cases.values())


# A name, and of every channel the file and the index on its fourth axis.
_Volume = tuple[str, Sequence[tuple[Path, int | None]]]


def _of_file(path: Path, channels: Sequence[int]) -> list[_Volume]:
    """The volumes, of one channel, of a file."""
    frames, name = num_frames(path), safe_name(stem(path))
    if frames == 1:
        return [(name, [(path, None)])]
    if not channels:
        return [
            (f"{name}_frame{index:02d}", [(path, index)]) for index in range(frames)
        ]
    return [(name, _of_fourth_axis(path, channels))]


def _of_fourth_axis(
    path: Path, channels: Sequence[int]
) -> list[tuple[Path, int | None]]:
    frames = num_frames(path)
    if max(channels) >= frames:
        numbers = ", ".join(map(str, channels))
        raise UserError(
            f"{path} has {frames} channels, but the run was trained on channel"
            f" {numbers}, counted from 0; give images like those of the training."
        )
    return [(path, channel) for channel in channels]


def _of_channels(paths: Sequence[Path], channels: Sequence[int]) -> list[_Volume]:
    """Volumes of several channels: 4-D files, or files x_0000, x_0001 and so on."""
    volumes: list[_Volume] = []
    files: dict[tuple[Path, str], dict[int, Path]] = {}
    for path in paths:
        suffix = CHANNEL.search(stem(path))
        if num_frames(path) > 1:
            volumes.append((safe_name(stem(path)), _of_fourth_axis(path, channels)))
        elif suffix:
            place = path.parent, CHANNEL.sub("", stem(path))
            files.setdefault(place, {})[int(suffix[1])] = path
        else:
            raise UserError(
                f"{path} is one channel, but the run was trained on {len(channels)};"
                f" name its files {stem(path)}_0000.nii.gz and so on, or give the"
                " others by --more_images."
            )
    for (_, name), found in files.items():
        lacking = [channel for channel in channels if channel not in found]
        if lacking:
            raise UserError(
                f"{next(iter(found.values()))}: {name}_{lacking[0]:04d}.nii.gz is"
                f" missing, and the run was trained on the channels"
                f" {', '.join(map(str, channels))}; give all of them."
            )
        read = [(found[channel], None) for channel in channels]
        volumes.append((safe_name(name), read))
    return volumes


def _of_named_channels(
    paths: Sequence[Path],
    more_paths: Sequence[Sequence[Path]],
    channels: Sequence[int],
) -> list[_Volume]:
    """Volumes whose channels are files that belong together by their names."""
    if 1 + len(more_paths) != (len(channels) or 1):
        raise UserError(
            f"--more_images gives {len(more_paths)} further channel(s), but the run was"
            f" trained on {len(channels) or 1} channel(s) in all."
        )
    further = [
        further_channel(
            list(paths),
            list(others),
            root=Path(),
            match="",
            advice="give their files names that are alike, or name them as nnU-Net"
            " does: x_0000.nii.gz, x_0001.nii.gz",
        )
        for others in more_paths
    ]
    _, clean = further[0]
    return [
        (
            safe_name(clean(path)),
            [(path, None), *((files[path], None) for files, _ in further)],
        )
        for path in paths
    ]


def predict_files(
    segmenter: Segmenter,
    paths: Sequence[Path],
    out: Path,
    *,
    more_paths: Sequence[Sequence[Path]] = (),
    overwrite: bool = False,
    skip: bool = False,
    probabilities: bool = False,
) -> list[Path]:
    """Writes `<name>.nii.gz` for every volume, each whole or not at all.

    Args:
        segmenter: from `load_segmenter`.
        paths: NIfTI images, 3-D or 4-D.
        out: folder for the label files, on the grid of their image.
        more_paths: files of the channels after the first, as in `cases_of`.
        overwrite: replace files that are there, which may be labels drawn by hand.
        skip: leave out volumes whose label file is there, as after a stop.
        probabilities: write `<name>_probabilities.nii.gz`, [X, Y, Z, K] float32, first.

    Returns:
        The label files.

    Raises:
        UserError: a file would be overwritten; the first file that cannot be used or
            written, while earlier ones stay written.
    """
    cases = cases_of(paths, channels=segmenter.channels, more_paths=more_paths)
    targets = [out / f"{case.name}.nii.gz" for case in cases]
    images = [path for case in cases for path, _ in case.channels]
    _check_spared(targets, images, overwrite=overwrite or skip)
    for number, (case, target) in enumerate(zip(cases, targets, strict=True), start=1):
        if skip and target.exists():
            log.info("predict %d/%d %s: is there", number, len(cases), target)
            continue
        start = time.monotonic()
        probs, geometry = segmenter.probabilities(case)
        if probabilities:
            whole = restore_probabilities(probs, geometry)
            beside = out / f"{case.name}_probabilities.nii.gz"
            write_volume(beside, whole, like=case.image_path)
        label = segmenter.label(probs, geometry)
        write_volume(target, label, like=case.image_path)
        log.info(
            "predict %d/%d %s: %s; %.1f s",
            number,
            len(cases),
            target,
            _voxels(label, segmenter),
            time.monotonic() - start,
        )
    return targets


def _check_spared(
    targets: Sequence[Path], images: Sequence[Path], *, overwrite: bool
) -> None:
    """Raises UserError where a label file would replace an image, or any file."""
    resolved = {image.resolve() for image in images}
    for target in targets:
        if target.resolve() in resolved:
            raise UserError(
                f"{target} is one of the images and would be overwritten; choose"
                " another --out."
            )
        if target.exists() and not overwrite:
            raise UserError(
                f"{target} exists; choose another --out, or add --overwrite to replace"
                " what is there."
            )


def _voxels(label: np.ndarray, segmenter: Segmenter) -> str:
    named = zip(segmenter.class_names, segmenter.label_values, strict=True)
    counted = [f"{name} {int((label == value).sum())}" for name, value in named]
    return "voxels of " + ", ".join(counted[1:])
