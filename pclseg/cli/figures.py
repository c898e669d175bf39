"""Draws finished runs.

python -m pclseg.cli.figures runs/pcl_phantom runs/scratch_phantom --out=figures
"""

import argparse
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pclseg.cli.status import exit_status
from pclseg.errors import UserError
from pclseg.reports import artifacts, comparison, figures
from pclseg.reports.artifacts import Curve
from pclseg.reports.runs import read_run, shown
from pclseg.reports.stages import merged, read_run_config, stages_of, uses_labels

log = logging.getLogger("pclseg.figures")  # also when run as __main__
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes PNG files; returns the exit status."""
    args = command_line().parse_args(argv)
    return exit_status(lambda: draw(args.runs, args.out, baseline=args.baseline))


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
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
    return parser


def draw(workdirs: Sequence[Path], out: Path, *, baseline: str | None) -> None:
    """All figures of the runs.

    Args:
        workdirs: of the runs.
        out: folder for the files.
        baseline: arm whose Dice with all labels is full supervision; None for that of
            the first run.

    Raises:
        UserError: a folder is no run, its prepared volumes are gone, or two runs have
            the same name.
    """
    diagnostics = diagnostics_files(workdirs)
    _check_names([*workdirs, *(path.parents[1] for path in diagnostics)])
    draw_label_efficiency(workdirs, out, baseline=baseline)
    draw_curves(workdirs, out)
    for workdir in workdirs:
        draw_cases(workdir, out)
    learned: dict[str, Curve] = {}
    for path in diagnostics:
        learned |= draw_embeddings(path, out)
    if len(learned) > 1:
        figures.similarity_against_distance(out / "similarity.png", learned)
        log.info("%s", out / "similarity.png")


def _check_names(workdirs: Sequence[Path]) -> None:
    """Raises UserError where two runs would write the same files."""
    names = Counter(path.name for path in {w.resolve() for w in workdirs})
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


def draw_curves(workdirs: Sequence[Path], out: Path) -> None:
    """One picture a stage and CSV file, the runs of an arm as mean and range.

    Where the runs have several numbers of labels, these have lines of their own in the
    stages that depend on it.
    """
    configs = {workdir: read_run_config(workdir) for workdir in workdirs}
    labelled = {w: config["data"]["split"]["labelled"] for w, config in configs.items()}
    several = len(set(labelled.values())) > 1
    for name, columns in figures.CURVES.items():
        lines: dict[str, dict[str, dict[Path, Path]]] = defaultdict(dict)
        for workdir, config in configs.items():
            for stage, trained in stages_of(workdir).items():
                if path := trained.file(name):
                    counted = several and uses_labels(trained.config or {})
                    count = f", M = {shown(labelled[workdir])}" if counted else ""
                    line = lines[stage].setdefault(f"{config['arm']}{count}", {})
                    line.setdefault(path.resolve(), path)  # a shared stage once
        for stage, found in lines.items():
            path = out / f"{stage.replace(' ', '_')}_{Path(name).stem}.png"
            files = merged({arm: list(paths.values()) for arm, paths in found.items()})
            figures.training_curves(path, files, columns=columns, log_scale=("loss",))
            log.info("%s", path)


def draw_cases(workdir: Path, out: Path) -> None:
    """Worst, median and best case, where the run scored any."""
    if not (workdir / "cases.csv").is_file():
        return
    shown, class_names = artifacts.cases_to_show(workdir)
    if shown:
        path = out / f"{workdir.resolve().name}_cases.png"
        figures.overlays(path, shown, class_names)
        log.info("%s", path)


def diagnostics_files(workdirs: Sequence[Path]) -> list[Path]:
    """Of all stages behind the runs, shared ones once."""
    stages = (stage for workdir in workdirs for stage in stages_of(workdir).values())
    files = (stage.file("diagnostics.json") for stage in stages)
    return list({path.resolve(): path for path in files if path}.values())


def draw_embeddings(path: Path, out: Path) -> dict[str, Curve]:
    """Similarity against distance, and map, of a stage's diagnostics.

    Returns:
        {run and stage: similarity against distance after the training}.
    """
    found = artifacts.read_diagnostics(path)
    stage = path.parent.name
    stem = f"{path.parents[1].resolve().name}_{stage}"
    figures.similarity_against_distance(
        out / f"{stem}_similarity.png", _named(found.similarity, stage)
    )
    figures.embedding_map(
        out / f"{stem}_map.png",
        _named(found.maps, stage),
        found.position,
        found.patient,
    )
    log.info("%s: %s", out / stem, found.measures)
    return {stem: found.similarity["after"]}


def _named(found: Mapping[str, T], stage: str) -> dict[str, T]:
    return {f"{when} {stage}": value for when, value in found.items()}


if __name__ == "__main__":
    sys.exit(main())
