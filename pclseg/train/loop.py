"""The training loop: step, log, checkpoint, validate."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pclseg import parallel, processes
from pclseg.batch import check_batch
from pclseg.errors import Stopped, UserError
from pclseg.methods.base import Method
from pclseg.state import TrainState
from pclseg.train.checkpoint import Checkpoints, NotFiniteError
from pclseg.train.metrics import MetricWriter
from pclseg.train.step import TrainStep
from pclseg.train.stop import StopFlag

log = logging.getLogger(__name__)

# Steps that may be queued on the device: enough to keep it busy, few enough to stop.
_QUEUED_STEPS = 2


def train(
    train_step: TrainStep,
    state: TrainState,
    batches: Iterator[Mapping[str, np.ndarray]],
    place: Callable[[Mapping[str, np.ndarray]], dict[str, Any]],
    key: jax.Array,
    *,
    stage: str,
    method: Method,
    schedule: Callable[[int], jax.Array],
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
        place: batch -> what the method sees of it, with the axis of `parallel.shard`.
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
    state = parallel.replicate(state, devices)
    done = first = int(state.step)
    meter = _Meter(first, num_steps, batch_size)
    record = _Record(stage, first, schedule, writer, checkpoints, name_cases)
    record.resume(first - first % log_every)

    def save() -> None:
        record.settle()
        try:
            checkpoints.save(state)
        except NotFiniteError as error:
            raise record.fault(done - 1, f"{error} not finite after") from error

    def stopped() -> Stopped:
        checkpoints.wait()
        processes.meet()  # before one ends: a queue may then kill the others
        return Stopped(f"{stage}: the state of step {done} of {num_steps} is saved")

    def validate_now() -> None:
        if validate is None or not (done == num_steps or validate_at(done)):
            return
        try:
            with stop.interruptible(), meter.paused():
                scores = validate(state)
        except Stopped:
            save()
            raise stopped() from None
        writer.append("validation", {done: scores})
        writer.scalars("validation", done, scores)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        log.info("%s validation after step %d: %s", stage, done, shown)

    unwritten = done > 0 and done not in writer.steps("validation")
    if processes.first_says(unwritten):  # killed before it was written
        validate_now()
    while done < num_steps:
        with meter.waiting():
            batch = next(batches)
        # The first call compiles, which says nothing about the time left.
        with meter.paused() if done == first else contextlib.nullcontext():
            shares = place(batch)
            if done == first:
                check_batch(shares, method.batch_keys, shares=True)
            state, metrics = step_fn(state, shares, key)
        done += 1
        record.add(metrics)
        last = done == num_steps
        if last or done % log_every == 0:
            means = record.means()
            speed = meter.read(done)
            writer.scalars("train", done, {**means, **speed})
            writer.append("speed", {done: speed})
            log.info("%s", meter.line(stage, done, {**means, **speed}))
            if warning := method.diagnose(means):
                log.warning("%s step %d: %s", stage, done, warning)
        asked = stop.asked()
        if last or done % checkpoint_every == 0 or asked:
            save()
        if asked and not last:
            raise stopped()
        validate_now()
    checkpoints.wait()
    return state


class _Record:
    """What the steps returned: awaited, checked, written, and averaged for the log."""

    def __init__(
        self,
        stage: str,
        first: int,
        schedule: Callable[[int], jax.Array],
        writer: MetricWriter,
        checkpoints: Checkpoints,
        name_cases: Callable[[int], str],
    ) -> None:
        self._stage = stage
        self._settled = first  # steps whose rows are written
        self._schedule = jax.jit(schedule)
        self._writer = writer
        self._checkpoints = checkpoints
        self._name_cases = name_cases
        self._pending: list[Mapping[str, jax.Array]] = []
        self._since_log: list[dict[str, float]] = []

    def resume(self, last_log: int) -> None:
        """Takes up the rows that an earlier start wrote after it last logged."""
        self._since_log = self._writer.rows("metrics", after=last_log)

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of the next step, which may still be running."""
        self._pending.append(metrics)
        if len(self._pending) > _QUEUED_STEPS:
            jax.block_until_ready(self._pending[-1 - _QUEUED_STEPS]["loss"])

    def settle(self) -> None:
        """Waits for the pending steps, checks that they are finite, writes their rows.

        Raises:
            UserError: a loss or gradient is not finite, or the disk is full.
        """
        steps = range(self._settled, self._settled + len(self._pending))
        rates = [self._schedule(step) for step in steps]
        values, rates = jax.device_get((self._pending, rates))
        rows, fault = {}, None
        for step, value, rate in zip(steps, values, rates, strict=True):
            row = {name: float(x) for name, x in value.items()}
            if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                numbers = f"loss {row['loss']:g}, gradient norm {row['grad_norm']:g}"
                fault = (step, f"{numbers} at")
                break
            rows[step + 1] = row | {"learning_rate": float(rate)}
        self._pending.clear()
        self._settled = steps.stop
        self._since_log.extend(rows.values())
        if rows:
            self._writer.append("metrics", rows)
        if fault:  # after the rows, which show how it came
            raise self.fault(*fault)

    def means(self) -> dict[str, float]:
        """Means of the metrics since the last call, and the last learning rate."""
        self.settle()
        rows = self._since_log
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        means["learning_rate"] = rows[-1]["learning_rate"]
        self._since_log = []
        return means

    def fault(self, step: int, what: str) -> UserError:
        """The error to raise when `what` happened at `step`, which counts from 0."""
        self._checkpoints.wait()
        good = self._checkpoints.latest_step()
        return UserError(
            f"{self._stage}: {what} step {step + 1}; cases {self._name_cases(step)};"
            f" last good checkpoint: {'none' if good is None else f'step {good}'};"
            " look at these cases, or lower"
            f" config.{self._stage}.optimizer.peak_lr in a new --workdir."
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

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that waits for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time is none of the steps'."""
        start = time.monotonic()
        yield
        self._pause += time.monotonic() - start

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


def format_seconds(seconds: float) -> str:
    """Seconds as `42s`, `7m05s` or `3h12m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
