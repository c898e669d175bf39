"""Draws finished runs.

python -m pclseg.cli.figures runs/pcl_phantom runs/scratch_phantom --out=figures
"""

import argparse
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pclseg import diagnostics
from pclseg.cli.status import exit_status
from pclseg.errors import UserError
from pclseg.evaluation.embeddings import principal_components, similarity_curve
from pclseg.files import write_json
from pclseg.reports import comparison, figures
from pclseg.reports.runs import read_run, shown
from pclseg.runner import Run, finished_run

log = logging.getLogger("pclseg.figures")  # also when run as __main__
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # of embeddings.similarity_curve
BINS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Writes PNG files; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.figures",
        description="Training curves of all runs together; of each run, overlays of the"
        " worst, median and best case and, where it pre-trained, what the embedding"
        " knows of position; of runs with several numbers of labels, the Dice against"
        " them.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, help="folder for PNG files")
    parser.add_argument(
        "--baseline", help="arm whose Dice with all labels is 100 %% (of the first RUN)"
    )
    args = parser.parse_args(argv)
    return exit_status(lambda: draw(args.runs, args.out, baseline=args.baseline))


def draw(workdirs: Sequence[Path], out: Path, *, baseline: str | None) -> None:
    """All figures of the runs.

    Args:
        workdirs: of the runs.
        out: folder for the files.
        baseline: arm whose Dice with all labels is full supervision; None for that of
            the first run.

    Raises:
        UserError: a run is not finished, or two have the same name.
    """
    _check_names(workdirs)
    runs = [finished_run(workdir) for workdir in workdirs]
    draw_label_efficiency(workdirs, out, baseline=baseline)
    draw_curves(runs, out)
    learned: dict[str, Curve] = {}
    for run in runs:
        draw_cases(run, out)
        learned |= draw_embeddings(run, out)
    if len(learned) > 1:
        figures.similarity_against_distance(out / "similarity.png", learned)
        log.info("%s", out / "similarity.png")


def _check_names(workdirs: Sequence[Path]) -> None:
    """Raises UserError where two runs would write the same files."""
    names = Counter(workdir.resolve().name for workdir in workdirs)
    name, count = names.most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{count} of the runs are called {name!r}, after which the figures are"
            " named; draw them into different folders, one call each."
        )


def draw_label_efficiency(
    workdirs: Sequence[Path], out: Path, *, baseline: str | None
) -> None:
    """Dice against the number of labels, where the scored runs have several."""
    scored = [w for w in workdirs if (w / "summary.json").is_file()]
    read = [read_run(workdir) for workdir in scored]
    if len({run["labelled"] for run in read}) < 2:
        return
    try:
        numbers = comparison.numbers(read, baseline=baseline)
    except UserError as error:  # the other figures compare nothing
        log.warning("no figure of label efficiency: %s", error)
        return
    path = out / "label_efficiency.png"
    level = numbers["bootstrap"]["level"]
    figures.label_efficiency(path, numbers["label_efficiency"], level=level)
    log.info("%s", path)


def draw_curves(runs: Sequence[Run], out: Path) -> None:
    """One picture a stage and CSV file, the runs of an arm as mean and range.

    Where the runs have several numbers of labels, these have lines of their own.
    """
    several = len({run.config.data.split.labelled for run in runs}) > 1
    wanted = {
        "metrics.csv": {"loss": "loss", "learning_rate": "learning rate"},
        "validation.csv": {"dice_pooled": "validation Dice, pooled"},
    }
    for name, columns in wanted.items():
        sources: dict[str, dict[str, list[Path]]] = defaultdict(dict)
        for run in runs:
            labelled = shown(run.config.data.split.labelled)
            line = f"{run.config.arm}, M = {labelled}" if several else run.config.arm
            for stage, paths in diagnostics.curve_files(run, name).items():
                sources[stage].setdefault(line, []).extend(paths)
        for stage, arms in sources.items():
            path = out / f"{stage}_{Path(name).stem}.png"
            figures.training_curves(path, arms, columns=columns, log_scale=("loss",))
            log.info("%s", path)


def draw_cases(run: Run, out: Path) -> None:
    """Worst, median and best case."""
    shown = diagnostics.cases_to_show(run)
    if shown:
        path = out / f"{run.workdir.resolve().name}_cases.png"
        figures.overlays(path, shown, run.store.class_names)
        log.info("%s", path)


def draw_embeddings(run: Run, out: Path) -> dict[str, Curve]:
    """Of every stage that embeds: similarity against distance, map, and measures.

    Returns:
        {run and stage: similarity against distance after the training}.
    """
    learned = {}
    for name, stage in run.stages.items():
        if stage.method.embed is None:
            continue
        if not run.rows(run.scored_subset()):
            log.info("%s: no patient is held out; no embedding is drawn", run.workdir)
            continue
        found = diagnostics.embed_held_out(run, stage)
        both = {"before": found.before, "after": found.after}
        about = (found.position, found.patient)
        stem = f"{run.workdir.resolve().name}_{name}"
        curves = {
            f"{when} {name}": similarity_curve(z, *about, bins=BINS)
            for when, z in both.items()
        }
        figures.similarity_against_distance(out / f"{stem}_similarity.png", curves)
        learned[stem] = curves[f"after {name}"]
        maps = {
            f"{when} {name}": principal_components(z, 2) for when, z in both.items()
        }
        figures.embedding_map(out / f"{stem}_map.png", maps, *about)
        numbers = {when: diagnostics.measures(z, found) for when, z in both.items()}
        write_json(out / f"{stem}_measures.json", numbers)
        log.info("%s: %s", out / stem, numbers)
    return learned


if __name__ == "__main__":
    sys.exit(main())
