"""One HTML page about a comparison of runs; it needs no network and no script."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from pclseg.errors import UserError
from pclseg.files import write_text
from pclseg.reports import blocks, comparison, repeat, sentences, tables
from pclseg.reports.blocks import Block, Learned
from pclseg.reports.comparison import Numbers
from pclseg.reports.runs import label, shown
from pclseg.reports.sources import Source, earlier_runs, missing, read_source

MOST_BYTES = 20_000_000  # of a page that can be mailed
MOST_SENTENCES = 12  # on the result


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
    if os.path.isdir(out):  # Path.is_dir fails where a name is too long
        raise UserError(f"--out {out} is a folder; name a file, as {out}/report.html.")
    html = make_page(workdirs, baseline=baseline)
    # The name of a file may hold bytes that are no text.
    html = html.encode("utf-8", "replace").decode()
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
    sources = [read_source(workdir) for workdir in workdirs]
    numbers = comparison.numbers([s.run for s in sources], baseline=baseline)
    cells = representative(sources, numbers)
    learned = blocks.learned_of(cells)
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=_title(numbers, sources[0]),
            facts=_facts(numbers, sources),
            numbers=_with_diagnostics(numbers, learned),
            **_sentences(numbers),
            warnings=numbers["warnings"],
            **_tables(numbers),
            efficiency=blocks.label_efficiency(numbers),
            missing=missing(sources),
            curves=list(blocks.curves(cells, numbers["arms"])),
            measures=blocks.measures(learned),
            learned=list(blocks.learned_blocks(learned, numbers["arms"])),
            overlays=_overlays(cells),
            shown="; ".join(source.name for source in cells),
            repeat=_repeat(sources, numbers),
        )
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


def environment() -> jinja2.Environment:
    """Of the templates of pages."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pclseg.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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


def _sentences(numbers: Numbers) -> dict[str, list[str]]:
    """Few that say the most; where these are not all, the others for who asks."""
    every = sentences.comparisons(numbers)
    if len(every) <= MOST_SENTENCES:
        return {"sentences": every, "all_sentences": []}
    return {"sentences": sentences.summaries(numbers), "all_sentences": every}


def _overlays(cells: Sequence[Source]) -> dict[str, list[Block]]:
    """Cases by label count."""
    found: dict[str, list[Block]] = {}
    for source in cells:
        count = f"M = {shown(source.run['labelled'])}"
        found.setdefault(count, []).append(blocks.cases(source))
    return found


def _tables(numbers: Numbers) -> dict[str, Any]:
    """The first table apart; sentences that stand elsewhere left out."""
    found = tables.render(numbers)
    first, *others = found.tables
    warnings = {f"Mind: {warning}" for warning in numbers["warnings"]}
    legend = [line for line in found.legend if line not in warnings]
    return {"first_table": first, "tables": others, "legend": legend}


def _repeat(sources: Sequence[Source], numbers: Numbers) -> dict[str, Any]:
    arms: dict[str, Source] = {}
    for source in representative(sources, numbers):
        arms.setdefault(label(source.run), source)
    earlier = earlier_runs(sources)
    records = [*earlier, *sources]
    return {
        "notes": list(repeat.notes(sources, earlier)),
        "commands": repeat.commands(records),
        "runs": f"{len(sources)} runs"
        + (f" and of {len(earlier)} that they start from" if earlier else ""),
        "differences": repeat.config_differences(arms),
        "tables": [
            repeat.versions(records),
            repeat.data(records),
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
