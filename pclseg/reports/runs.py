"""Finished run directories, as the comparisons read them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from pclseg.errors import UserError
from pclseg.evaluation.cases import Row, read_cases
from pclseg.recorded import are_texts, check, is_text, is_whole, read_checked
from pclseg.reports.stages import read_run_config, stages_of, uses_labels

POOLED = ("dice_pooled_best", "dice_pooled_last")  # keys of summary.json
TRANSDUCTIVE = " [transductive]"


class Run(TypedDict):
    """One finished run: an arm at one label count, fold and seed."""

    arm: str
    labelled: int  # as asked for; 0 is all training patients
    labelled_patients: Sequence[str]
    fold: int
    seed: int
    rows: list[Row]
    dataset: NotRequired[str]
    tolerance_mm: NotRequired[float]
    grid: NotRequired[str]  # that its cases are scored on, in words
    transductive: NotRequired[bool]
    pooled: NotRequired[dict[str, float]]  # the authors' metric, keys of POOLED
    warnings: NotRequired[Mapping[str, str]]  # {stage: what it warned of at its end}


def read_run(workdir: str | Path) -> Run:
    """Reads a run directory: config.json, summary.json and cases.csv.

    Raises:
        UserError: the folder is no run, the run is not finished, it has no case, or a
            patient whose labels it trained on is among its cases.
    """
    workdir = Path(workdir)
    config = read_run_config(workdir)
    _check_scored(workdir, config)
    summary = read_checked(workdir / "summary.json", {"labelled_patients": are_texts})
    rows = read_cases(workdir / "cases.csv")
    if not rows:
        raise UserError(
            f"{workdir / 'cases.csv'} holds no case; expected at least one test case:"
            " give the fold more patients, or leave the run out."
        )
    try:
        run = _run(config, summary, rows)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{workdir}: config.json or summary.json is broken ({error!r}); expected"
            " the files of a run of this version. Restore them, or start the run again"
            " in a new --workdir."
        ) from error
    _check_apart(workdir, run)
    run["warnings"] = _last_warnings(workdir)
    if run["arm"].endswith(TRANSDUCTIVE):
        raise UserError(
            f"{workdir / 'config.json'} has the arm {run['arm']!r}; expected a name"
            f" without{TRANSDUCTIVE}, which tables add: else two arms look like one."
            " Rename it in that file."
        )
    return run


def _last_warnings(workdir: Path) -> dict[str, str]:
    found = {}
    for name, stage in stages_of(workdir).items():
        if path := stage.file("done.json"):
            done = {"warning": None} | read_checked(path, {"steps": is_whole})
            check(path, done, {"warning": lambda said: said is None or is_text(said)})
            if done["warning"]:
                found[name] = done["warning"]
    return found


def _check_scored(workdir: Path, config: Mapping[str, Any]) -> None:
    missing = [n for n in ("summary.json", "cases.csv") if not (workdir / n).is_file()]
    if missing and not any(map(uses_labels, _sections(config))):
        raise UserError(
            f"{workdir} is a pre-training and has no scores; give the runs that start"
            " from it: their report shows it too."
        )
    if missing:
        raise UserError(
            f"{workdir} is not finished: it has no {missing[0]}; start its command"
            " again to finish it, or leave it out."
        )


def _sections(config: Mapping[str, Any]) -> list[Any]:
    return [config.get(stage) for stage in config.get("stages", ())]


def label(run: Run) -> str:
    """The arm as tables show it."""
    return run["arm"] + (TRANSDUCTIVE if run.get("transductive") else "")


def class_names(run: Run) -> list[str]:
    """Foreground classes in the order of their ids."""
    return list(dict.fromkeys(row["class_name"] for row in run["rows"]))


def shown(labelled: int) -> str:
    """A label count as a reader sees it."""
    return str(labelled) if labelled else "all"


def patient_of_case(run: Run) -> dict[str, str]:
    """{case: patient}."""
    return {row["case"]: row["patient"] for row in run["rows"]}


def folds_of(runs: Iterable[Run]) -> list[int]:
    """Folds that have a run, ascending."""
    return sorted({run["fold"] for run in runs})


def check_alike(runs: Sequence[Run]) -> None:
    """Raises UserError unless all runs are of the same data, measured alike."""
    _check_datasets(runs)
    _check_classes(runs)
    _check_tolerances(runs)
    _check_grids(runs)
    _check_cases(runs)
    _check_draws(runs)


def _run(config: dict[str, Any], summary: dict[str, Any], rows: list[Row]) -> Run:
    data = config["data"]
    return Run(
        arm=config["arm"],
        labelled=data["split"]["labelled"],
        labelled_patients=summary["labelled_patients"],
        fold=data["split"]["fold"],
        seed=config["seed"],
        rows=rows,
        dataset=data["name"],
        tolerance_mm=config["evaluate"]["tolerance_mm"],
        grid=grid_of(config),
        transductive=data["transductive"]
        and any(_sees_unlabelled(config[stage]) for stage in config["stages"]),
        pooled={key: float(summary[key]["mean"]) for key in POOLED if summary.get(key)},
    )


def grid_of(config: Mapping[str, Any]) -> str:
    """The grid that the cases of a run are scored on, in words.

    Where nothing is resampled, the prepared one is that of the files. Runs of before
    there was a choice were scored on the prepared one.
    """
    spacing = config["data"].get("prepare", {}).get("spacing", ())
    if config["evaluate"].get("grid", "prepared") == "file" or not any(spacing):
        return "the grid of the files"
    return f"a prepared grid of {' x '.join(f'{mm:g}' for mm in spacing)} mm"


def _sees_unlabelled(stage: Mapping[str, Any]) -> bool:
    """Whether a stage learns from images without labels, itself or by its start.

    Others have seen no held-out image, whatever `data.transductive` says.
    """
    itself = stage["data"].get("unlabelled_batch_size", 0) > 0
    return itself or bool(stage["init_from"])


def _check_apart(workdir: Path, run: Run) -> None:
    both = {row["patient"] for row in run["rows"]} & set(run["labelled_patients"])
    if both:
        raise UserError(
            f"{workdir}: patient {min(both)!r} is among the cases of cases.csv and, in"
            " summary.json, among the labelled_patients; expected other patients: such"
            " a score says nothing. Train again with folds by patient."
        )


def _name(run: Run) -> str:
    return (
        f"arm {label(run)!r}, {shown(run['labelled'])} labelled, fold {run['fold']},"
        f" seed {run['seed']}"
    )


def _check_datasets(runs: Sequence[Run]) -> None:
    first = runs[0].get("dataset")
    for run in runs:
        if run.get("dataset") != first:
            raise UserError(
                f"{_name(run)} is of dataset {run.get('dataset')!r}, but the first run"
                f" of {first!r}; compare runs of one data set."
            )


def _check_classes(runs: Sequence[Run]) -> None:
    first = class_names(runs[0])
    for run in runs:
        if class_names(run) != first:
            raise UserError(
                f"{_name(run)} has the classes {', '.join(class_names(run))}, but the"
                f" first run {', '.join(first)}; compare runs of one data set."
            )


def _check_tolerances(runs: Sequence[Run]) -> None:
    found = sorted({run["tolerance_mm"] for run in runs if "tolerance_mm" in run})
    if len(found) > 1:
        raise UserError(
            f"these runs have NSD tolerances of {' and '.join(map(str, found))} mm;"
            " expected one: evaluate again with one config.evaluate.tolerance_mm."
        )


def _check_grids(runs: Sequence[Run]) -> None:
    """A label that was resampled is another truth."""
    found = sorted({run["grid"] for run in runs if "grid" in run})
    if len(found) > 1:
        raise UserError(
            f"these runs are scored on {' and on '.join(found)}; expected one: compare"
            " runs of one config.evaluate.grid; with 'file' their spacing may differ."
        )


def _check_cases(runs: Sequence[Run]) -> None:
    """Means over other cases cannot be compared, and pairs would be lost silently."""
    first: dict[int, Run] = {}
    for run in runs:
        reference = first.setdefault(run["fold"], run)
        ours, theirs = patient_of_case(run), patient_of_case(reference)
        only = sorted({case for case, _ in ours.items() ^ theirs.items()})
        if only:
            raise UserError(
                f"{_name(run)} and {_name(reference)} score other cases:"
                f" {len(only)} are not in both, as {only[0]!r}; expected equal cases in"
                " a fold: compare runs of the same files and split."
            )


def _check_draws(runs: Sequence[Run]) -> None:
    """Arms that learn from other patients differ by more than their method."""
    first: dict[tuple[int, int, int], Run] = {}
    for run in runs:
        key = (run["labelled"], run["fold"], run["seed"])
        reference = first.setdefault(key, run)
        if {*run["labelled_patients"]} != {*reference["labelled_patients"]}:
            raise UserError(
                f"{_name(run)} has other labelled patients than arm"
                f" {label(reference)!r} there; expected the same: use one"
                " config.data.split.draw_seed or split file."
            )
