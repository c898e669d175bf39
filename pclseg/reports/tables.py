"""Tables that compare arms (initialisations, methods) over folds and seeds."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from pclseg.errors import UserError
from pclseg.evaluation.cases import (
    Row,
    case_values,
    exclusions,
    nan_mean,
    read_cases,
    spread,
)
from pclseg.files import read_json
from pclseg.named import nearest

# metric: (title, which way is better, decimals, reasons for which a row has no value)
METRICS = {
    "dice": ("Dice per case", "higher", 3, ("both_empty",)),
    "hd95_mm": (
        "HD95 (mm)",
        "lower",
        2,
        ("both_empty", "one_empty", "spacing_unknown"),
    ),
    "asd_mm": ("ASD (mm)", "lower", 2, ("both_empty", "one_empty", "spacing_unknown")),
    "nsd": ("NSD{tolerance}", "higher", 3, ("both_empty", "spacing_unknown")),
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
FACTS = ("M", "arm", "folds", "seeds", "cases")
POOLED = {"dice_pooled_best": "best epoch", "dice_pooled_last": "last epoch"}
TRANSDUCTIVE = " [transductive]"
TRANSDUCTIVE_LEGEND = (
    "[transductive]: pre-training saw images of validation or test patients."
)


Group = tuple[str, int]  # arm as shown, labelled patients


class Run(TypedDict):
    """One finished run: an arm at one label count, fold and seed."""

    arm: str
    labelled: int
    fold: int
    seed: int
    rows: list[Row]
    tolerance_mm: NotRequired[float]
    transductive: NotRequired[bool]
    pooled: NotRequired[dict[str, float]]  # the authors' metric, keys of POOLED


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


def read_run(workdir: str | Path) -> Run:
    """Reads a run directory: config.json, summary.json and cases.csv.

    Raises:
        UserError: the folder is no run, the run is not finished, or it has no case.
    """
    workdir = Path(workdir)
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"{workdir} is no run directory: it has no config.json; give the --workdir"
            " of a training."
        )
    for name in ("summary.json", "cases.csv"):
        if not (workdir / name).is_file():
            raise UserError(
                f"{workdir} is not finished: it has no {name}; start its command again"
                " to finish it, or leave it out."
            )
    config, summary = (
        read_json(workdir / "config.json"),
        read_json(workdir / "summary.json"),
    )
    rows = read_cases(workdir / "cases.csv")
    if not rows:
        raise UserError(
            f"{workdir / 'cases.csv'} holds no case; expected at least one test case:"
            " give the fold more patients, or leave the run out."
        )
    try:
        return _run(config, summary, rows)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{workdir}: config.json or summary.json lacks {error}; expected the files"
            " of a run of this version. Start the run again in a new --workdir."
        ) from error


def _run(config: dict[str, Any], summary: dict[str, Any], rows: list[Row]) -> Run:
    data = config["data"]
    return Run(
        arm=config["arm"],
        labelled=data["split"]["labelled"],
        fold=data["split"]["fold"],
        seed=config["seed"],
        rows=rows,
        tolerance_mm=config["evaluate"]["tolerance_mm"],
        # A run from scratch has seen nobody, whatever the setting says.
        transductive=data["transductive"]
        and any(config[stage]["init_from"] for stage in config["stages"]),
        pooled={key: summary[key]["mean"] for key in POOLED if summary.get(key)},
    )


def compare(runs: Sequence[Run], *, baseline: str | None) -> Comparison:
    """One table per metric: arm x label count, means over folds, differences.

    Args:
        runs: any number, in any order; arms appear in the order of their first run.
        baseline: arm that the others are compared with; None for the arm of the first
            run.

    Raises:
        UserError: no run, an unknown baseline, the same cell twice, or runs with other
            classes or another NSD tolerance.
    """
    if not runs:
        raise UserError("there is no run to compare; give at least one run directory.")
    groups = _groups(runs)
    classes = _same_classes(runs)
    tolerance = _same_tolerance(runs)
    arms = list(dict.fromkeys(arm for arm, _ in groups))
    baseline = _label(runs[0]) if baseline is None else baseline
    if baseline not in arms:
        raise UserError(
            f"--baseline {baseline!r} is no arm of these runs; they have:"
            f" {', '.join(arms)}.{nearest(baseline, arms)}"
        )
    arms.sort(key=lambda arm: arm != baseline)  # stable: the baseline comes first
    order = sorted(groups, key=lambda key: (key[1], arms.index(key[0])))
    ordered = {key: groups[key] for key in order}
    tables = [
        Table(
            title=f"{title.format(tolerance=tolerance)} ({better} is better)",
            columns=(*FACTS, *classes, "mean", "left out"),
            rows=tuple(_metric_rows(metric, ordered, classes, baseline)),
        )
        for metric, (title, better, _, _) in METRICS.items()
    ]
    if any(run.get("pooled") for run in runs):
        tables.append(_pooled_table(ordered))
    stamped = any(run.get("transductive") for run in runs)
    legend = (*LEGEND, TRANSDUCTIVE_LEGEND) if stamped else LEGEND
    return Comparison(tables=tuple(tables), legend=legend)


def fold_spread(
    runs: Sequence[Run], metric: str, class_name: str | None
) -> dict[str, Any]:
    """{"mean", "sd", "n"} over folds of the mean over cases.

    Args:
        runs: of one arm and label count; those of one fold (other seeds) are averaged.
        metric: a key of METRICS.
        class_name: None for the mean over the classes of each case.
    """
    folds: dict[int, list[float]] = {}
    for run in runs:
        values = case_values(run["rows"], metric, class_name).values()
        folds.setdefault(run["fold"], []).append(nan_mean(values))
    return spread([nan_mean(values) for values in folds.values()])


def paired_difference(
    runs: Sequence[Run], baseline: Sequence[Run], metric: str, class_name: str | None
) -> dict[str, Any]:
    """{"mean", "sd", "n"} over cases of (runs - baseline).

    Compared are equal case, class and fold, seeds averaged. A case counts once, with
    the mean of its differences over classes and folds: a class that one side misses, so
    that it has no distance, is left out on both.
    """
    ours, theirs = (_averaged(r, metric, class_name) for r in (runs, baseline))
    differences: dict[str, list[float]] = {}
    for key in sorted(ours.keys() & theirs.keys()):
        differences.setdefault(key[0], []).append(ours[key] - theirs[key])
    return spread([nan_mean(of_case) for of_case in differences.values()])


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


def _label(run: Run) -> str:
    return run["arm"] + (TRANSDUCTIVE if run.get("transductive") else "")


def _groups(runs: Sequence[Run]) -> dict[Group, list[Run]]:
    groups: dict[Group, list[Run]] = {}
    seen = set()
    for run in runs:
        group = (_label(run), run["labelled"])
        cell = (*group, run["fold"], run["seed"])
        if cell in seen:
            raise UserError(
                f"two runs are arm {cell[0]!r}, {cell[1]} labelled, fold {cell[2]},"
                f" seed {cell[3]}; expected one: leave one out, or name their"
                " config.arm differently."
            )
        seen.add(cell)
        groups.setdefault(group, []).append(run)
    return groups


def _same_classes(runs: Sequence[Run]) -> list[str]:
    found = [tuple(dict.fromkeys(r["class_name"] for r in run["rows"])) for run in runs]
    for run, names in zip(runs, found, strict=True):
        if names != found[0]:
            raise UserError(
                f"arm {run['arm']!r}, fold {run['fold']} has the classes"
                f" {', '.join(names)}, but the first run {', '.join(found[0])}; compare"
                " runs of one data set."
            )
    return list(found[0])


def _same_tolerance(runs: Sequence[Run]) -> str:
    found = sorted({run["tolerance_mm"] for run in runs if "tolerance_mm" in run})
    if len(found) > 1:
        raise UserError(
            f"these runs have NSD tolerances of {' and '.join(map(str, found))} mm;"
            " expected one: evaluate again with one config.evaluate.tolerance_mm."
        )
    return f" at {found[0]:g} mm" if found else ""


def _averaged(
    runs: Sequence[Run], metric: str, class_name: str | None
) -> dict[tuple[str, str, int], float]:
    """{(case, class, fold): mean over seeds}."""
    values: dict[tuple[str, str, int], list[float]] = {}
    for run in runs:
        for row in run["rows"]:
            if class_name in (None, row["class_name"]):
                key = (row["case"], row["class_name"], run["fold"])
                values.setdefault(key, []).append(row[metric])
    return {key: nan_mean(of_seeds) for key, of_seeds in values.items()}


def _metric_rows(
    metric: str, groups: dict[Group, list[Run]], classes: list[str], baseline: str
) -> Iterator[tuple[str, ...]]:
    _, _, decimals, reasons = METRICS[metric]
    parts = [*classes, None]  # None: the mean over classes
    for (arm, labelled), runs in groups.items():
        spreads = [fold_spread(runs, metric, part) for part in parts]
        cells = [_cell(s, decimals, len(_folds(runs))) for s in spreads]
        left_out = exclusions(row for run in runs for row in run["rows"])
        shown = [f"{left_out[key]} {key}" for key in reasons if left_out[key]]
        counts = ", ".join(shown).replace("_", " ") or "0"
        yield (*_facts(arm, labelled, runs), *cells, counts)
        reference = groups.get((baseline, labelled))
        if arm != baseline and reference:
            differences = [
                paired_difference(runs, reference, metric, part) for part in parts
            ]
            cells = [_difference_cell(d, decimals) for d in differences]
            yield (str(labelled), f"{arm} - {baseline}", "", "", "", *cells, "")


def _pooled_table(groups: dict[Group, list[Run]]) -> Table:
    rows = []
    for (arm, labelled), runs in groups.items():
        cells = []
        for key in POOLED:
            folds: dict[int, list[float]] = {}
            for run in runs:
                value = run.get("pooled", {}).get(key, float("nan"))
                folds.setdefault(run["fold"], []).append(value)
            values = spread([nan_mean(of_seeds) for of_seeds in folds.values()])
            cells.append(_cell(values, 3, len(folds)))
        rows.append((*_facts(arm, labelled, runs), *cells))
    return Table(
        title="Pooled Dice of the authors' code (all voxels of a fold together;"
        " higher is better; the best epoch is chosen on the scored fold itself)",
        columns=(*FACTS, *POOLED.values()),
        rows=tuple(rows),
    )


def _facts(arm: str, labelled: int, runs: Sequence[Run]) -> tuple[str, ...]:
    seeds = len({run["seed"] for run in runs})
    cases = len({row["case"] for run in runs for row in run["rows"]})
    return (str(labelled), arm, str(len(_folds(runs))), str(seeds), str(cases))


def _folds(runs: Sequence[Run]) -> set[int]:
    return {run["fold"] for run in runs}


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
