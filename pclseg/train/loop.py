"""The training loop: step, log, checkpoint, validate."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from pclseg import parallel
from pclseg.batch import check_batch
from pclseg.errors import UserError
from pclseg.methods.base import Method
from pclseg.state import TrainState
from pclseg.train.checkpoint import Checkpoints
from pclseg.train.metrics import MetricWriter
from pclseg.train.step import TrainStep
from pclseg.train.stop import StopFlag, Stopped

log = logging.getLogger(__name__)

Batches = Iterator[Mapping[str, np.ndarray]]
# Steps that may be queued on the device: enough to keep it busy, few enough to stop soon.
_QUEUED_STEPS = 2


def train(
    train_step: TrainStep,
    state: TrainState,
    batches: Batches,
    key: jax.Array,
    *,
    stage: str,
    method: Method,
    schedule: Callable[[int], float],
    num_steps: int,
    batch_size: int,
    devices: Sequence[jax.Device],
    checkpoints: Checkpoints,
    writer: MetricWriter,
    stop: StopFlag,
    log_every: int,
    checkpoint_every: int,
    validate: Callable[[TrainState], Mapping[str, float]] | None,
    validate_at: Callable[[int], bool],
    name_cases: Callable[[int], str],
) -> TrainState:
    """Trains from `state.step` to `num_steps` steps.

    Args:
        train_step: the pure step, not yet pmapped.
        state: where to start.
        batches: of the steps from `state.step` on.
        key: of the stage; folded with the step inside.
        stage: name for log lines.
        method: for its batch keys and diagnosis.
        schedule: step -> learning rate, for the log.
        num_steps: of the whole stage.
        batch_size: slices of a global batch, for the rate.
        devices: to pmap over.
        checkpoints: where states go.
        writer: where scalars go.
        stop: asked to end?
        log_every: steps between log lines; the host waits for the device only then.
        checkpoint_every: steps between checkpoints.
        validate: state -> scalars, or None.
        validate_at: is there a validation after so many steps?
        name_cases: step -> the cases of its batch, for messages.

    Returns:
        The final state, whose checkpoint is on disk.

    Raises:
        Stopped: asked to end; the state is saved.
        UserError: a loss that is not finite, or a checkpoint that cannot be written.
    """
    step_fn = parallel.pmap_step(train_step, devices)
    meter = _Meter(int(state.step), num_steps, batch_size)
    pending: list[dict[str, jax.Array]] = []
    since_log: list[dict[str, float]] = []

    def settle() -> None:
        """Waits for the pending steps, checks that they are finite and writes their rows."""
        rows = [_as_floats(row) for row in jax.device_get(pending)]
        steps = range(done - len(rows), done)
        pending.clear()
        for step, row in zip(steps, rows, strict=True):
            if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                raise UserError(_not_finite(stage, step, row, name_cases, checkpoints))
            row["learning_rate"] = float(schedule(step))
        writer.append(
            "metrics", {step + 1: row for step, row in zip(steps, rows, strict=True)}
        )
        since_log.extend(rows)

    def validate_now() -> None:
        if validate is None or not (done == num_steps or validate_at(done)):
            return
        try:
            with meter.paused():
                scores = validate(state)
        except Stopped:
            checkpoints.save(state)
            checkpoints.wait()
            raise
        writer.append("validation", {done: scores})
        writer.scalars("validation", done, scores)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        log.info("%s validation after step %d: %s", stage, done, shown)

    done = int(state.step)
    if done and done not in writer.steps("validation"):  # killed before it was written
        validate_now()
    while done < num_steps:
        with meter.waiting():
            batch = next(batches)
        if done == meter.first:
            check_batch(batch, method.batch_keys)
        state, metrics = step_fn(state, parallel.shard(dict(batch), len(devices)), key)
        pending.append(metrics)
        done += 1
        if len(pending) > _QUEUED_STEPS:
            jax.block_until_ready(pending[-1 - _QUEUED_STEPS]["loss"])
        last = done == num_steps
        if last or done % log_every == 0:
            settle()
            means = {
                name: np.mean([row[name] for row in since_log]) for name in since_log[0]
            }
            means["learning_rate"] = since_log[-1]["learning_rate"]
            since_log.clear()
            speed = meter.read(done)
            writer.scalars("train", done, {**means, **speed})
            writer.append("speed", {done: speed})
            log.info("%s", meter.line(stage, done, {**means, **speed}))
            if warning := method.diagnose(means):
                log.warning("%s step %d: %s", stage, done, warning)
        if last or done % checkpoint_every == 0 or stop.requested:
            settle()
            checkpoints.save(state)
        if stop.requested and not last:
            checkpoints.wait()
            raise Stopped(f"{stage}: state of step {done} of {num_steps} is saved")
        validate_now()
    checkpoints.wait()
    return state


def _as_floats(row: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items()}


def _not_finite(
    stage: str,
    step: int,
    row: Mapping[str, float],
    name_cases: Callable[[int], str],
    checkpoints: Checkpoints,
) -> str:
    last_good = checkpoints.latest_step()
    good = (
        "no checkpoint is there yet"
        if last_good is None
        else f"last good: step {last_good}"
    )
    return (
        f"{stage}: loss {row['loss']:g}, gradient norm {row['grad_norm']:g} at step {step};"
        f" cases {name_cases(step)}; checkpoint: {good}; look at these cases, or lower"
        f" {stage}.optimizer.peak_lr."
    )


class _Meter:
    """Rate, share of time spent waiting for data, and time left."""

    def __init__(self, first: int, num_steps: int, batch_size: int) -> None:
        self.first = first
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._seconds_per_step: float | None = None
        self._restart(first)

    def _restart(self, step: int) -> None:
        self._step, self._start, self._waited, self._pause = (
            step,
            time.monotonic(),
            0.0,
            0.0,
        )

    def waiting(self) -> "_Stopwatch":
        return _Stopwatch(
            lambda seconds: setattr(self, "_waited", self._waited + seconds)
        )

    def paused(self) -> "_Stopwatch":
        return _Stopwatch(
            lambda seconds: setattr(self, "_pause", self._pause + seconds)
        )

    def read(self, step: int) -> dict[str, float]:
        """Scalars since the last reading; starts the next interval."""
        seconds = max(time.monotonic() - self._start - self._pause, 1e-9)
        steps = step - self._step
        self._seconds_per_step = seconds / steps
        scalars = {
            "slices_per_second": steps * self._batch_size / seconds,
            "data_wait_share": min(self._waited / seconds, 1.0),
        }
        self._restart(step)
        return scalars

    def line(self, stage: str, step: int, scalars: Mapping[str, float]) -> str:
        left = (self._num_steps - step) * (self._seconds_per_step or 0.0)
        return (
            f"{stage} step {step}/{self._num_steps} ({step / self._num_steps:.0%})"
            f"  loss {scalars['loss']:.4f}  lr {scalars['learning_rate']:.3g}"
            f"  {scalars['slices_per_second']:.1f} slices/s"
            f"  data wait {scalars['data_wait_share']:.0%}  ETA {format_seconds(left)}"
        )


class _Stopwatch:
    """Measures a `with` block and hands its seconds over."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self._report(time.monotonic() - self._start)


def format_seconds(seconds: float) -> str:
    """Seconds as `42s`, `7m05s` or `3h12m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
