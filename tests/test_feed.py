"""Batches cut on devices: those of the host, bit for bit, or to a step of grey."""

import types

import jax
import numpy as np
import pytest
import tiny_nifti
from test_pipelines import FakeStore, plan_of

from pclseg import feed, runner
from pclseg.batch import KEYS, check_batch
from pclseg.data import workers
from pclseg.data.lines import DTYPES
from pclseg.errors import UserError
from pclseg.train.stop import StopFlag

PLANS = {
    "one stream": (plan_of(batch_size=4), None),
    "two streams": (plan_of(batch_size=4), plan_of((3, 0, 5), batch_size=2, seed=3)),
}


def feed_of(make, streams, *, devices=1, first_step=2, **options):
    plan, unlabelled = PLANS[streams]
    others = {"unlabelled_image", "unlabelled_index"} if unlabelled else set()
    return make(
        store=FakeStore(),
        plan=plan,
        unlabelled=unlabelled,
        keys=frozenset(KEYS) | others,
        first_step=first_step,
        num_steps=5,
        devices=jax.devices()[:devices],
        **options,
    )


def placed(made):
    return [jax.device_get(made.place(batch)) for batch in made.batches]


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("streams", PLANS)
def test_slices_kept_in_float32_give_the_batches_of_the_host(streams, devices):
    host = feed_of(feed.host_feed, streams, devices=devices, pipeline="numpy")
    device = feed_of(feed.device_feed, streams, devices=devices, dtype="float32")
    for want, have in zip(placed(host), placed(device), strict=True):
        check_batch(have, want, shares=True)
        assert sorted(have) == sorted(want)
        for key in want:
            assert have[key].shape == want[key].shape
            np.testing.assert_array_equal(have[key], want[key], err_msg=key)


def largest_step(dtype):
    """Of the grey values of FakeStore, between -5 and 5."""
    if np.issubdtype(dtype, np.floating):
        return 5 * float(np.finfo(dtype).eps)
    return 10 / (np.iinfo(dtype).max - np.iinfo(dtype).min)


@pytest.mark.parametrize("dtype", DTYPES)
def test_grey_values_are_kept_to_half_a_step_and_padding_to_the_bit(dtype):
    host = feed_of(feed.host_feed, "two streams", pipeline="numpy")
    device = feed_of(feed.device_feed, "two streams", dtype=dtype)
    for want, have in zip(placed(host), placed(device), strict=True):
        for key in ("image", "unlabelled_image"):
            assert np.abs(have[key] - want[key]).max() <= 0.51 * largest_step(dtype)
            assert (have[key][want[key] == 0] == 0).all()
        np.testing.assert_array_equal(have["label"], want["label"])


def test_labels_of_a_volume_without_are_refused():
    with pytest.raises(UserError, match="'case3'"):
        feed.device_feed(
            store=FakeStore(),
            plan=plan_of((3, 4)),
            unlabelled=None,
            keys={"image", "label"},
            first_step=0,
            num_steps=1,
            devices=jax.devices()[:1],
            dtype="float32",
        )


def test_slices_that_do_not_fit_are_refused_with_what_helps():
    device = types.SimpleNamespace(
        memory_stats=lambda: {"bytes_limit": 10 * 2**30, "bytes_in_use": 2 * 2**30}
    )
    feed._check_room(6 * 2**30, [device], "float32")
    expected = (
        r"7\.0 GiB as float16 of 6\.4 GiB .* set --config.data.device_dtype=uint8"
    )
    with pytest.raises(UserError, match=expected):
        feed._check_room(7 * 2**30, [device], "float16")
    with pytest.raises(UserError, match=r"set --config\.data\.pipeline=numpy\.$"):
        feed._check_room(7 * 2**30, [device], "uint8")


def test_a_run_from_the_device_is_the_run_from_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.futures, "ProcessPoolExecutor", tiny_nifti.InlinePool)
    tiny_nifti.nifti_tree(tmp_path / "data")
    scalars = {}
    for pipeline in ("numpy", "device"):
        config = tiny_nifti.config_for(
            tmp_path, "scratch", f"--config.data.pipeline={pipeline}"
        )
        outline = runner.outline(config, dry_run=False)
        workdir = tmp_path / pipeline
        workdir.mkdir()
        runner.execute(
            config,
            workdir,
            outline,
            predictions=workdir / "predictions",
            devices=jax.devices()[:1],
            only=(),
            stop=StopFlag(),
        )
        scalars[pipeline] = [
            (workdir / name).read_text()
            for name in ("finetune/metrics.csv", "finetune/validation.csv", "cases.csv")
        ]
    assert scalars["device"] == scalars["numpy"]
