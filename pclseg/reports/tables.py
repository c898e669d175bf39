"""Tables of a comparison of arms (initialisations, methods), as text or markdown."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from pclseg.reports.comparison import Numbers
from pclseg.reports.runs import shown

# metric: (title, decimals, reasons for which a row has no value)
METRICS = {
    "dice": ("Dice per case", 3, ("both_empty",)),
    "hd95_mm": ("HD95 (mm)", 2, ("both_empty", "one_empty", "spacing_unknown")),
    "asd_mm": ("ASD (mm)", 2, ("both_empty", "one_empty", "spacing_unknown")),
    "nsd": ("NSD{tolerance}", 3, ("both_empty", "spacing_unknown")),
}
LEGEND = (
    "Mean ± sample SD over folds (runs of one fold with several seeds averaged first).",
    "A line 'a - b' is the paired difference over the same cases, classes and folds:"
    " mean ± sample SD over cases, n cases.",
    "M: labelled patients. mean: mean over the classes of a case.",
    "left out: rows (case and class) without a value, and why. A class that only the"
    " label or only the prediction has counts as Dice 0 and NSD 0 but has no distance"
    " (one empty): read HD95 and ASD together with these counts.",
)
SEEDS_LEGEND = (
    "SD over seeds: sample SD of the mean over the seeds of a fold, pooled over folds."
)
DIFFERENCES_LEGEND = (
    "Differences: {level:.0%} interval from {resamples:,} bootstrap resamples of"
    " patients; p of Wilcoxon's two-sided signed-rank test over patients; p (Holm):"
    " adjusted for all lines of its table; better, worse: patients; folds better: those"
    " whose mean difference is on the better side, each a training of its own.",
)
EFFICIENCY_LEGEND = (
    "Label efficiency: mean ± sample SD over folds [{level:.0%} interval over"
    " patients]. labels for: from how many labelled patients on the line between"
    " measured numbers stays at that share of the Dice of {baseline} with all labels"
    " (in brackets the measured numbers around it).",
)
FACTS = ("M", "arm", "folds", "seeds", "cases")
POOLED = {"dice_pooled_best": "best epoch", "dice_pooled_last": "last epoch"}
LEGACY = {"dice_legacy": ("legacy Dice", 3), "asd_legacy_voxel": ("legacy ASD", 2)}
LEGACY_LEGEND = (
    "Legacy: for comparison with tables of SSL4MIS and ACTION only. ASD is in voxels of"
    " the scored grid, from prediction to label and not back; a class that is not"
    " predicted has ASD 0, and one that only the prediction has ASD 0 and Dice 1."
)
TRANSDUCTIVE_LEGEND = (
    "[transductive]: training saw images, without their labels, of held-out patients."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, ready to be printed."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Tables and the sentences needed to read them."""

    tables: tuple[Table, ...]
    legend: tuple[str, ...]


def render(numbers: Numbers) -> Comparison:
    """The tables of `comparison.numbers`.

    For each metric, arm x label count and, where there are differences, these with
    interval and test; then the Dice against the label count, where there are several,
    the pooled Dice of PCL's authors and the scores of SSL4MIS, where a run has them.
    """
    tables = []
    for metric in METRICS:
        tables.append(_metric_table(numbers, metric))
        if numbers["metrics"][metric]["differences"]:
            tables.append(_difference_table(numbers, metric))
    if len(numbers["label_counts"]) > 1:
        tables.append(_efficiency_table(numbers))
    if numbers["pooled"]:
        tables.append(_pooled_table(numbers))
    if numbers["legacy"]:
        tables.append(_legacy_table(numbers))
    return Comparison(tables=tuple(tables), legend=tuple(_legend(numbers)))


def as_text(comparison: Comparison) -> str:
    """The tables with aligned columns, for a terminal of any width."""
    blocks = [_aligned(table) for table in comparison.tables]
    return "\n\n".join([*blocks, "\n".join(comparison.legend)]) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """The tables as GitHub markdown."""
    blocks = []
    for table in comparison.tables:
        lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        body = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        blocks.append(f"### {table.title}\n\n{body}")
    legend = "\n".join(f"- {sentence}" for sentence in comparison.legend)
    return "\n\n".join([*blocks, legend]) + "\n"


def _legend(numbers: Numbers) -> Iterator[str]:
    yield from LEGEND
    if numbers["grid"]:
        yield f"Scored on {numbers['grid']}."
    if _several_seeds(numbers):
        yield SEEDS_LEGEND
    about = {**numbers["bootstrap"], "baseline": numbers["baseline"]}
    if numbers["metrics"]["dice"]["differences"]:
        yield from (line.format(**about) for line in DIFFERENCES_LEGEND)
    if len(numbers["label_counts"]) > 1:
        yield from (line.format(**about) for line in EFFICIENCY_LEGEND)
    if numbers["legacy"]:
        yield LEGACY_LEGEND
    if numbers["transductive"]:
        yield TRANSDUCTIVE_LEGEND
    yield from (f"Mind: {warning}" for warning in numbers["warnings"])


def _title(numbers: Numbers, metric: str) -> str:
    tolerance = numbers["tolerance_mm"]
    return METRICS[metric][0].format(
        tolerance="" if tolerance is None else f" at {tolerance:g} mm"
    )


def _metric_table(numbers: Numbers, metric: str) -> Table:
    found = numbers["metrics"][metric]
    return Table(
        title=f"{_title(numbers, metric)} ({found['better']} is better)",
        columns=(
            *(*FACTS, *numbers["classes"], "mean"),
            *(["SD over seeds"] if _several_seeds(numbers) else []),
            "left out",
        ),
        rows=tuple(_metric_rows(numbers, metric)),
    )


def _metric_rows(numbers: Numbers, metric: str) -> Iterator[tuple[str, ...]]:
    _, decimals, reasons = METRICS[metric]
    several = _several_seeds(numbers)
    found = numbers["metrics"][metric]
    differences = {(d["arm"], d["labelled"]): d for d in found["differences"]}
    for facts, group in zip(numbers["groups"], found["groups"], strict=True):
        folds = len(facts["folds"])
        cells = [_cell(part, decimals, folds) for part in _parts(numbers, group)]
        if several:
            sd = group["overall"]["sd_seeds"]
            cells.append("-" if sd is None else f"{sd:.{decimals}f}")
        counts = {key: facts["left_out"][key] for key in reasons}
        left_out = ", ".join(f"{n} {key}" for key, n in counts.items() if n)
        yield (*_facts(facts), *cells, left_out.replace("_", " ") or "0")
        difference = differences.get((group["arm"], group["labelled"]))
        if difference:
            cells = [_difference_cell(d, decimals) for d in _parts(numbers, difference)]
            arms = f"{group['arm']} - {numbers['baseline']}"
            end = [""] * (1 + several)
            yield (shown(group["labelled"]), arms, "", "", "", *cells, *end)


def _several_seeds(numbers: Numbers) -> bool:
    return any(len(facts["seeds"]) > 1 for facts in numbers["groups"])


def _parts(numbers: Numbers, group: Numbers) -> list[Numbers]:
    # By name: a JSON file sorts its keys.
    of_classes = [group["classes"][name] for name in numbers["classes"]]
    return [*of_classes, group["overall"]]


def _difference_table(numbers: Numbers, metric: str) -> Table:
    found = numbers["metrics"][metric]
    rows = tuple(
        _difference_row(d, METRICS[metric][1], better=found["better"])
        for d in found["differences"]
    )
    return Table(
        title=f"Differences to {numbers['baseline']}: {_title(numbers, metric)}, mean"
        f" over the classes ({found['better']} is better)",
        columns=(
            *("M", "arm", "mean"),
            f"{numbers['bootstrap']['level']:.0%} interval",
            *("patients", "better", "worse", "p", "p (Holm)", "folds better"),
        ),
        rows=rows,
    )


def _difference_row(
    difference: Numbers, decimals: int, *, better: str
) -> tuple[str, ...]:
    found = difference["overall"]
    mean = "-" if found["mean"] is None else f"{found['mean']:+.{decimals}f}"
    sign = 1 if better == "higher" else -1
    folds = [f["mean"] for f in difference["folds"] if f["mean"] is not None]
    return (
        *(shown(difference["labelled"]), difference["arm"], mean),
        _interval(found["interval"], f"+.{decimals}f"),
        *(str(found[key]) for key in ("patients", "better", "worse")),
        *(_p(found[key]) for key in ("p", "p_holm")),
        f"{sum(sign * mean > 0 for mean in folds)} of {len(folds)}",
    )


def _efficiency_table(numbers: Numbers) -> Table:
    found = numbers["label_efficiency"]
    counts = numbers["label_counts"]
    rows = []
    for curve in found["curves"]:
        points = {point["labelled"]: point for point in curve["points"]}
        cells = [_point(points.get(labelled)) for labelled in counts]
        needed = [_needed(share) for share in curve["needed"]]
        rows.append((curve["arm"], *cells, *(needed or ["-"] * len(found["shares"]))))
    return Table(
        title="Label efficiency: Dice per case, mean over the classes, by labelled"
        " patients",
        columns=(
            "arm",
            *(f"M = {shown(labelled)}" for labelled in counts),
            *(f"labels for {share:.0%}" for share in found["shares"]),
        ),
        rows=tuple(rows),
    )


def _point(point: Numbers | None) -> str:
    if point is None or point["mean"] is None:
        return "-"
    mean = _cell(point, METRICS["dice"][1], point["n"])
    return f"{mean} {_interval(point['interval'], '.3f')}".removesuffix(" -")


def _needed(needed: Numbers) -> str:
    if needed["labels"] is None:
        return "not reached"
    if needed["low"] is None:
        return f"at most {needed['labels']:.3g}"
    return f"{needed['labels']:.3g} ({needed['low']:.3g} to {needed['high']:.3g})"


def _pooled_table(numbers: Numbers) -> Table:
    rows = []
    for place, facts in enumerate(numbers["groups"]):
        folds = len(facts["folds"])
        cells = [_cell(numbers["pooled"][key][place], 3, folds) for key in POOLED]
        rows.append((*_facts(facts), *cells))
    return Table(
        title="Pooled Dice of the authors' code (all voxels of a fold together;"
        " higher is better; the best epoch is chosen on the scored fold itself)",
        columns=(*FACTS, *POOLED.values()),
        rows=tuple(rows),
    )


def _legacy_table(numbers: Numbers) -> Table:
    rows = []
    for place, facts in enumerate(numbers["groups"]):
        folds = len(facts["folds"])
        cells = [
            _cell(numbers["legacy"][key][place], decimals, folds)
            for key, (_, decimals) in LEGACY.items()
        ]
        rows.append((*_facts(facts), *cells))
    return Table(
        title="As the authors of SSL4MIS and ACTION score (Dice: higher is better; ASD"
        " in voxels: lower is better; mean over the classes)",
        columns=(*FACTS, *(title for title, _ in LEGACY.values())),
        rows=tuple(rows),
    )


def _facts(facts: Numbers) -> tuple[str, ...]:
    counts = (len(facts["folds"]), len(facts["seeds"]), facts["cases"])
    return (shown(facts["labelled"]), facts["arm"], *map(str, counts))


def _interval(interval: Sequence[float] | None, spec: str) -> str:
    if interval is None:
        return "-"
    low, high = interval
    return f"[{low:{spec}}, {high:{spec}}]"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _cell(values: dict[str, Any], decimals: int, folds: int) -> str:
    if not values["n"]:
        return "-"
    sd = "" if values["sd"] is None else f" ± {values['sd']:.{decimals}f}"
    few = "" if values["n"] == folds else f" (n {values['n']})"
    return f"{values['mean']:.{decimals}f}{sd}{few}"


def _difference_cell(values: dict[str, Any], decimals: int) -> str:
    if not values["n"]:
        return "-"
    sd = "" if values["sd"] is None else f" ± {values['sd']:.{decimals}f}"
    return f"{values['mean']:+.{decimals}f}{sd} (n {values['n']})"


def _aligned(table: Table) -> str:
    lines = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([table.title, padded[0], "-" * max(map(len, padded)), *padded[1:]])
