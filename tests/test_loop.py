import logging
import os
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pclseg import parallel
from pclseg.errors import Stopped, UserError
from pclseg.methods.base import Aux, Method
from pclseg.state import TrainState
from pclseg.train import loop
from pclseg.train.checkpoint import Checkpoints
from pclseg.train.loop import format_seconds, train
from pclseg.train.metrics import MetricWriter, read_rows
from pclseg.train.step import make_train_step
from pclseg.train.stop import StopFlag

BATCH = 8
STEPS = 12


def linear(diagnose=None):
    """Least squares with noise from the key; counts its traces."""
    traces = []

    def loss(params, state, batch, key):
        traces.append(1)
        rows = parallel.row_ids(len(batch["image"]), parallel.AXIS)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
        noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
        pixels = batch["image"].reshape(len(rows), 4) + 0.1 * noise
        value = jnp.square(pixels @ params["w"] - 1.0).mean()
        seen = state.model_state["batch_stats"]["seen"] + pixels.mean()
        return value, Aux({"batch_stats": {"seen": seen}}, {}, {"extra": 2 * value})

    def init(key, batch):
        return {"w": jnp.zeros(4)}, {"batch_stats": {"seen": jnp.zeros(())}}, {}

    method = Method(batch_keys=frozenset({"image"}), init=init, loss=loss)
    if diagnose:
        method = Method(
            batch_keys=method.batch_keys, init=init, loss=loss, diagnose=diagnose
        )
    return method, traces


def batch_of(step):
    rng = np.random.default_rng(step)
    return {"image": rng.normal(size=(BATCH, 2, 2, 1)).astype(np.float32)}


def name_cases(step):
    return f"case_{step}"


class Run:
    """A stage in a folder; `go` starts or resumes it, as the runner does."""

    def __init__(self, folder):
        self.folder = folder
        self.method, self.traces = linear()
        self.schedule = optax.cosine_decay_schedule(0.1, STEPS)
        self.stop = StopFlag()
        self.batch_of = batch_of
        self.options = {
            "num_steps": STEPS,
            "log_every": 4,
            "checkpoint_every": 5,
            "validate": None,
            "validate_at": lambda step: step % 3 == 0,
        }

    def go(self, *, num_devices=1, **changed):
        options = self.options | changed
        checkpoints = Checkpoints(self.folder / "checkpoints", keep=3)
        tx = optax.adam(self.schedule)
        params, model_state, _ = self.method.init(None, None)
        fresh = TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=tx.init(params),
            model_state=model_state,
            method_state={},
        )
        try:
            state = checkpoints.restore(fresh) or fresh
            first = int(state.step)
            return train(
                make_train_step(self.method, tx, parallel.AXIS),
                state,
                (self.batch_of(step) for step in range(first, STEPS)),
                lambda batch: parallel.shard(dict(batch), num_devices),
                jax.random.key(7),
                stage="pretrain",
                method=self.method,
                schedule=self.schedule,
                batch_size=BATCH,
                devices=jax.devices()[:num_devices],
                checkpoints=checkpoints,
                writer=MetricWriter(self.folder, first_step=first),
                stop=self.stop,
                name_cases=name_cases,
                **options,
            )
        finally:
            checkpoints.close()

    def saved(self):
        folder = self.folder / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir())

    def column(self, name, key):
        rows = read_rows(self.folder / f"{name}.csv")
        return {int(row["step"]): float(row[key]) for row in rows}

    def stop_at(self, number):
        """Asks to stop when the batch of step `number` is fetched."""

        def asked(step):
            self.stop.requested = step == number
            return batch_of(step)

        self.batch_of = asked


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.fixture
def lines(caplog):
    logger = logging.getLogger("pclseg")
    propagates, logger.propagate = logger.propagate, True
    caplog.set_level(logging.INFO, logger="pclseg")
    yield caplog
    logger.propagate = propagates


def test_every_step_has_a_row_and_the_last_state_is_saved(run):
    state = run.go()
    loss = run.column("metrics", "loss")
    assert list(loss) == list(range(1, STEPS + 1))
    assert loss[STEPS] < loss[1]
    assert run.column("metrics", "extra") == {k: 2 * v for k, v in loss.items()}
    assert all(value > 0 for value in run.column("metrics", "grad_norm").values())
    assert int(state.step) == STEPS
    assert run.saved() == [5, 10, 12]


def test_the_learning_rate_of_every_step_is_logged(run):
    run.go()
    rate = run.column("metrics", "learning_rate")
    expected = [0.05 * (1 + np.cos(np.pi * step / STEPS)) for step in range(STEPS)]
    np.testing.assert_allclose(list(rate.values()), expected, rtol=1e-5, atol=1e-9)


def test_a_stage_is_traced_once(run):
    """A second program for the first step would take as long again to compile."""
    run.go()
    assert len(run.traces) == 1


@pytest.mark.parametrize("first_stop", [1, 4, 5, 7, 11])
def test_a_stopped_and_resumed_stage_is_identical(tmp_path, first_stop):
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    for run in (whole, parts):
        run.folder.mkdir()
        run.options["validate"] = lambda state: {"w": float(state.params["w"][0])}
    final = whole.go()
    parts.stop_at(first_stop - 1)
    with pytest.raises(Stopped, match=f"state of step {first_stop} of 12 is saved"):
        parts.go()
    assert parts.saved()[-1] == first_stop
    parts.stop.requested, parts.batch_of = False, batch_of
    resumed = parts.go()
    for name in ("metrics.csv", "validation.csv"):
        assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()
    assert list(parts.column("validation", "w")) == [3, 6, 9, 12]
    jax.tree.map(np.testing.assert_array_equal, final, resumed)


def test_a_stage_goes_on_with_another_number_of_devices(tmp_path):
    one, several = Run(tmp_path / "one"), Run(tmp_path / "several")
    for run in (one, several):
        run.folder.mkdir()
    one.go()
    for stop_at, num_devices in [(3, 1), (8, 4), (None, 1)]:
        several.stop_at(stop_at)
        if stop_at is None:
            several.go(num_devices=num_devices)
            break
        with pytest.raises(Stopped):
            several.go(num_devices=num_devices)
        several.stop.requested = False
    losses = [list(run.column("metrics", "loss").values()) for run in (one, several)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert len(losses[1]) == STEPS


def test_a_signal_while_validating_saves_the_state_and_validates_again(run):
    def validate(state):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        raise AssertionError

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run.stop.install()
    try:
        with pytest.raises(Stopped, match="state of step 3 of 12 is saved"):
            run.go(validate=validate)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert run.saved() == [3]
    run.stop = StopFlag()
    run.go(validate=lambda state: {"at": int(state.step)})
    assert list(run.column("validation", "at")) == [3, 6, 9, 12]


def test_a_signal_at_the_last_step_leaves_only_the_validation(run):
    run.options["validate"] = lambda state: {"w": 1.0}
    run.stop_at(STEPS - 1)
    with pytest.raises(Stopped, match="state of step 12 of 12 is saved"):
        run.go()
    run.stop.requested = False
    run.batch_of = None  # no step is left
    run.go()
    assert list(run.column("validation", "w")) == [3, 6, 9, 12]


@pytest.mark.parametrize("bad", [5, 6, 7])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_within_a_log_interval(run, bad, value):
    def poisoned(step):
        batch = batch_of(step)
        batch["image"][0, 0, 0, 0] = value if step == bad else 0
        return batch

    run.batch_of = poisoned
    with pytest.raises(UserError) as told:
        run.go()
    line = str(told.value)
    assert f"at step {bad + 1}; cases case_{bad}; last good checkpoint: step 5" in line
    assert "pretrain: loss nan" in line or "pretrain: loss inf" in line
    assert "peak_lr" in line and "\n" not in line
    assert run.saved() == [5]
    assert len(run.column("metrics", "loss")) == bad  # all that were finite


def test_a_loss_that_is_not_finite_before_any_checkpoint_says_so(run):
    run.batch_of = lambda step: {"image": np.full((BATCH, 2, 2, 1), np.nan, "f")}
    with pytest.raises(UserError, match="at step 1; .* last good checkpoint: none"):
        run.go()
    assert run.saved() == []


def test_weights_that_overflow_are_not_saved(run):
    """Loss and gradient of step 4 are finite; its update is not."""
    run.schedule = lambda step: jnp.where(step == 4, jnp.inf, 0.01)
    with pytest.raises(
        UserError, match=r"params.*not finite after step 5; cases case_4"
    ):
        run.go()
    assert run.saved() == []


def test_a_checkpoint_that_cannot_be_written_keeps_the_one_before(run, monkeypatch):
    reserve = os.posix_fallocate
    calls = []

    def full(number, offset, size):
        calls.append(size)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        reserve(number, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left .* step 5 is intact"):
        run.go()
    assert run.saved() == [5]
    run.go()
    assert run.saved() == [5, 10, 12]


def test_a_collapse_is_warned_of_where_the_method_sees_it(run, lines):
    seen = []

    def diagnose(means):
        seen.append(means)
        return "collapsed" if len(seen) == 2 else None

    run.method, run.traces = linear(diagnose)
    run.go()
    assert [line for line in lines.messages if "collapsed" in line] == [
        "pretrain step 8: collapsed"
    ]
    losses = run.column("metrics", "loss")
    expected = [np.mean([losses[s] for s in range(k - 3, k + 1)]) for k in (4, 8, 12)]
    np.testing.assert_allclose([m["loss"] for m in seen], expected, rtol=1e-12)


def test_a_resumed_stage_logs_the_same_means(tmp_path):
    means = {"whole": [], "parts": []}
    runs = {name: Run(tmp_path / name) for name in means}
    for name, run in runs.items():
        run.folder.mkdir()
        run.method, _ = linear(lambda values, name=name: means[name].append(values))
    runs["whole"].go()
    runs["parts"].stop_at(5)
    with pytest.raises(Stopped):
        runs["parts"].go()
    runs["parts"].stop.requested = False
    runs["parts"].go()
    assert means["parts"] == means["whole"]
    assert len(means["whole"]) == 3


def test_progress_lines_name_rate_wait_and_time_left(run, lines):
    run.go()
    shown = [line for line in lines.messages if line.startswith("pretrain step")]
    assert [line.split()[2] for line in shown] == ["4/12", "8/12", "12/12"]
    for part in ("loss", "lr", "slices/s", "data wait", "ETA", "(33%)"):
        assert part in shown[0]
    assert list(run.column("speed", "slices_per_second")) == [4, 8, 12]


@pytest.fixture
def clock(run, monkeypatch):
    """The loop's clock stands still but for what a test adds; a batch takes 50 ms."""
    clock = types.SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(loop, "time", clock)

    def slow(step):
        clock.now += 0.05
        return batch_of(step)

    run.batch_of = slow
    return clock


def test_a_slow_pipeline_shows_as_data_wait(run, clock):
    run.go()
    share = run.column("speed", "data_wait_share")
    assert share and list(share.values()) == pytest.approx([1.0] * len(share))


def test_validating_does_not_count_as_training_time(run, clock):
    def validate(state):
        clock.now += 1.0
        return {"w": 0.0}

    run.go(validate=validate)
    rate = run.column("speed", "slices_per_second")
    assert rate[8] == pytest.approx(BATCH / 0.05)


def test_a_batch_that_breaks_the_contract_is_refused(run):
    run.batch_of = lambda step: {"label": np.zeros((BATCH, 2, 2), np.int32)}
    with pytest.raises(ValueError, match="the batch lacks 'image'"):
        run.go()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.7, "1m00s"), (425, "7m05s"), (11520, "3h12m")],
)
def test_time_left_is_short(seconds, text):
    assert format_seconds(seconds) == text
