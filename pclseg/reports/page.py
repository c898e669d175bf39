"""One HTML page about a comparison of runs; it needs no network and no script."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pclseg.errors import UserError
from pclseg.files import write_text
from pclseg.reports import (
    artifacts,
    comparison,
    figures,
    repeat,
    sentences,
    tables,
)
from pclseg.reports.artifacts import Diagnostics
from pclseg.reports.comparison import Numbers
from pclseg.reports.pictures import Picture, picture
from pclseg.reports.repeat import Source
from pclseg.reports.runs import label, shown
from pclseg.reports.tables import Table

MOST_BYTES = 20_000_000  # of a page that can be mailed
MEASURES = {  # key of the diagnostics: (title, decimals)
    "std": ("SD of a component", 3),
    "alignment": ("alignment", 3),
    "uniformity": ("uniformity", 3),
    "position_r2": ("R² of position", 3),
    "neighbour_error": ("neighbour error", 3),
    "neighbour_error_chance": ("by chance", 3),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """The diagnostics of one stage of one run."""

    name: str  # of the arm and, where it has several such stages, the stage
    source: Source
    stage: str
    found: Diagnostics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Pictures under one heading, or a note that says why there is none."""

    title: str
    pictures: Sequence[Picture] = ()
    note: str = ""


def write_page(out: Path, workdirs: Sequence[Path], *, baseline: str | None) -> None:
    """Writes the page; an old one is replaced.

    Args:
        out: the HTML file.
        workdirs: of finished runs.
        baseline: arm that the others are compared with; None for that of the first run.

    Raises:
        UserError: a run that cannot be read, runs that cannot be compared, a page of
            more than 20 MB, a place that cannot be written.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, as {out}/report.html.")
    html = make_page(workdirs, baseline=baseline)
    size = len(html.encode())
    if size > MOST_BYTES:
        raise UserError(
            f"the page would have {size / 1e6:.0f} MB, more than"
            f" {MOST_BYTES / 1e6:.0f}; give it fewer arms or label counts at a time."
        )
    write_text(out, html)


def make_page(workdirs: Sequence[Path], *, baseline: str | None) -> str:
    """The page as HTML; arguments and errors as of `write_page`."""
    if not workdirs:
        raise UserError("there is no run to report; give at least one run directory.")
    sources = [repeat.read_source(workdir) for workdir in workdirs]
    numbers = comparison.numbers([s.run for s in sources], baseline=baseline)
    cells = representative(sources, numbers)
    learned = list(_learned(cells))
    return _template().render(
        title=_title(numbers, sources[0]),
        facts=_facts(numbers, sources),
        numbers=_with_diagnostics(numbers, learned),
        sentences=list(sentences.comparisons(numbers)),
        warnings=numbers["warnings"],
        **_tables(numbers),
        efficiency=_label_efficiency(numbers),
        curves=list(_curves(cells, numbers["arms"])),
        measures=_measures(learned),
        learned=list(_learned_blocks(learned, numbers["arms"])),
        overlays=[_cases(source) for source in cells],
        shown="; ".join(source.name for source in cells),
        repeat=_repeat(sources, numbers),
    )


def representative(sources: Sequence[Source], numbers: Numbers) -> list[Source]:
    """The first fold and seed of every arm at every label count."""
    found = []
    for group in numbers["groups"]:
        runs = [
            source
            for source in sources
            if label(source.run) == group["arm"]
            and source.run["labelled"] == group["labelled"]
        ]
        found.append(min(runs, key=lambda s: (s.run["fold"], s.run["seed"])))
    return found


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pclseg.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _title(numbers: Numbers, source: Source) -> str:
    baseline, *others = numbers["arms"]
    arms = f"{', '.join(others)} against {baseline}" if others else baseline
    return f"{arms}: {source.run.get('dataset', '')}"


def _facts(numbers: Numbers, sources: Sequence[Source]) -> dict[str, str]:
    rows = [row for source in sources for row in source.run["rows"]]
    patients, cases = ({row[key] for row in rows} for key in ("patient", "case"))
    scored = ", ".join(sorted({s.scored for s in sources if s.scored}))
    return {
        "Data": f"{sources[0].run.get('dataset', '')}: {', '.join(numbers['classes'])}",
        "Arms": f"{', '.join(numbers['arms'])} (baseline: {numbers['baseline']})",
        "Labelled patients (M)": ", ".join(map(shown, numbers["label_counts"])),
        "Folds": _listed({fold for g in numbers["groups"] for fold in g["folds"]}),
        "Seeds": _listed({seed for g in numbers["groups"] for seed in g["seeds"]}),
        "Scored": (
            f"{sentences.count(len(cases), 'case')} of"
            f" {sentences.count(len(patients), 'patient')}"
            f"{f' ({scored})' if scored else ''}"
        ),
        "Runs": str(numbers["runs"]),
    }


def _listed(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def _tables(numbers: Numbers) -> dict[str, Any]:
    """The first table apart; sentences that stand elsewhere left out."""
    found = tables.render(numbers)
    first, *others = found.tables
    warnings = {f"Mind: {warning}" for warning in numbers["warnings"]}
    legend = [line for line in found.legend if line not in warnings]
    return {"first_table": first, "tables": others, "legend": legend}


def _label_efficiency(numbers: Numbers) -> Picture | None:
    if len(numbers["label_counts"]) < 2:
        return None
    level, arms = numbers["bootstrap"]["level"], ", ".join(numbers["arms"])
    return picture(
        lambda path: figures.label_efficiency(
            path, numbers["label_efficiency"], level=level
        ),
        alt=f"Dice against the number of labelled patients, a line for each of {arms};"
        " the numbers are in the table of label efficiency.",
        caption="Dice per case (mean over the classes) against labelled patients.",
    )


def _curves(cells: Sequence[Source], arms: Sequence[str]) -> Iterator[Block]:
    """Of every stage; where it learns from labels, of every label count."""
    most = max(cells, key=lambda source: len(source.config["stages"]))
    stages = dict.fromkeys(most.config["stages"])
    stages |= dict.fromkeys(name for s in cells for name in s.config["stages"])
    for stage in stages:
        groups: dict[str, dict[str, Source]] = {}
        for source in cells:
            if stage in source.config["stages"]:
                count = f", M = {shown(source.run['labelled'])}"
                about = f"{stage}{count if _uses_labels(source, stage) else ''}"
                groups.setdefault(about, {}).setdefault(label(source.run), source)
        for about, lines in groups.items():
            pictures = list(_stage_curves(stage, lines, arms, about=about))
            if pictures:
                yield Block(title=about, pictures=pictures)


def _uses_labels(source: Source, stage: str) -> bool:
    return source.config[stage]["data"]["subset"] != "train"


def _stage_curves(
    stage: str, lines: Mapping[str, Source], arms: Sequence[str], *, about: str
) -> Iterator[Picture]:
    for name, columns in figures.CURVES.items():
        paths = {arm: source.workdir / stage / name for arm, source in lines.items()}
        # All arms, so that one has the same colour in all figures.
        files = {arm: [paths[arm]] if _there(paths.get(arm)) else [] for arm in arms}
        drawn = [arm for arm in arms if files[arm]]
        for column, axis in columns.items() if drawn else ():
            yield picture(
                functools.partial(
                    figures.training_curves,
                    sources=files,
                    columns={column: axis},
                    log_scale=("loss",),
                ),
                alt=f"{axis} against the optimizer step in {about}; lines:"
                f" {', '.join(drawn)}.",
                caption=f"{axis}, {about}",
            )


def _there(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _learned(cells: Sequence[Source]) -> Iterator[Learned]:
    """Of every arm the first run with diagnostics."""
    seen = set()
    for source in cells:
        arm = label(source.run)
        files = artifacts.stage_files(source.workdir, "diagnostics.json")
        for stage, path in files.items():
            if (arm, stage) not in seen:
                seen.add((arm, stage))
                yield Learned(
                    name=arm if len(files) == 1 else f"{arm}, {stage}",
                    source=source,
                    stage=stage,
                    found=artifacts.read_diagnostics(path),
                )


def _measures(learned: Sequence[Learned]) -> Table | None:
    if not learned:
        return None
    rows = []
    for each in learned:
        for when, measures in each.found.measures.items():
            cells = (
                "-" if measures[key] is None else f"{measures[key]:.{decimals}f}"
                for key, (_, decimals) in MEASURES.items()
            )
            rows.append((each.name, f"{when} {each.stage}", *cells))
    return Table(
        title="Embeddings of held-out slices, with random weights and trained ones",
        columns=("arm", "weights", *(title for title, _ in MEASURES.values())),
        rows=tuple(rows),
    )


def _learned_blocks(learned: Sequence[Learned], arms: Sequence[str]) -> Iterator[Block]:
    """All arms together, then each with its maps."""
    if len(learned) > 1:
        none = np.zeros(0)
        after = {arm: (none, none, none) for arm in arms}
        after |= {each.name: each.found.similarity["after"] for each in learned}
        yield Block(
            title="All arms after pre-training",
            pictures=[_similarity(after, "after pre-training")],
        )
    for each in learned:
        curves = {
            f"{when} {each.stage}": curve
            for when, curve in each.found.similarity.items()
        }
        yield Block(
            title=f"{each.stage} of {each.source.name}",
            pictures=[
                _similarity(curves, each.name),
                *(_map(each, when) for when in each.found.maps),
            ],
        )


def _similarity(curves: Mapping[str, artifacts.Curve], about: str) -> Picture:
    ends = "; ".join(
        f"{name} {_falls(*curve)}" for name, curve in curves.items() if curve[2].any()
    )
    return picture(
        lambda path: figures.similarity_against_distance(path, curves),
        alt=f"Mean cosine similarity of slices of different patients against their"
        f" difference of position: {ends}.",
        caption=f"Similarity against distance, {about}",
    )


def _falls(distance: np.ndarray, mean: np.ndarray, pairs: np.ndarray) -> str:
    del distance
    near, far = mean[pairs > 0][[0, -1]]
    return f"from {near:.2f} near by to {far:.2f} far apart"


def _map(each: Learned, when: str) -> Picture:
    found = each.found
    return picture(
        lambda path: figures.embedding_map(
            path,
            {f"{when} {each.stage}": found.maps[when]},
            found.position,
            found.patient,
        ),
        alt=f"First two principal components of {len(found.position)} slice embeddings"
        f" of {each.name} {when} {each.stage}, above coloured by position, below by"
        " patient.",
        caption=f"Map {when} {each.stage}, {each.name}",
    )


def _cases(source: Source) -> Block:
    try:
        cases, class_names = artifacts.cases_to_show(source.workdir)
    except UserError as error:
        return Block(title=source.name, note=f"No case is shown: {error}")
    if not cases:
        return Block(title=source.name, note="No case has a Dice.")
    listed = "; ".join(f"{c.role}: {c.case}, Dice {c.dice:.3f}" for c in cases)
    return Block(
        title=source.name,
        pictures=[
            picture(
                lambda path: figures.overlays(path, cases, class_names),
                alt=f"Slices with contours of label and prediction. {listed}.",
                caption=f"{listed}.",
                suffix=".webp",
                wide=True,
            )
        ],
    )


def _repeat(sources: Sequence[Source], numbers: Numbers) -> dict[str, Any]:
    arms: dict[str, Source] = {}
    for source in representative(sources, numbers):
        arms.setdefault(label(source.run), source)
    return {
        "notes": list(repeat.notes(sources)),
        "commands": repeat.commands(sources),
        "differences": repeat.config_differences(arms),
        "tables": [
            repeat.versions(sources),
            repeat.data(sources),
            repeat.labelled_patients(sources),
        ],
        "configs": {arm: source.config for arm, source in arms.items()},
    }


def _with_diagnostics(numbers: Numbers, learned: Sequence[Learned]) -> Numbers:
    found = [
        {"arm": each.name, "run": each.source.name, "stage": each.stage}
        | each.found.measures
        for each in learned
    ]
    return numbers | {"diagnostics": found}
