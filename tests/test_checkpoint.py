import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from tiny import ROOT

from pclseg import parallel
from pclseg.errors import UserError
from pclseg.state import TrainState
from pclseg.train import checkpoint
from pclseg.train.checkpoint import Checkpoints, NotFiniteError, load_weights

pytestmark = pytest.mark.filterwarnings(  # rundir.log_to silences them
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
TX = optax.chain(optax.scale_by_adam(), optax.trace(0.9))


def state_of(step, size=1000):
    """A state whose leaves differ from step to step."""
    rng = np.random.default_rng(step)
    params = {
        "encoder": {"kernel": rng.normal(size=(size, 3)).astype(np.float32)},
        "head": {"bias": rng.normal(size=7).astype(ml_dtypes.bfloat16)},
    }
    return TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state=TX.init(jax.tree.map(jnp.asarray, params)),
        model_state={
            "batch_stats": {"encoder": {"mean": rng.normal(size=3).astype(np.float32)}}
        },
        method_state={},
    )


def save(folder, *steps, keep=2):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(state_of(step))
    checkpoints.wait()
    checkpoints.close()


def restore(folder, like=None):
    checkpoints = Checkpoints(folder, keep=2)
    try:
        return checkpoints.restore(state_of(0) if like is None else like)
    finally:
        checkpoints.close()


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in leaves
    )


def test_no_checkpoint_gives_none(tmp_path):
    assert restore(tmp_path / "new") is None


def test_the_newest_state_comes_back_to_the_last_bit(tmp_path):
    save(tmp_path, 5, 10, 15)
    assert same(restore(tmp_path), state_of(15))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "15"]


def test_weights_come_back_without_knowing_the_model(tmp_path):
    save(tmp_path, 5)
    step, params, batch_stats = load_weights(tmp_path)
    want = state_of(5)
    assert step == 5
    assert same(params, want.params)
    assert same(batch_stats, want.model_state["batch_stats"])


@pytest.mark.parametrize("num_devices", [1, 4])
def test_what_is_saved_is_no_view_of_donated_memory(tmp_path, num_devices, monkeypatch):
    """device_get on the CPU gives views; the next step is donated their memory."""
    devices = jax.devices()[:num_devices]
    state = parallel.replicate(state_of(1), devices)
    checkpoints = Checkpoints(tmp_path, keep=1)
    saved = []
    monkeypatch.setattr(
        checkpoints._manager, "save", lambda step, args: saved.append(args.item)
    )
    checkpoints.save(state)
    kernel = saved[0]["params"]["encoder"]["kernel"]
    assert type(kernel) is np.ndarray and kernel.flags.owndata
    for shard in state.params["encoder"]["kernel"].addressable_shards:
        assert not np.shares_memory(kernel, np.asarray(shard.data))
    checkpoints.close()


def test_a_state_saved_by_four_devices_has_no_device_axis(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(parallel.replicate(state_of(3), jax.devices()[:4]))
    checkpoints.close()
    assert same(restore(tmp_path), state_of(3))


@pytest.mark.parametrize("field", ["params", "model_state", "opt_state"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, field, value):
    save(tmp_path, 5)
    state = state_of(10)
    bad = jax.tree.map(
        lambda x: np.full_like(x, value) if x.dtype == np.float32 else x,
        {"leaf": np.ones(3, np.float32), "tree": getattr(state, field)},
    )
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(NotFiniteError, match=field):
        checkpoints.save(state.replace(**{field: bad}))
    checkpoints.close()
    assert checkpoints.latest_step() == 5


def test_a_full_disk_is_found_before_anything_is_written(tmp_path, monkeypatch, capfd):
    save(tmp_path, 5)

    def full(number, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(
        UserError, match="No space left.*step 5 is intact; free"
    ) as told:
        checkpoints.save(state_of(10))
    checkpoints.close()
    monkeypatch.undo()
    assert "\n" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["5"]
    assert same(restore(tmp_path), state_of(5))
    assert "Traceback" not in capfd.readouterr().err


QUOTA = """
import resource, sys
from pathlib import Path
sys.path[:0] = ["tests"]
from test_checkpoint import Checkpoints, state_of
from pclseg.errors import UserError

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
try:
    checkpoints.save(state_of(10, size=100_000))
    checkpoints.wait()
except UserError as error:
    print(error)
checkpoints.close()
"""


def test_a_quota_leaves_the_old_checkpoint_and_one_line(tmp_path):
    save(tmp_path, 5)
    done = subprocess.run(
        [sys.executable, "-c", QUOTA, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    assert "File too large" in line and "step 5 is intact" in line
    assert "Traceback" not in done.stderr
    assert same(restore(tmp_path), state_of(5))


def test_a_failure_in_the_saving_thread_is_told_by_wait(tmp_path, monkeypatch):
    """There was room when the saving began, and then there was none."""
    save(tmp_path, 5)
    monkeypatch.setattr("pclseg.train.checkpoint._reserve", lambda folder, tree: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path, keep=2)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(
            UserError, match=r"\(File too large\).*step 5.*intact"
        ) as told:
            checkpoints.save(state_of(10, size=100_000))
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        checkpoints.close()
    assert "\n" not in str(told.value)
    assert same(restore(tmp_path), state_of(5))
    save(tmp_path, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "5"]


def test_what_a_killed_run_was_saving_is_removed(tmp_path):
    save(tmp_path, 5)
    shutil.copytree(tmp_path / "5", tmp_path / "10.orbax-checkpoint-tmp")
    assert same(restore(tmp_path), state_of(5))
    save(tmp_path, 15)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["15", "5"]


def test_room_that_a_killed_run_had_reserved_is_given_back(tmp_path, monkeypatch):
    save(tmp_path, 5)
    with monkeypatch.context() as killed:
        killed.setattr(os, "getpid", lambda: 1)
        killed.setattr(Path, "unlink", lambda *args, **options: None)
        checkpoint._reserve(tmp_path, {"weights": np.zeros(1000)})
    assert len(list(tmp_path.iterdir())) == 2
    save(tmp_path, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "5"]


def damage(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 255])
    path.write_bytes(
        {
            "cut": content[:middle],
            "emptied": b"",
            "flipped": content[:middle] + flipped + content[middle + 1 :],
        }[how]
    )


def data_file(folder):
    return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped"])
@pytest.mark.parametrize("part", ["data", "_METADATA", "manifest.ocdbt"])
def test_a_damaged_checkpoint_is_one_line_and_the_older_one_serves(tmp_path, part, how):
    save(tmp_path, 5, 10)
    newest = tmp_path / "10"
    damage(data_file(newest) if part == "data" else newest / "default" / part, how)
    with pytest.raises(
        UserError, match=r"/10 .*damaged.*delete that folder to go on from step 5\."
    ) as told:
        restore(tmp_path)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="damaged"):
        load_weights(tmp_path)
    shutil.rmtree(newest)
    assert same(restore(tmp_path), state_of(5))


def test_a_damaged_only_checkpoint_says_to_start_again(tmp_path):
    save(tmp_path, 5)
    damage(data_file(tmp_path), "cut")
    with pytest.raises(UserError, match="delete that folder to start this stage again"):
        restore(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save(tmp_path, 5)
    with pytest.raises(UserError, match="5.*(does not fit|in this run)") as told:
        restore(tmp_path, like=state_of(0, size=10))
    assert "\n" not in str(told.value)


def test_weights_of_a_folder_without_checkpoints_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_weights(tmp_path / "none")
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        load_weights(tmp_path)
