"""Runs a config: prepare, train every stage, evaluate; what is finished is skipped."""

import dataclasses
import logging
import tempfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from pclseg import building, cohort, diagnostics, processes, rundir, scoring
from pclseg.building import Outline, Stage
from pclseg.config import as_dict
from pclseg.data import host_pipeline, splits
from pclseg.data.datasets.base import Dataset
from pclseg.data.prepare import native_label
from pclseg.data.tfds_store import CaseInfo, Store, open_store
from pclseg.errors import UserError
from pclseg.evaluation import components
from pclseg.evaluation.cases import Row, summarise, write_cases
from pclseg.evaluation.inference import block_of
from pclseg.feed import Feed, device_feed, host_feed
from pclseg.files import read_json, write_json
from pclseg.methods.base import Method
from pclseg.state import TrainState
from pclseg.train.checkpoint import Checkpoints
from pclseg.train.loop import train
from pclseg.train.metrics import MetricWriter, read_rows
from pclseg.train.mirror import Mirror
from pclseg.train.step import make_train_step
from pclseg.train.stop import StopFlag
from pclseg.train.transfer import started, transfer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its config and folder, the volumes, who is in which part, its stages.

    Of several processes the first has the run directory as `workdir`, the others have
    folders of their own, which are thrown away; predictions all go to `predictions`.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    predictions: Path
    devices: Sequence[jax.Device]
    stop: StopFlag
    dataset: Dataset
    store: Store
    split: splits.Split
    stages: Mapping[str, Stage]
    mirror: Mirror

    def rows(self, subset: str) -> list[int]:
        """Rows of the store in `subset`."""
        return cohort.rows_of(
            self.store.infos,
            self.split,
            subset,
            transductive=self.config.data.transductive,
        )

    def patients(self, subsets: Sequence[str]) -> list[str]:
        """Patients of the store in any of `subsets`, sorted."""
        rows = [row for subset in subsets for row in self.rows(subset)]
        return sorted({self.store.infos[row].patient for row in rows})

    def scored_subset(self) -> str:
        """The part that the final evaluation is about."""
        return "test" if self.split.test else "validation"


def outline(config: ml_collections.ConfigDict, *, dry_run: bool) -> Outline:
    """`building.outline`; a dry run leaves no file behind.

    Raises:
        UserError: whatever can be found without reading a voxel.
    """
    if not dry_run or config.data.name != "phantom":
        return building.outline(config)
    with tempfile.TemporaryDirectory() as folder:  # the phantom's files are made
        config = config.copy_and_resolve_references()
        config.data.raw_dir = folder
        return building.outline(config)


def execute(
    config: ml_collections.ConfigDict,
    workdir: Path,
    outline: Outline,
    *,
    predictions: Path,
    devices: Sequence[jax.Device],
    only: Sequence[str],
    stop: StopFlag,
) -> None:
    """Runs what is not finished of "prepare", the stages of the config and "evaluate".

    Args:
        config: of the run.
        workdir: claimed by the caller; of its own in every process but the first.
        predictions: where those of the last stage go, from all processes.
        outline: of this config.
        devices: to train on.
        only: names to run; empty means all.
        stop: asked to end?

    Raises:
        UserError: what a user can mend.
        Stopped: asked to end; the state is saved.
    """
    dataset, split = outline.dataset, outline.split
    _check_splits(workdir, outline)
    write_json(workdir / "splits.json", outline.all_splits)
    for line in cohort.remarks(config.data, outline.infos, split):
        log.warning("%s", line)

    def prepared() -> Store:
        with stop.interruptible(meets=False):
            return open_store(cohort.prepare_dataset(config.data, dataset, log.info))

    store = processes.first_then_others(prepared)
    stop.moved()  # from here on none waits longer for another than a watch allows
    _check_alike(store, outline)
    earlier = _earlier_fingerprints(workdir / "dataset.json", store)
    write_json(
        workdir / "dataset.json",
        {
            "name": dataset.name,
            "class_names": store.class_names,
            "label_values": store.label_values,
            "channels": dataset.channels,
            "slice_axis": _common_axis(store),
            "spacing": _median_spacing(store),
            "fingerprint": store.fingerprint,
            "earlier_fingerprints": earlier,
            "store": str(store.path),
        },
    )
    run = Run(
        config=config,
        workdir=workdir,
        predictions=predictions,
        devices=devices,
        stop=stop,
        dataset=dataset,
        store=store,
        split=split,
        stages=building.build_stages(
            config, store.infos, split, len(store.class_names)
        ),
        mirror=Mirror(
            config.get("wandb", "") if processes.is_first() else "",
            workdir,
            as_dict(config),
        ),
    )
    try:
        for name, stage in run.stages.items():
            if not only or name in only:
                train_stage(run, stage)
    finally:
        run.mirror.close()
    if not only or "evaluate" in only:
        with stop.interruptible():
            diagnose(run)
            evaluate(run)
        _mark_pretrained(run)


def _mark_pretrained(run: Run) -> None:
    """Says that a run without predictions, which has no summary, came to its end."""
    trained = all(building.is_finished(run.workdir / name) for name in run.stages)
    if trained and segmentation_stage(run.stages) is None:
        write_json(run.workdir / building.PRETRAINED, {"stages": list(run.stages)})


def _check_alike(store: Store, outline: Outline) -> None:
    """Checks that all processes have the same volumes and patients in every part.

    Where each has a copy of the data, voxels may still differ: only what says which
    volumes there are and how they lie is compared.

    Raises:
        UserError: naming the process and the first volume, or part, that differs.
    """
    mine = {
        f"volume {info.name}": zlib.crc32(info.to_json().encode())
        for info in (dataclasses.replace(info, image_path="") for info in store.infos)
    }
    mine |= {
        f"the patients in {part.name} of the split": zlib.crc32(
            repr(getattr(outline.split, part.name)).encode()
        )
        for part in dataclasses.fields(outline.split)
    }
    first, *others = processes.gather(mine)
    for number, other in enumerate(others, start=1):
        differing = [key for key in first | other if first.get(key) != other.get(key)]
        if differing:
            raise UserError(
                f"process {number} has other data than process 0: {differing[0]} and"
                f" {len(differing) - 1} more differ; give all the same files, settings"
                " and split file."
            )


def _median_spacing(store: Store) -> list[float]:
    """(z, y, x) mm of the prepared volumes."""
    return np.median([info.spacing for info in store.infos], axis=0).tolist()


def _common_axis(store: Store) -> int:
    """The canonical axis that most volumes are sliced along."""
    axes = Counter(info.geometry.slice_axis for info in store.infos)
    return axes.most_common(1)[0][0]


def _check_splits(workdir: Path, outline: Outline) -> None:
    """Checks that a run that has begun goes on with the same patients in every part.

    Raises:
        UserError: they changed, so that trained weights may have seen held-out ones.
    """
    if not rundir.has_begun(workdir):
        return
    if read_json(workdir / "splits.json") != outline.all_splits:
        raise UserError(
            f"{workdir / 'splits.json'} differs from the splits as they would be now:"
            " patients, their labels or the split file changed since this run began;"
            " restore them, or use a new --workdir."
        )


def _earlier_fingerprints(path: Path, store: Store) -> list[str]:
    """Of other volumes of the same patients that the run worked with; says so."""
    if not path.is_file():
        return []
    before = read_json(path)
    known = [*before.get("earlier_fingerprints", []), before.get("fingerprint", "?")]
    earlier = [mark for mark in known if mark != store.fingerprint]
    if earlier:
        log.warning(
            "%s: the data files, or their times, changed since this run began; what was"
            " finished before is of the earlier ones, whose fingerprints %s keeps.",
            path.parent,
            path.name,
        )
    return earlier


def train_stage(run: Run, stage: Stage) -> None:
    """Trains one stage, from its newest checkpoint if it has one."""
    folder = run.workdir / stage.name
    if processes.first_says(building.is_finished(folder)):
        log.info("%s: finished before, skipped", stage.name)
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings = stage.config.train
    checkpoints = Checkpoints(
        folder / "checkpoints", keep=settings.keep, writes=processes.is_first()
    )
    try:
        with run.stop.interruptible():
            state = processes.from_first(
                processes.together(lambda: _first_state(run, stage, checkpoints))
            )
            first_step = int(state.step)
            of_stage = (folder / "done.json", folder / diagnostics.FILE)
            of_run = (run.workdir / "summary.json", run.workdir / building.PRETRAINED)
            for path in (*of_stage, *of_run):
                path.unlink(missing_ok=True)  # of a last checkpoint that is gone
            writer = MetricWriter(folder, first_step=first_step, mirror=run.mirror)
            feed = processes.together(lambda: _feed(run, stage, first_step))
        for line in stage.remarks():
            log.warning("%s", line)
        epoch = stage.plan.steps_per_epoch
        train(
            make_train_step(stage.method, stage.tx, stage.axis_name),
            state,
            feed.batches,
            feed.place,
            stage.key,
            stage=stage.name,
            method=stage.method,
            schedule=stage.schedule,
            num_steps=stage.num_steps,
            batch_size=stage.plan.batch_size,
            devices=run.devices,
            checkpoints=checkpoints,
            writer=writer,
            stop=run.stop,
            log_every=settings.log_every,
            checkpoint_every=settings.checkpoint_every,
            validate=_validation(run, stage),
            # the authors validate after epochs 0, 2, 4, ...
            validate_at=lambda step: (
                (step - epoch) % (run.config.evaluate.every_epochs * epoch) == 0
            ),
            name_cases=lambda step: _cases(run.store, stage, step),
        )
        writer.close()
    finally:
        checkpoints.close()
    warning = _last_warning(stage, writer)
    write_json(folder / "done.json", {"steps": stage.num_steps, "warning": warning})


def _last_warning(stage: Stage, writer: MetricWriter) -> str | None:
    """What the log warned of after the last step, for whoever reads the scores."""
    every = stage.config.train.log_every
    rows = writer.rows("metrics", after=(stage.num_steps - 1) // every * every)
    if not rows:
        return None
    means = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
    return stage.method.diagnose(means)


def _feed(run: Run, stage: Stage, first_step: int) -> Feed:
    """The batches of a stage from a step on."""
    settings = run.config.data
    share = processes.index(), processes.count()
    plan, unlabelled = (
        plan and dataclasses.replace(plan, share=share)
        for plan in (stage.plan, stage.unlabelled)
    )
    what: dict[str, Any] = dict(
        store=run.store,
        plan=plan,
        unlabelled=unlabelled,
        keys=stage.method.batch_keys,
        first_step=first_step,
        num_steps=stage.num_steps - first_step,
        devices=run.devices,
    )
    if settings.pipeline == "device":
        return device_feed(dtype=settings.device_dtype, **what)
    return host_feed(settings.pipeline, **what)


def _first_state(run: Run, stage: Stage, checkpoints: Checkpoints) -> TrainState:
    """The newest checkpoint, or a new start, its encoder from elsewhere if asked.

    Only the first process looks; the others have the shape of what it finds.
    """
    if not processes.is_first():
        return stage.init()
    state = checkpoints.restore(stage.abstract)
    if state is not None:
        log.info(
            "%s: going on from step %d of %d", stage.name, state.step, stage.num_steps
        )
        return state
    _check_followers(run, stage.name)
    fresh = stage.init()
    seen = {
        "images": run.patients(stage.subsets()),
        "labels": run.patients(stage.label_subsets()),
    }
    source = stage.config.init_from
    if not source:
        log.info("%s: a new start from random weights", stage.name)
    else:
        folder = run.workdir / source if source in run.stages else Path(source)
        building.check_finished(folder)
        transductive = run.config.data.transductive
        earlier = building.seen_patients(folder, run.split, transductive=transductive)
        seen = {kind: sorted({*seen[kind], *earlier[kind]}) for kind in seen}
        fresh = _transferred(folder, fresh, stage)
    write_json(run.workdir / stage.name / "patients.json", seen)
    return fresh


def _check_followers(run: Run, name: str) -> None:
    """Checks that no stage has begun from earlier weights of stage `name`.

    Raises:
        UserError: one has, and would be kept as if it had started from the new ones.
    """
    for later, stage in run.stages.items():
        folder = run.workdir / later
        if stage.config.init_from == name and (folder / "patients.json").is_file():
            raise UserError(
                f"{folder} started from weights of {run.workdir / name} that are gone;"
                f" delete {folder} too to train both again, or use a new --workdir."
            )


def _transferred(folder: Path, fresh: TrainState, stage: Stage) -> TrainState:
    step, earlier = building.source_variables(folder)
    parts = stage.config.init_parts
    target = jax.device_get(building.weights(fresh))
    merged, receipt = transfer(earlier, target, parts=parts)
    log.info(
        "%s: a new start from %s, step %d\n%s",
        stage.name,
        folder,
        step,
        receipt.text(),
    )
    return started(fresh, merged, parts=parts)


def _validation(run: Run, stage: Stage) -> Any:
    rows = run.rows("validation")
    if stage.method.predict is None or not rows:
        return None
    return scoring.pooled_validation(
        stage.method,
        run.store,
        rows,
        pipeline=host_pipeline(run.config.data.pipeline),
        crop_size=stage.plan.crop_size,
        batch_size=run.config.evaluate.batch_size,
        stop=run.stop,
    )


def _cases(store: Store, stage: Stage, step: int) -> str:
    plans = filter(None, (stage.plan, stage.unlabelled))
    rows = [row for plan in plans for row in plan.rows(step).volume]
    names = dict.fromkeys(store.infos[row].name for row in rows)
    return ", ".join(list(names)[:8]) + (", ..." if len(names) > 8 else "")


def trained_state(stage: Stage, folder: Path) -> TrainState:
    """The state of a finished stage; `folder` is RUN/STAGE.

    Raises:
        UserError: the stage has no checkpoint, or one of another model.
    """

    def restored() -> TrainState:
        if not processes.is_first():
            return stage.init()  # for its shapes
        building.check_finished(folder)
        checkpoints = Checkpoints(folder / "checkpoints", keep=stage.config.train.keep)
        state = checkpoints.restore(stage.abstract)
        checkpoints.close()
        if state is None:
            raise UserError(
                f"{folder}/checkpoints holds no checkpoint; delete {folder}/done.json."
            )
        return state

    return processes.from_first(processes.together(restored))


def segmentation_stage(stages: Mapping[str, Stage]) -> Stage | None:
    """The last stage that predicts, or None."""
    able = [stage for stage in stages.values() if stage.method.predict is not None]
    return able[-1] if able else None


def diagnose(run: Run) -> None:
    """Writes `diagnostics.json` of every finished stage whose method embeds slices."""
    rows = run.rows(run.scored_subset())
    for name, stage in run.stages.items():
        folder = run.workdir / name
        path = folder / diagnostics.FILE
        finished = processes.first_says(building.is_finished(folder))
        if stage.method.embed is None or not finished:
            continue
        if processes.first_says(path.exists()):
            log.info("%s: diagnostics written before, skipped", name)
            continue
        if not rows:
            log.info("%s: no labelled patient is held out; no diagnostics", name)
            continue
        diagnostics.write_diagnostics(
            path,
            stage,
            trained_state(stage, folder),
            store=run.store,
            rows=rows,
            pipeline=host_pipeline(run.config.data.pipeline),
            stop=run.stop,
        )
        log.info("%s: wrote %s", name, path)


def evaluate(run: Run) -> None:
    """Scores the last stage: `cases.csv`, `predictions/` and `summary.json`.

    And `largest_part.json`: whether it would help to keep the largest part alone.

    What its method predicts besides, a teacher, gets `cases_teacher.csv`, and its own
    part of the summary.
    """
    stage = segmentation_stage(run.stages)
    if stage is None:
        log.info("evaluate: no stage predicts, skipped")
        return
    if processes.first_says((run.workdir / "summary.json").exists()):
        log.info("evaluate: finished before, skipped")
        return
    folder = run.workdir / stage.name
    state = trained_state(stage, folder)
    rows, compared = _score(run, stage, stage.method, state, run.predictions)
    write_cases(run.workdir / "cases.csv", rows)
    gains = components.summarise_gains(compared, run.store.class_names)
    write_json(run.workdir / components.FILE, gains)
    others = {}
    for name, predict in stage.method.also_predict.items():
        other = dataclasses.replace(stage.method, predict=predict)
        other_rows, _ = _score(run, stage, other, state, None)
        write_cases(run.workdir / f"cases_{name}.csv", other_rows)
        others[name] = summarise(other_rows)
    summary = {
        **summarise(rows),
        **_pooled(folder / "validation.csv", run.store.class_names),
        "scored": run.scored_subset(),
        "fold": run.config.data.split.fold,
        "labelled_patients": list(run.split.labelled),
        "transductive": run.config.data.transductive,
        "tolerance_mm": run.config.evaluate.tolerance_mm,
        "grid": run.config.evaluate.grid,
        **others,
    }
    write_json(run.workdir / "summary.json", summary)
    log.info("evaluate: wrote %s", run.workdir / "summary.json")


def _score(
    run: Run, stage: Stage, method: Method, state: TrainState, folder: Path | None
) -> tuple[list[Row], list[list[list[float]]]]:
    """`score_cases` of the scored cases, as `method` predicts them."""
    settings = run.config.evaluate
    predict = scoring.volume_predictor(
        method, state, crop_size=stage.plan.crop_size, batch_size=settings.batch_size
    )
    cases = {case.name: case for case in run.dataset.cases}

    def of_file(info: CaseInfo) -> np.ndarray:
        return native_label(cases[info.name], run.dataset, info.geometry)

    return scoring.score_cases(
        predict,
        run.store,
        run.rows(run.scored_subset()),
        folder,
        native_label=of_file if settings.grid == "file" else None,
        block=block_of(settings.batch_size),
        tolerance_mm=settings.tolerance_mm,
        stop=run.stop,
    )


def _pooled(path: Path, class_names: Sequence[str]) -> dict[str, Any]:
    """The authors' score: pooled Dice at the best validated epoch, and at the last."""
    rows = read_rows(path) if path.exists() else []
    if not rows:
        return {}
    best = max(rows, key=lambda row: float(row["dice_pooled"]))

    def scores(row: Mapping[str, str]) -> dict[str, Any]:
        classes = {name: float(row[f"dice_pooled_{name}"]) for name in class_names[1:]}
        mean = float(row["dice_pooled"])
        return {"mean": mean, "classes": classes, "step": int(row["step"])}

    return {"dice_pooled_best": scores(best), "dice_pooled_last": scores(rows[-1])}
