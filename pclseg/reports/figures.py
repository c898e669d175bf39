"""Figures of runs: curves, overlays, what the embedding knows of position.

Every function writes one file, in the format of its suffix: .png, .svg or .webp.
"""

import csv
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pclseg.errors import UserError
from pclseg.reports.drawing import (
    COLOURS,
    MARKERS,
    line_style,
    new_figure,
    plain_axes,
    plain_matplotlib,
    save_figure,
    set_log_scale,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Without the blue and green that drown in dark tissue.
CONTOUR_COLOURS = ("#F0E442", "#56B4E9", "#D55E00", "#CC79A7", "#009E73", "#E69F00")
MOST_IN_LEGEND = 10
FEW_LINES = 4  # that can be followed where they are noisy
MOST_POINTS = 40  # of a line among many
CURVES = {  # file of a stage: {column: axis label}
    "metrics.csv": {"loss": "loss", "learning_rate": "learning rate"},
    "validation.csv": {"dice_pooled": "validation Dice, pooled"},
}
DODGE = 0.08  # of the distance between neighbouring label counts
MOST_DODGED = 0.5  # of it, by all arms together
CHARACTERS_PER_INCH = 12  # of a legend
LINE_IN_LEGEND, BETWEEN_COLUMNS = 7, 3  # characters
ROW_INCHES = 0.21  # of a legend


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlay:
    """One case to be drawn; all arrays in the prepared grid.

    Attributes:
        role: what it is shown for, e.g. "worst".
        case: its name.
        dice: mean over the classes, or NaN.
        image: [Z, H, W] float.
        label: [Z, H, W] class ids.
        prediction: [Z, H, W] class ids.
        spacing: (z, y, x) mm.
    """

    role: str
    case: str
    dice: float
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float]


@plain_matplotlib()
def training_curves(
    path: str | Path,
    sources: Mapping[str, Sequence[str | Path]],
    *,
    columns: Mapping[str, str],
    log_scale: Collection[str] = (),
) -> None:
    """One panel per column over the optimizer step, one line per arm.

    Several files of an arm (folds, seeds) make the line of their mean, in a band from
    the least to the greatest, over the stretch of steps that all of them have. Where
    one lacks a step of another, since their epochs differ, it is interpolated; dots
    mark few steps that all have. Where there are many lines, each is drawn through
    means of consecutive steps, as their noise would hide one behind the other.

    Args:
        path: of the figure.
        sources: {arm: CSV files with a column "step"}; empty cells are passed over.
        columns: {column: axis label with unit}. An arm without the column, or without
            files, has no line, but the colours go on as if it had.
        log_scale: columns whose axis is logarithmic where they span more than tenfold.

    Raises:
        UserError: a file cannot be read, or no file has one of the columns.
    """
    tables = {
        arm: {Path(f): _read_rows(Path(f)) for f in fs} for arm, fs in sources.items()
    }
    figure = new_figure(5.0 * len(columns), 3.4)
    all_axes = np.atleast_1d(figure.subplots(1, len(columns)))
    for axes, (column, axis_label) in zip(all_axes, columns.items(), strict=True):
        drawn = False
        for number, (arm, runs) in enumerate(tables.items()):
            found = [_series(path, rows, column) for path, rows in runs.items()]
            series = [of_run for of_run in found if of_run]
            steps = _shared_steps(series)
            if not steps:
                continue
            values = np.array(
                [np.interp(steps, list(s), list(s.values())) for s in series]
            )
            if len(tables) > FEW_LINES:
                steps, values = _calmed(steps, values)
            few = len(steps) < 30 and all(step in s for s in series for step in steps)
            style = line_style(number) | {"marker": "." if few else None}
            name = arm if len(values) == 1 else f"{arm} (mean, range of {len(values)})"
            axes.plot(steps, values.mean(axis=0), label=name, **style)
            if len(values) > 1:
                low, high = values.min(axis=0), values.max(axis=0)
                axes.fill_between(
                    steps, low, high, color=style["color"], alpha=0.2, linewidth=0
                )
            drawn = True
        if not drawn:
            known = sorted(
                {key for t in tables.values() for r in t.values() for key in r[0]}
            )
            raise UserError(
                f"no file of {', '.join(sources)} has numbers in the column {column!r};"
                f" the columns are: {', '.join(known)}."
            )
        axes.set(xlabel="optimizer step", ylabel=axis_label)
        low, high = axes.dataLim.intervaly
        if column in log_scale and 0 < 10 * low < high:
            set_log_scale(axes)
        plain_axes(axes)
    _legend_of_lines(figure, title=None)
    save_figure(figure, path)


@plain_matplotlib()
def overlays(
    path: str | Path,
    cases: Sequence[Overlay],
    class_names: Sequence[str],
    *,
    num_slices: int = 4,
) -> None:
    """Contours on slices: label solid, prediction dashed; one row per case.

    Shown are slices spread evenly over those that hold any foreground.

    Args:
        path: of the figure.
        cases: e.g. the worst, the median and the best.
        class_names: K names, background first.
        num_slices: slices per case.
    """
    figure = new_figure(2.4 * num_slices, 2.75 * len(cases) + 0.5)
    rows = figure.subfigures(len(cases), 1, squeeze=False)[:, 0]
    for row, case in zip(rows, cases, strict=True):
        dice = "no Dice" if np.isnan(case.dice) else f"mean Dice {case.dice:.3f}"
        row.suptitle(f"{case.role}: {case.case}, {dice}", fontsize=10)
        chosen = _slices_to_show(case, num_slices)
        all_axes = row.subplots(1, num_slices, squeeze=False)[0]
        for axes, z in zip(all_axes, chosen, strict=True):
            _draw_slice(axes, case, z, len(class_names))
    names = enumerate(class_names[1:])
    entries = [(name, _contour_colour(i), "-") for i, name in names]
    entries += [("label", "black", "-"), ("prediction", "black", "--")]
    _legend_below(figure, entries)
    save_figure(figure, path)


@plain_matplotlib()
def similarity_against_distance(
    path: str | Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> None:
    """Cosine similarity of slices of different patients against their distance.

    Args:
        path: of the figure.
        curves: {name, e.g. "before pre-training": (distance, mean, n)}, each [bins], as
            `evaluation.embeddings.similarity_curve` returns them. One without pairs has
            no line, but the colours go on as if it had.
    """
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    for number, (name, (distance, mean, n)) in enumerate(curves.items()):
        filled = n > 0  # a bin without pairs leaves no gap in the line
        if not filled.any():
            continue
        shown = f"{name} ({n.sum():,} pairs)"
        axes.plot(
            distance[filled],
            mean[filled],
            label=shown,
            marker="o",
            **line_style(number),
        )
    axes.set(
        xlabel="|difference of position| (1 = whole stack)",
        ylabel="mean cosine similarity",
        xlim=(0, 1),
        title="Slices of different patients",
    )
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    plain_axes(axes)
    if axes.get_legend_handles_labels()[0]:
        _legend_of_lines(figure, title=None)
    save_figure(figure, path)


@plain_matplotlib()
def label_efficiency(
    path: str | Path, efficiency: Mapping[str, Any], *, level: float
) -> None:
    """Dice against the number of labelled patients, one line per arm.

    The measured numbers stand at equal distances, as they run from a few to all; arms
    are dodged so that their intervals can be told apart.

    Args:
        path: of the figure.
        efficiency: "label_efficiency" of `reports.comparison.numbers`.
        level: of the intervals.
    """
    curves = efficiency["curves"]
    counts = {
        point["labelled"]: point["labelled_patients"]
        for curve in curves
        for point in curve["points"]
    }
    order = sorted(counts, key=counts.__getitem__)
    figure = new_figure(6.6, 4.2)
    axes = figure.subplots()
    dodge = min(DODGE, MOST_DODGED / len(curves))
    for number, curve in enumerate(curves):
        shift = (number - (len(curves) - 1) / 2) * dodge
        places = {labelled: place + shift for place, labelled in enumerate(order)}
        _draw_efficiency(axes, curve, places, number)
    title = f"mean over folds, bars: {level:.0%} interval over patients"
    if efficiency["full"] is not None:
        shares = sorted((1.0, *efficiency["shares"]), reverse=True)
        # Named in the title: names at the lines overlap where these lie close.
        title += f"\ndotted: {', '.join(map('{:.0%}'.format, shares))}"
        title += f" of full supervision of {curves[0]['arm']}"
        for share in shares:
            axes.axhline(
                share * efficiency["full"],
                color="0.4",
                linestyle=(0, (1, 3)),
                linewidth=0.9,
            )
    names = [str(m) if m else f"all ({counts[m]:.3g})" for m in order]
    axes.set_xticks(range(len(order)), names)
    axes.set(
        xlabel="labelled patients (at equal distances)",
        ylabel="Dice per case, mean over classes",
        xlim=(-0.5, len(order) - 0.5),
    )
    plain_axes(axes)
    _legend_of_lines(figure, title=title)
    save_figure(figure, path)


@plain_matplotlib()
def embedding_map(
    path: str | Path,
    maps: Mapping[str, tuple[np.ndarray, np.ndarray]],
    position: np.ndarray,
    patient: np.ndarray,
) -> None:
    """The first two principal components, coloured by position and by patient.

    Args:
        path: of the figure.
        maps: {name: (points [N, 2], share [2])}, one column each, as
            `evaluation.embeddings.principal_components` returns them.
        position: [N] float in (0, 1].
        patient: [N] names or ids.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    patients = len(np.unique(patient))
    width = 4.2 * len(maps) + 1.6
    figure = new_figure(width, 7.4)
    grid = figure.subplots(2, len(maps), squeeze=False)
    for (upper, lower), (name, (points, share)) in zip(
        grid.T, maps.items(), strict=True
    ):
        dots = {"s": 14, "linewidths": 0, "alpha": 0.8}
        upper.scatter(*points.T, c=position, vmin=0, vmax=1, cmap="viridis", **dots)
        _scatter_patients(lower, points, patient, dots)
        upper.set_title(name)
        lower.set_title(f"{patients} patients, a colour and mark each", fontsize=9)
        for axes in (upper, lower):
            axes.set_xlabel(f"component 1 ({share[0]:.0%} of the variance)")
            axes.set_ylabel(f"component 2 ({share[1]:.0%})")
            axes.set_aspect("equal", adjustable="datalim")
            plain_axes(axes)
    bar = ScalarMappable(Normalize(0, 1), cmap="viridis")
    figure.colorbar(bar, ax=list(grid[0]), label="position (1 = last slice)")
    if patients <= MOST_IN_LEGEND:
        marks, names = grid[1, 0].get_legend_handles_labels()
        columns = int(width // 2)
        figure.legend(
            marks, names, title="patient", loc="outside lower center", ncols=columns
        ).set_frame_on(False)
    save_figure(figure, path)


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); expected the metrics of a run."
            " Start the run again to finish it."
        ) from error
    except (csv.Error, ValueError) as error:
        raise _broken(path, error) from error
    if not rows or "step" not in rows[0]:
        raise UserError(
            f"{path} has no rows with a column 'step'; expected the metrics of a run."
            " Start the run again to finish it."
        )
    return rows


def _series(
    path: Path, rows: Sequence[Mapping[str, str]], column: str
) -> dict[int, float]:
    """{step: value} in the order of the steps; `path` is where the rows are from."""
    having = [row for row in rows if row.get(column)]
    try:
        found = {int(row["step"]): float(row[column]) for row in having}
    except (TypeError, ValueError) as error:
        raise _broken(path, error) from error
    return dict(sorted(found.items()))


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is broken ({error}); expected the metrics of a run. Restore it, or"
        " start the run again in a new --workdir."
    )


def _shared_steps(series: Sequence[Mapping[int, float]]) -> list[int]:
    """All steps in the stretch that every series spans."""
    if not series:
        return []
    first, last = max(min(s) for s in series), min(max(s) for s in series)
    return sorted({step for s in series for step in s if first <= step <= last})


def _calmed(steps: Sequence[int], values: np.ndarray) -> tuple[list[int], np.ndarray]:
    """At most MOST_POINTS means over consecutive steps, at the middle one.

    Args:
        steps: [S] ascending.
        values: [runs, S].
    """
    parts = min(MOST_POINTS, len(steps))
    middles = [int(np.median(part)) for part in np.array_split(steps, parts)]
    means = [part.mean(axis=1) for part in np.array_split(values, parts, axis=1)]
    return middles, np.stack(means, axis=1)


def _slices_to_show(case: Overlay, count: int) -> list[int]:
    filled = np.flatnonzero(((case.label > 0) | (case.prediction > 0)).any(axis=(1, 2)))
    candidates = filled if len(filled) else np.arange(len(case.image))
    # The middles of `count` equal stretches, so that the ends are not overrepresented.
    places = (np.arange(count) + 0.5) / count * len(candidates)
    return [int(candidates[int(place)]) for place in places]


def _draw_slice(axes: "Axes", case: Overlay, z: int, num_classes: int) -> None:
    low, high = np.percentile(case.image[z], (1, 99))
    aspect = case.spacing[1] / case.spacing[2]
    axes.imshow(case.image[z], cmap="gray", vmin=low, vmax=high, aspect=aspect)
    for class_id in range(1, num_classes):
        for ids, style in ((case.label[z], "solid"), (case.prediction[z], "dashed")):
            # A rim of background, so that a mask at the border has a closed contour.
            mask = np.pad(ids == class_id, 1).astype(np.float32)
            if mask.any():
                y, x = (np.arange(-1, size - 1) for size in mask.shape)
                colour = _contour_colour(class_id - 1)
                axes.contour(
                    x, y, mask, [0.5], colors=colour, linestyles=style, linewidths=1.3
                )
    top, bottom, left, right = _window(case)
    axes.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"slice {z + 1} of {len(case.image)}", fontsize=8)


def _window(case: Overlay) -> tuple[int, int, int, int]:
    """(top, bottom, left, right): the foreground and half its size around."""
    filled = ((case.label > 0) | (case.prediction > 0)).any(axis=0)
    height, width = case.label.shape[1:]
    if not filled.any():
        return 0, height, 0, width
    rows, columns = np.nonzero(filled)
    margin = max(8, int(np.ptp(rows)) // 2, int(np.ptp(columns)) // 2)
    return (
        max(0, int(rows.min()) - margin),
        min(height, int(rows.max()) + 1 + margin),
        max(0, int(columns.min()) - margin),
        min(width, int(columns.max()) + 1 + margin),
    )


def _contour_colour(number: int) -> str:
    return CONTOUR_COLOURS[number % len(CONTOUR_COLOURS)]


def _draw_efficiency(
    axes: "Axes", curve: Mapping[str, Any], places: Mapping[int, float], number: int
) -> None:
    points = [point for point in curve["points"] if point["mean"] is not None]
    means = np.array([point["mean"] for point in points])
    # Without an interval the bar has no length.
    ends = np.array([p["interval"] or (p["mean"], p["mean"]) for p in points])
    bars = np.abs(ends.reshape(-1, 2) - means[:, None]).T
    axes.errorbar(
        [places[point["labelled"]] for point in points],
        means,
        yerr=bars,
        label=curve["arm"],
        marker=MARKERS[number % len(MARKERS)],
        capsize=3,
        **line_style(number),
    )


def _scatter_patients(
    axes: "Axes", points: np.ndarray, patient: np.ndarray, dots: dict[str, Any]
) -> None:
    from matplotlib import colormaps

    names, number = np.unique(patient, return_inverse=True)
    for i, name in enumerate(names):
        # Few get the safe colours. Of many, neighbours get hues far apart: steps of the
        # golden ratio.
        few = len(names) <= MOST_IN_LEGEND
        colour = (
            COLOURS[i % len(COLOURS)] if few else colormaps["turbo"](i * 0.618034 % 1)
        )
        own = points[number == i]
        axes.scatter(
            *own.T, color=colour, marker=MARKERS[i % len(MARKERS)], label=name, **dots
        )


def _legend_of_lines(figure: "Figure", *, title: str | None) -> None:
    """Below the panels; what is in several of them stands there once."""
    entries = {
        name: line
        for axes in figure.axes
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    longest = max(map(len, entries))
    room = figure.get_figwidth() * CHARACTERS_PER_INCH + BETWEEN_COLUMNS
    fitting = int(room // (longest + LINE_IN_LEGEND + BETWEEN_COLUMNS))
    columns = min(max(1, fitting), len(entries))
    rows = math.ceil(len(entries) / columns)
    figure.set_figheight(figure.get_figheight() + ROW_INCHES * rows)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=columns,
        title=title,
        frameon=False,
        handlelength=3.5,  # long enough to tell dashes apart
    )


def _legend_below(figure: "Figure", entries: Sequence[tuple[str, str, Any]]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=c, linestyle=style) for _, c, style in entries]
    names = [name for name, _, _ in entries]
    columns = min(len(names), 6)
    figure.legend(
        lines, names, loc="outside lower center", ncols=columns, frameon=False
    )
