"""Figures of a check: what the volumes of a dataset are like."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pclseg.data.examine import PERCENTILES, PROFILE, Facts
from pclseg.data.fitness import positives_per_anchor
from pclseg.reports.drawing import (
    COLOURS,
    line_style,
    new_figure,
    plain_axes,
    plain_matplotlib,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_SIZE = (5.0, 3.4)  # inches
_LARGE_RANGE = 100.0  # of values whose axis is logarithmic
_HEIGHTS = (np.arange(PROFILE) + 0.5) / PROFILE
_MOST_CLASSES = 12  # that a figure shows
_NAME = 24  # characters of a name
_THRESHOLDS = np.linspace(0.02, 0.5, 25)
_BATCH = 32


@plain_matplotlib()
def sizes(path: Path, volumes: Sequence[Facts]) -> None:
    """Slices a volume, and the height that they span."""
    figure = new_figure(*_SIZE)
    left, right = figure.subplots(1, 2)
    for axes, values, label in (
        (left, [v.slices for v in volumes], "slices a volume"),
        (right, [v.slices * v.slice_spacing for v in volumes], "height (mm)"),
    ):
        low, high = min(values), max(values)
        edges = np.linspace(low - 0.5, high + 0.5, min(21, int(high - low) + 2))
        axes.hist(values, bins=edges.tolist(), color=COLOURS[0])
        axes.set_xlabel(label)
        axes.yaxis.get_major_locator().set_params(integer=True)
        plain_axes(axes)
    left.set_ylabel("volumes")
    save_figure(figure, path)


@plain_matplotlib()
def spacings(path: Path, volumes: Sequence[Facts]) -> None:
    """Pixel size against slice distance, a dot a volume."""
    figure = new_figure(*_SIZE)
    axes = figure.subplots()
    for side, name in enumerate(("row to row", "column to column")):
        axes.plot(
            [v.plane_spacing[side] for v in volumes],
            [v.slice_spacing for v in volumes],
            "o+"[side],
            markersize=(5, 8)[side],
            alpha=0.5,
            color=COLOURS[side],
            label=name,
        )
    _legend(axes)
    axes.set_xlabel("pixel (mm)")
    axes.set_ylabel("slice distance (mm)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    plain_axes(axes)
    save_figure(figure, path)


@plain_matplotlib()
def grey_values(path: Path, volumes: Sequence[Facts]) -> None:
    """The range from the 1st to the 99th percentile and the median of every volume."""
    low, middle, high = (
        np.array([v.percentiles[PERCENTILES.index(p)] for v in volumes])
        for p in (1.0, 50.0, 99.0)
    )
    order = np.argsort(middle, kind="stable")
    places = np.arange(len(volumes))
    figure = new_figure(*_SIZE)
    axes = figure.subplots()
    axes.vlines(places, low[order], high[order], color=COLOURS[4], linewidth=1.2)
    axes.plot(places, middle[order], ".", color=COLOURS[0], markersize=4)
    positive = high[high > 0]
    if len(positive) and positive.max() > _LARGE_RANGE * positive.min():
        axes.set_yscale("symlog", linthresh=float(positive.min()))
        _plain_numbers(axes.yaxis)
    axes.set_xlabel("volumes, by median")
    axes.set_ylabel("grey value: median, 1 to 99 %")
    plain_axes(axes)
    save_figure(figure, path)


@plain_matplotlib()
def profiles(path: Path, volumes: Sequence[Facts]) -> None:
    """Mean grey value against height, a line a volume, and the median."""
    rows = np.array([v.profile for v in volumes])
    rows = rows - rows.mean(axis=1, keepdims=True)
    spread = rows.std(axis=1, keepdims=True)
    rows = rows / np.where(spread > 0, spread, 1)
    figure = new_figure(*_SIZE)
    axes = figure.subplots()
    axes.plot(_HEIGHTS, rows.T, color="0.6", linewidth=0.6, alpha=0.5)
    axes.plot(_HEIGHTS, np.median(rows, axis=0), color=COLOURS[0], linewidth=2)
    axes.set_xlabel("height in the volume, 0 to 1")
    axes.set_ylabel("mean grey value (SD)")
    plain_axes(axes)
    save_figure(figure, path)


@plain_matplotlib()
def label_sizes(
    path: Path, volumes: Sequence[Facts], names: Sequence[str], values: Sequence[int]
) -> None:
    """Volume of every class in every label, a dot each; background left out."""
    names, values = names[: _MOST_CLASSES + 1], values[: _MOST_CLASSES + 1]
    figure = new_figure(_SIZE[0], max(_SIZE[1], 0.6 + 0.28 * len(values)))
    axes = figure.subplots()
    found = []
    for row, value in enumerate(values[1:]):
        ml = [
            v.label_voxels[value] * v.voxel_ml
            for v in volumes
            if v.label_voxels.get(value)
        ]
        found += ml
        # Spread a little, always alike, so that dots do not hide each other.
        places = row + 0.5 * ((np.arange(len(ml)) * 0.618034) % 1 - 0.5)
        axes.plot(
            ml, places, ".", color=COLOURS[row % len(COLOURS)], alpha=0.5, markersize=5
        )
    if found and max(found) > _LARGE_RANGE * min(found):
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
    axes.set_yticks(range(len(values) - 1), [_short(name) for name in names[1:]])
    axes.invert_yaxis()
    axes.set_xlabel("size in a label (ml)")
    plain_axes(axes)
    save_figure(figure, path)


@plain_matplotlib()
def label_heights(
    path: Path, volumes: Sequence[Facts], names: Sequence[str], values: Sequence[int]
) -> None:
    """Area of every class against height: mean, and the middle half of the labels."""
    shown = list(zip(names[1:], values[1:], strict=True))[:_MOST_CLASSES]
    figure = new_figure(*_SIZE)
    axes = figure.subplots()
    for number, (name, value) in enumerate(shown):
        rows = [v.label_profile[value] for v in volumes if value in v.label_profile]
        if not rows:
            continue
        low, middle, high = np.percentile(rows, (25, 50, 75), axis=0)
        style = line_style(number)
        axes.plot(_HEIGHTS, middle, label=_short(name), **style)
        axes.fill_between(
            _HEIGHTS, low, high, color=style["color"], alpha=0.15, linewidth=0
        )
    axes.set_xlabel("height in the volume, 0 to 1")
    axes.set_ylabel("area, of the largest part")
    handles, texts = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, texts), default=0) < 14 else 2
    figure.set_figheight(_SIZE[1] + 0.22 * -(-len(texts) // columns))
    figure.legend(
        handles,
        texts,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )
    plain_axes(axes)
    save_figure(figure, path)


@plain_matplotlib()
def positives(
    path: Path,
    volumes: Sequence[Facts],
    *,
    threshold: float | None,
    batch_size: int | None,
) -> None:
    """Positives of a slice in a batch against the threshold of PCL."""
    batch = batch_size or _BATCH
    slices = [volume.slices for volume in volumes]
    counts = [
        positives_per_anchor(slices, threshold=float(t), batch_size=batch)
        for t in _THRESHOLDS
    ]
    figure = new_figure(*_SIZE)
    axes = figure.subplots()
    axes.plot(_THRESHOLDS, counts, color=COLOURS[0])
    if threshold is not None:
        axes.axvline(threshold, color=COLOURS[1], linestyle="--", label="the config's")
        _legend(axes)
    axes.set_xlabel("position_threshold")
    axes.set_ylabel(f"positives among {2 * batch - 1} keys")
    axes.set_ylim(bottom=0)
    plain_axes(axes)
    save_figure(figure, path)


@plain_matplotlib()
def middle_slices(
    path: Path,
    slices: Sequence[tuple[str, np.ndarray, np.ndarray | None, float]],
    values: Sequence[int],
) -> None:
    """Slices of several volumes side by side, labels as contours.

    Args:
        path: of the figure.
        slices: (name, image [H, W], label [H, W] or None, height / width of a pixel).
        values: of the classes in the labels, the background first.
    """
    columns = min(4, len(slices))
    rows = -(-len(slices) // columns)
    figure = new_figure(2.2 * columns, 2.4 * rows)
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, image, label, aspect) in zip(panels, slices, strict=False):
        low, high = np.percentile(image, (1, 99))
        axes.imshow(
            image, cmap="gray", vmin=low, vmax=high, aspect=aspect, origin="lower"
        )
        # A contour needs two rows and two columns.
        for number, value in enumerate(values[1:] if min(image.shape) > 1 else ()):
            if label is not None and (label == value).any():
                axes.contour(
                    label == value,
                    levels=[0.5],
                    colors=[COLOURS[number % len(COLOURS)]],
                    linewidths=1.0,
                )
        axes.set_title(_short(name), fontsize=8)
    save_figure(figure, path)


def _plain_numbers(axis: "Axis") -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _legend(axes: "Axes") -> None:
    axes.legend(frameon=False, fontsize=9)
