"""Whether volumes go together, and what to set for them: findings across a dataset."""

import dataclasses
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pclseg.data.datasets.base import Dataset
from pclseg.data.examine import PERCENTILES, PROFILE, Facts
from pclseg.data.findings import ERROR, NOTE, WARNING, Finding
from pclseg.data.geometry import AXIS_KEY, SPACING_KEY
from pclseg.data.headers import SAME_DIRECTION, common_direction
from pclseg.data.patients import look_alike
from pclseg.data.slices import position

_NAMED = 3  # cases that a line names before "and N more"
_SCALE_RATIO = 1.25  # of pixel sizes, from which on the network sees other scales
_HEIGHT_RATIO = 1.5  # of heights of the field of view
_RARE_SHARE = 0.05  # of the labels, below which a value may be a slip
_FEW_SLICES = 5
SPECK = 10.0  # times the usual range of grey values
_MANY_VALUES = 64
# Correlation of profiles with those of others: as they are below, turned over above.
_AGAINST, _TURNED, _LEAST_VOLUMES = 0.0, 0.7, 4
_FEW_POSITIVES, _MANY_POSITIVES = 1.0, 0.75  # per anchor; as a share of the keys
_PAIRED_SLICES = 4096  # of which pairs are counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plans:
    """What a config means to do with the volumes; None where it does not say."""

    spacing: tuple[float, ...] = ()  # mm of the prepared pixels
    clips: tuple[float, float] | None = None  # percentiles
    threshold: float | None = None  # of positions that are positives
    batch_size: int | None = None  # slices, of pre-training
    crop: tuple[int, int] | None = None
    classes: int | None = None


def findings(
    dataset: Dataset, volumes: Sequence[Facts], plans: Plans
) -> Iterator[Finding]:
    """What is to be said of all volumes together, the worst of a kind first.

    Args:
        dataset: its cases and classes.
        volumes: of the cases whose image could be read.
        plans: of the config.
    """
    if not volumes:
        return
    yield from _labels(dataset, volumes, plans)
    yield from _look_alike(volumes)
    yield from _same_voxels(volumes)
    yield from _directions(volumes)
    yield from _turned_over(dataset, volumes)
    yield from _heights(volumes)
    yield from _scales(volumes, plans)
    yield from _orientations(volumes)
    yield from _specks(volumes, plans)
    yield from _crops(volumes, plans)
    yield from _positives(volumes, plans)


def positives_per_anchor(
    slices: Sequence[int], *, threshold: float, batch_size: int
) -> float:
    """Mean number of keys of a batch, two views of every slice, that are positives.

    Args:
        slices: of every volume; of more than 4096 in all, every so many are taken.
        threshold: of positions, as of PCL.
        batch_size: slices of a batch.
    """
    heights = np.concatenate([position(np.arange(n), n) for n in slices])
    heights = heights[:: len(heights) // _PAIRED_SLICES + 1]
    near = [(np.abs(heights - height) < threshold).sum() - 1 for height in heights]
    share = sum(near) / max(1, len(heights) * (len(heights) - 1))
    return 1.0 + 2 * (batch_size - 1) * share  # the other view of the slice is one


def has_specks(volume: Facts) -> bool:
    """Whether grey values go up far beyond the range of nearly all voxels."""
    low, high, most = (volume.percentiles[k] for k in (1, -2, -1))
    return most - high > SPECK * (high - low)


def is_flat(volume: Facts, clips: Sequence[float]) -> bool:
    """Whether clipping at these percentiles surely leaves a single grey value."""
    low = max(i for i, p in enumerate(PERCENTILES) if p <= clips[0])
    high = min(i for i, p in enumerate(PERCENTILES) if p >= clips[1])
    return volume.percentiles[low] == volume.percentiles[high]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _finding(
    level: str, what: str, consequence: str, remedy: str, *, where: str = ""
) -> Finding:
    return Finding(
        level=level,
        where=where,
        path="",
        what=what,
        consequence=consequence,
        remedy=remedy,
    )


def _labels(
    dataset: Dataset, volumes: Sequence[Facts], plans: Plans
) -> Iterator[Finding]:
    values = dataset.label_values
    unlabelled = [case.name for case in dataset.cases if case.label_path is None]
    if plans.classes is not None and len(values) != plans.classes:
        listed = ", ".join(map(str, values))
        yield _finding(
            ERROR,
            f"the config is for {plans.classes} classes, the labels have {len(values)}"
            f" values ({listed})",
            "training stops at once",
            f"use classes={len(values)}, or --config.finetune.model.num_classes",
        )
    if unlabelled:
        everyone = len(unlabelled) == len(dataset.cases)
        yield _finding(
            WARNING if everyone and plans.classes is not None else NOTE,
            f"{len(unlabelled)} of {len(dataset.cases)} volumes have no label"
            f" ({_named(unlabelled)})",
            "they serve pre-training only"
            if not everyone
            else "nothing can be fine-tuned or scored",
            "nothing, if that is meant; else see config.data.options.labels and match",
        )
    labelled = [volume for volume in volumes if volume.label_voxels]
    if not labelled:
        return
    if len({volume.patient for volume in labelled}) < 2:
        yield _finding(
            WARNING,
            "all labels are of one patient",
            "none can be held out, so nothing can be fine-tuned and scored",
            "label another one, or see config.data.options.patient",
        )
    if len(values) > _MANY_VALUES:
        yield _finding(
            WARNING,
            f"labels have {len(values)} values",
            "each becomes a class, and memory grows with their number",
            "list those that count in config.data.options.label_values, if a label is"
            " no image by mistake",
        )
    if values != tuple(range(len(values))):
        yield _finding(
            NOTE,
            f"label values are {', '.join(map(str, values))}",
            f"the network counts them as classes 0 to {len(values) - 1}, and"
            " predictions are written with the files' values",
            "nothing to do; config.data.options.class_names names them in tables",
        )
    for value in values[1:]:
        having = [v for v in labelled if v.label_voxels.get(value)]
        if len(having) <= _RARE_SHARE * len(labelled) and len(labelled) > len(having):
            if not having:
                what = f"no label has the value {value}"
            else:
                number = sum(v.label_voxels[value] for v in having)
                what = (
                    f"label value {value} occurs in {len(having)} of"
                    f" {len(labelled)} labels only ({_named([v.name for v in having])};"
                    f" {number} voxels)"
                )
            yield _finding(
                WARNING,
                what,
                "such a class can hardly be learned, and may be a slip of a brush",
                "mend the files, or list what counts in"
                " config.data.options.label_values",
            )


def _look_alike(volumes: Sequence[Facts]) -> Iterator[Finding]:
    groups = look_alike(volume.patient for volume in volumes)
    if groups:
        more = f" and {len(groups) - 1} more such groups" if len(groups) > 1 else ""
        yield _finding(
            WARNING,
            f"patients {_named(groups[0])} look like one{more}",
            "one person's scans may be both trained on and scored, and scores too good",
            r"set config.data.options.patient, such as '(patient\d+)', or patient_csv",
        )


def _same_voxels(volumes: Sequence[Facts]) -> Iterator[Finding]:
    copies: dict[str, list[Facts]] = defaultdict(list)
    for volume in volumes:
        copies[volume.digest].append(volume)
    for same in copies.values():
        if len(same) < 2:
            continue
        several = len({volume.patient for volume in same}) > 1
        yield _finding(
            WARNING,
            f"{_named([v.name for v in same])} have the same voxels",
            "patients of training and test may be the same, and scores too good"
            if several
            else "they count twice in training",
            "keep one, or give them one patient (config.data.options.patient)",
        )


def _directions(volumes: Sequence[Facts]) -> Iterator[Finding]:
    directions = np.array([volume.slice_direction for volume in volumes])
    most = common_direction(directions)
    astray = [
        volume.name
        for volume, cosine in zip(volumes, directions @ most, strict=True)
        if cosine < SAME_DIRECTION
    ]
    if astray:
        yield _finding(
            WARNING,
            f"{len(astray)} of {len(volumes)} volumes count slices in another direction"
            f" than most ({_named(astray)})",
            "equal positions are then not the same anatomy",
            f"set {AXIS_KEY}, mend their headers or leave them out",
        )


def _turned_over(dataset: Dataset, volumes: Sequence[Facts]) -> Iterator[Finding]:
    """Volumes whose slices fit the others' upside down: by labels, else grey values."""
    values = dataset.label_values[1:]
    none = (0.0,) * PROFILE
    labels = {
        v.name: np.array([v.label_profile.get(value, none) for value in values])
        for v in volumes
        if v.label_profile.keys() & set(values)
    }
    turned = list(_turned(labels))
    if turned:
        yield _finding(
            WARNING,
            f"labels of {len(turned)} volumes fit those of the others upside down along"
            f" the slices ({_named(turned)})",
            "their positions are those of other anatomy",
            "look at them in a viewer; turn their affine, or leave them out",
        )
    grey = {v.name: np.array([v.profile]) for v in volumes}
    turned = [name for name in _turned(grey) if name not in labels]
    if turned:
        yield _finding(
            NOTE,
            f"grey values of {len(turned)} unlabelled volumes fit those of the others"
            f" upside down along the slices ({_named(turned)})",
            "they may be stored so, with a header that does not say it",
            "look at one in a viewer; such a volume needs another affine",
        )


def _turned(profiles: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Names whose [values, PROFILE] correlate with the sum of the others' turned over.

    Levels of a row do not matter, and its spread not where it is a row alone.
    """
    if len(profiles) < _LEAST_VOLUMES:
        return
    centred = {}
    for name, rows in profiles.items():
        rows = rows - rows.mean(axis=1, keepdims=True)
        spread = np.linalg.norm(rows)
        centred[name] = rows / spread if spread else rows
    total = np.sum(list(centred.values()), axis=0)
    for name, rows in centred.items():
        others = total - rows
        length = np.linalg.norm(others)
        if not rows.any() or not length:
            continue
        forward = float((rows * others).sum() / length)
        backward = float((rows[:, ::-1] * others).sum() / length)
        if forward < _AGAINST and backward > _TURNED:
            yield name


def _heights(volumes: Sequence[Facts]) -> Iterator[Finding]:
    few = [volume.name for volume in volumes if volume.slices < _FEW_SLICES]
    if few:
        yield _finding(
            WARNING,
            f"fewer than {_FEW_SLICES} slices: {len(few)} of {len(volumes)} volumes"
            f" ({_named(few)})",
            "their positions are coarse",
            f"nothing, if they are cut so; else set {AXIS_KEY}",
        )
    height = {v.name: v.slices * v.slice_spacing for v in volumes}
    middle = statistics.median(height.values())
    odd = [
        name
        for name, mm in height.items()
        if max(mm / middle, middle / mm) > _HEIGHT_RATIO
    ]
    if odd:
        yield _finding(
            WARNING,
            f"{len(odd)} of {len(volumes)} volumes are far higher or lower than the"
            f" others, of {min(height.values()):.0f} to {max(height.values()):.0f} mm,"
            f" half of them above {middle:.0f} ({_named(odd)})",
            "a relative height is then not the same anatomy, on which PCL and GCL rely",
            "crop them to the same part of the body, or compare with configs/simclr_*",
        )


def _scales(volumes: Sequence[Facts], plans: Plans) -> Iterator[Finding]:
    if any(plans.spacing):
        return
    sides = list(zip(*(volume.plane_spacing for volume in volumes), strict=True))
    if any(max(sizes) > _SCALE_RATIO * min(sizes) for sizes in sides):
        sizes = [size for side in sides for size in side]
        middle = statistics.median(sizes)
        yield _finding(
            WARNING,
            f"pixels are {min(sizes):.3g} to {max(sizes):.3g} mm large",
            "the network sees the same organ at several scales",
            f"--{SPACING_KEY}='({middle:.3g}, {middle:.3g})' resamples to their median",
        )


def _orientations(volumes: Sequence[Facts]) -> Iterator[Finding]:
    codes = Counter(volume.orientation for volume in volumes)
    if len(codes) > 1:
        listed = ", ".join(f"{number} {code}" for code, number in codes.most_common())
        yield _finding(
            NOTE,
            f"volumes are stored in several orientations ({listed})",
            "they are turned alike, and predictions are turned back",
            "nothing to do",
        )


def _specks(volumes: Sequence[Facts], plans: Plans) -> Iterator[Finding]:
    if plans.clips and tuple(plans.clips) != (0, 100):
        for volume in volumes:
            if is_flat(volume, plans.clips):
                yield _finding(
                    ERROR,
                    f"between the percentiles {plans.clips[0]:g} and"
                    f" {plans.clips[1]:g}, where it is clipped, all is one grey value",
                    "preparation stops at it",
                    "--config.data.prepare.clip_percentiles='(0.0, 100.0)'",
                    where=volume.name,
                )
    if plans.clips is None or tuple(plans.clips) != (0, 100):
        return
    specks = [volume.name for volume in volumes if has_specks(volume)]
    if specks:
        yield _finding(
            WARNING,
            f"{len(specks)} volumes have specks of ten times the usual range of grey"
            f" values ({_named(specks)})",
            "normalised by them, the rest looks flat",
            "--config.data.prepare.clip_percentiles='(1.0, 99.0)'",
        )


def _crops(volumes: Sequence[Facts], plans: Plans) -> Iterator[Finding]:
    if plans.crop is None:
        return
    seen, filled = [], []  # shares of the side of a slice, and of the crop
    for volume in volumes:
        sides = [
            crop * (new or old) / (number * old)
            for crop, number, old, new in zip(
                plans.crop,
                volume.plane,
                volume.plane_spacing,
                plans.spacing or (0.0, 0.0),
                strict=True,
            )
        ]
        seen.append(min(1.0, *sides))
        filled.append(math.prod(min(1.0, 1 / side) for side in sides))
    seen, filled = statistics.median(seen), statistics.median(filled)
    if seen < 0.5:
        yield _finding(
            WARNING,
            f"a crop of {plans.crop[0]} x {plans.crop[1]} pixels shows {seen:.0%} of"
            " the side of a slice",
            "crops at the same height may show different organs, and are called alike",
            "a larger crop=, or coarser pixels by --config.data.prepare.spacing",
        )
    if filled < 0.25:
        yield _finding(
            WARNING,
            f"slices fill {filled:.0%} of a crop of {plans.crop[0]} x {plans.crop[1]}",
            "the rest is padding, which costs time",
            "a smaller crop=, a multiple of 16",
        )


def _positives(volumes: Sequence[Facts], plans: Plans) -> Iterator[Finding]:
    if plans.threshold is None or plans.batch_size is None:
        return
    slices = [volume.slices for volume in volumes]
    number = positives_per_anchor(
        slices, threshold=plans.threshold, batch_size=plans.batch_size
    )
    keys = 2 * plans.batch_size - 1
    key = "--config.pretrain.method.position_threshold"
    text = (
        f"a slice has {number:.1f} positives among {keys} keys of a batch, its own view"
        f" included (threshold {plans.threshold:g})"
    )
    if number > _MANY_POSITIVES * keys:
        yield _finding(
            WARNING,
            text,
            "nearly everything counts as alike",
            f"a smaller {key}",
        )
    elif number < 1 + _FEW_POSITIVES:
        yield _finding(
            WARNING,
            text,
            "PCL is then nearly SimCLR",
            f"a larger {key}, or more slices a batch",
        )
