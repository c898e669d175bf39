"""Both input pipelines: the batches of the plan, bit for bit, from any step on."""

import dataclasses
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from pclseg.batch import KEYS, check_batch
from pclseg.data import make_batches, make_pipeline
from pclseg.data.plan import Plan
from pclseg.data.slices import attributes, slice_table
from pclseg.errors import UserError

NAMES = ["numpy", pytest.param("tf", marks=pytest.mark.tf)]
# Larger and smaller than the crop on either axis, odd differences, exactly the crop.
SHAPES = [(3, 41, 50), (4, 20, 53), (2, 37, 31), (1, 9, 7), (2, 32, 48), (5, 33, 48)]
CROP = (32, 48)
CHANNELS = 2


class FakeStore:
    """Volumes of noise, negative zero and tiny numbers too; row 3 is unlabelled."""

    class_names = tuple(f"class{i}" for i in range(5))
    infos = tuple(
        types.SimpleNamespace(
            name=f"case{row}", shape=shape, channels=CHANNELS, labelled=row != 3
        )
        for row, shape in enumerate(SHAPES)
    )

    def volume(self, row):
        info = self.infos[row]
        draw = np.random.default_rng(row)
        image = draw.standard_normal((*info.shape, CHANNELS), np.float32)
        image[:, 0], image[:, 1] = -0.0, 1e-42
        label = draw.integers(0, 5, info.shape).astype(np.uint8)
        label = label if info.labelled else None
        return types.SimpleNamespace(info=info, image=image, label=label)


def plan_of(rows=(0, 1, 2, 4, 5), **changes):
    arguments = dict(
        table=slice_table(FakeStore.infos, rows),
        seed=11,
        batch_size=5,
        crop_size=CROP,
        random_crop=True,
        shuffle=True,
        sampling="slices",
        last_batch="fill",
    )
    return Plan(**{**arguments, **changes})


def run(name, plan=None, *, first_step=0, num_steps=7, keys=tuple(KEYS), prefetch=2):
    return make_pipeline(
        name,
        store=FakeStore(),
        plan=plan or plan_of(),
        keys=keys,
        first_step=first_step,
        num_steps=num_steps,
        prefetch=prefetch,
    )


def assert_same(batches, expected):
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected) > 0
    for one, two in zip(batches, expected, strict=True):
        assert sorted(one) == sorted(two)
        for key in one:
            assert (one[key].dtype, one[key].shape) == (two[key].dtype, two[key].shape)
            assert one[key].tobytes() == two[key].tobytes(), key


def pad_and_crop(plane, top, left):
    """Padding first, the odd pixel after the slice, then the crop (the oracle)."""
    missing = [max(new - old, 0) for new, old in zip(CROP, plane.shape, strict=False)]
    around = [(some // 2, some - some // 2) for some in missing]
    padded = np.pad(plane, around + [(0, 0)] * (plane.ndim - 2))
    return padded[top : top + CROP[0], left : left + CROP[1]]


@pytest.mark.parametrize("random_crop", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_batches_equal_pad_then_crop_of_the_planned_slices(name, random_crop):
    plan, store = plan_of(random_crop=random_crop), FakeStore()
    for step, batch in enumerate(run(name, plan)):
        check_batch(batch, KEYS)
        rows = plan.rows(step)
        for item, (row, index, top, left) in enumerate(
            zip(rows.volume, rows.index, rows.top, rows.left, strict=True)
        ):
            volume = store.volume(row)
            image = pad_and_crop(volume.image[index], top, left)
            label = pad_and_crop(volume.label[index], top, left)
            assert batch["image"][item].tobytes() == image.tobytes()
            assert (batch["label"][item] == label).all()
        for key, value in attributes(rows, KEYS).items():
            assert (batch[key] == value).all()


@pytest.mark.tf
@pytest.mark.parametrize("first_step", [0, 123_456_789_012])
def test_both_pipelines_give_the_same_bits(first_step):
    numpy_batches = run("numpy", first_step=first_step)
    assert_same(run("tf", first_step=first_step), numpy_batches)


@pytest.mark.parametrize("name", NAMES)
def test_shares_of_a_batch_are_its_rows_in_order(name):
    plan = plan_of(batch_size=6)
    shares = [
        run(name, dataclasses.replace(plan, share=(number, 3))) for number in range(3)
    ]
    for whole, *parts in zip(run(name, plan), *shares, strict=True):
        for key, value in whole.items():
            joined = np.concatenate([part[key] for part in parts])
            assert joined.tobytes() == value.tobytes(), key


@pytest.mark.parametrize("name", NAMES)
def test_starting_at_a_step_equals_skipping_to_it(name):
    whole = list(run(name, num_steps=7))
    assert_same(run(name, first_step=3, num_steps=4), whole[3:])


@pytest.mark.parametrize("name", NAMES)
def test_only_the_keys_asked_for_are_yielded(name):
    for keys in (("image",), ("label", "index"), ("position_bits", "partition")):
        batch = next(run(name, keys=keys))
        assert sorted(batch) == sorted(keys)


@pytest.mark.parametrize("name", NAMES)
def test_unlabelled_volumes_serve_images_but_no_labels(name):
    plan = plan_of(rows=(3, 4))
    images = run(name, plan, keys=("image", "volume"))
    assert set(next(images)["volume"].tolist()) == {3, 4}
    with pytest.raises(UserError, match="'case3'"):
        run(name, plan, keys=("image", "label"))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_refused_at_once(name):
    with pytest.raises(ValueError, match=r"unknown batch keys \['images'\]"):
        run(name, keys=("images",))
    with pytest.raises(ValueError, match="prefetch is 0"):
        run(name, prefetch=0)
    with pytest.raises(UserError, match="needs the setting 'store'"):
        make_pipeline(name)


def test_an_unknown_pipeline_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"'nump'.*numpy, tf.*Did you mean 'numpy'"):
        make_pipeline("nump")


class CountingPlan(Plan):
    """A plan that notes the steps asked for, and fails at step 4."""

    asked: list[int] = []

    def rows(self, step):
        self.asked.append(step)
        if step == 4:
            raise RuntimeError("step 4 is broken")
        return super().rows(step)


def counting_plan():
    CountingPlan.asked = []
    return CountingPlan(**vars(plan_of()))


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_the_thread_works_no_further_ahead_than_asked_and_ends_when_closed():
    batches = run("numpy", counting_plan(), prefetch=2)
    assert threads() == []
    next(batches)
    assert len(threads()) == 1
    next(batches)
    assert max(CountingPlan.asked) <= 1 + 2
    batches.close()
    assert threads() == []


def test_the_thread_ends_with_the_last_batch_and_with_a_dropped_iterator():
    assert len(list(run("numpy"))) == 7
    assert threads() == []
    batches = run("numpy")
    next(batches)
    del batches
    assert threads() == []


def test_an_exception_in_the_thread_reaches_the_reader():
    batches = run("numpy", counting_plan())
    for _ in range(4):
        next(batches)
    with pytest.raises(RuntimeError, match="step 4 is broken"):
        next(batches)
    assert threads() == []


@pytest.mark.tf
def test_an_exception_in_tensorflows_threads_reaches_the_reader():
    batches = run("tf", counting_plan())
    with pytest.raises(Exception, match="step 4 is broken"):
        list(batches)


def test_tensorflow_is_kept_off_the_accelerators(monkeypatch):
    hidden = []
    fake = types.ModuleType("tensorflow")
    fake.config = types.SimpleNamespace(
        set_visible_devices=lambda devices, kind: hidden.append((devices, kind))
    )
    monkeypatch.setitem(sys.modules, "tensorflow", fake)
    monkeypatch.delitem(sys.modules, "pclseg.data._tf", raising=False)
    import pclseg.data._tf  # noqa: F401

    # Later imports must meet the real module again, not the one made here.
    monkeypatch.delitem(sys.modules, "pclseg.data._tf")
    assert hidden == [([], "GPU"), ([], "TPU")]


WITHOUT_TENSORFLOW = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name == "tensorflow" else find(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
sys.path.insert(0, "tests")
import test_pipelines
from pclseg.errors import UserError
print(len(list(test_pipelines.run("numpy"))))
try:
    test_pipelines.run("tf")
except UserError as error:
    print(error)
"""


def test_without_tensorflow_numpy_works_and_tf_names_the_remedy(pytestconfig):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW],
        capture_output=True,
        text=True,
        check=True,
        cwd=pytestconfig.rootpath,
    )
    batches, message = done.stdout.splitlines()
    assert batches == "7"
    assert "--config.data.pipeline=numpy" in message
    assert "pip install tensorflow" in message


@pytest.mark.parametrize("name", NAMES)
def test_second_stream_has_its_own_plan_and_prefixed_keys(name):
    plan, other = plan_of(), plan_of(rows=(3, 5), seed=4, batch_size=3)
    common = dict(store=FakeStore(), first_step=2, num_steps=4, prefetch=2)
    keys = {"image", "label", "unlabelled_image", "unlabelled_index"}
    joined = make_batches(name, plan=plan, unlabelled=other, keys=keys, **common)
    first = run(name, plan, first_step=2, num_steps=4, keys=["image", "label"])
    second = run(name, other, first_step=2, num_steps=4, keys=["image", "index"])
    expected = [
        a | {f"unlabelled_{key}": value for key, value in b.items()}
        for a, b in zip(first, second, strict=True)
    ]
    batches = list(joined)
    for batch in batches:
        check_batch(batch, keys)
    assert_same(batches, expected)


def test_closing_the_joined_streams_ends_their_threads():
    before = threading.active_count()
    joined = make_batches(
        "numpy",
        plan=plan_of(),
        unlabelled=plan_of(seed=4),
        keys={"image", "unlabelled_image"},
        store=FakeStore(),
        first_step=0,
        num_steps=9,
        prefetch=2,
    )
    next(joined)
    joined.close()
    assert threading.active_count() == before
