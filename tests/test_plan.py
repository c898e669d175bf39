"""The plan: a pure function of seed and step, uniform and complete."""

import time
import types

import numpy as np
import pytest

from pclseg.data.plan import Plan
from pclseg.data.slices import slice_table
from pclseg.errors import UserError


def table_of(*shapes):
    infos = [types.SimpleNamespace(shape=shape) for shape in shapes]
    return slice_table(infos, range(len(infos)))


def plan_of(table=None, **changes):
    arguments = dict(
        table=table if table is not None else table_of((7, 40, 50), (6, 20, 60)),
        seed=3,
        batch_size=4,
        crop_size=(32, 48),
        random_crop=True,
        shuffle=True,
        sampling="slices",
        last_batch="drop",
    )
    return Plan(**{**arguments, **changes})


def slices_of(plan, steps):
    rows = [plan.rows(step) for step in steps]
    return [
        pair
        for r in rows
        for pair in zip(r.volume.tolist(), r.index.tolist(), strict=True)
    ]


def philox(key, counter, blocks):
    """Philox 4x64 with 10 rounds in Python integers (Salmon et al. 2011)."""
    mask, out = 2**64 - 1, []
    for block in range(1, blocks + 1):  # NumPy counts up before it draws
        c, k = list(counter), list(key)
        c[0] += block
        for _ in range(10):
            one, two = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [
                (two >> 64) ^ c[1] ^ k[0],
                two & mask,
                (one >> 64) ^ c[3] ^ k[1],
                one & mask,
            ]
            k = [k[0] + 0x9E3779B97F4A7C15 & mask, k[1] + 0xBB67AE8584CAA73B & mask]
        out += c
    return out


@pytest.mark.parametrize("step", [0, 5, 3 * 10**9])
def test_rows_equal_a_python_philox(step):
    plan = plan_of()
    epoch, batch = divmod(step, 3)
    bits = philox((3, 0), (0, 0, epoch, 0), blocks=4)[:13]
    order = sorted(range(13), key=lambda item: bits[item])
    items = order[4 * batch : 4 * batch + 4]
    rows = plan.rows(step)
    assert rows.volume.tolist() == [plan.table.volume[item] for item in items]
    assert rows.index.tolist() == [plan.table.index[item] for item in items]
    assert rows.count.tolist() == [plan.table.count[item] for item in items]
    bits = philox((3, 1), (0, 0, step, 0), blocks=2)
    for slot, item in enumerate(items):
        top_choices = max(int(plan.table.height[item]), 32) - 32 + 1
        left_choices = max(int(plan.table.width[item]), 48) - 48 + 1
        assert rows.top[slot] == (bits[2 * slot] >> 32) * top_choices >> 32
        assert rows.left[slot] == (bits[2 * slot + 1] >> 32) * left_choices >> 32
    assert {column.dtype for column in vars(rows).values()} == {np.dtype(np.int32)}


def test_an_epoch_takes_every_slice_once():
    plan = plan_of(batch_size=13)
    assert plan.steps_per_epoch == 1
    everything = sorted([(0, i) for i in range(7)] + [(1, i) for i in range(6)])
    for epoch in range(3):
        assert sorted(slices_of(plan, [epoch])) == everything


def test_drop_leaves_out_the_rest_of_an_epoch():
    plan = plan_of()
    assert plan.steps_per_epoch == 3
    taken = slices_of(plan, range(3))
    assert len(set(taken)) == len(taken) == 12


def test_fill_tops_up_with_the_first_slices_of_the_same_epoch():
    plan = plan_of(last_batch="fill")
    assert plan.steps_per_epoch == 4
    for epoch in (0, 1, 5):
        taken = slices_of(plan, range(4 * epoch, 4 * epoch + 4))
        assert len(set(taken[:13])) == 13
        assert taken[13:] == taken[:3]


def test_fill_wraps_as_often_as_needed():
    plan = plan_of(table_of((3, 32, 32)), batch_size=8, last_batch="fill")
    assert plan.steps_per_epoch == 1
    taken = slices_of(plan, [2])
    assert len(set(taken[:3])) == 3
    assert taken == (taken[:3] * 3)[:8]


def test_fill_adds_nothing_to_full_batches():
    plan = plan_of(table_of((8, 32, 32)), last_batch="fill")
    assert plan.steps_per_epoch == 2


def test_without_shuffle_the_order_is_the_tables():
    plan = plan_of(shuffle=False, last_batch="fill", random_crop=False)
    order = [(0, i) for i in range(7)] + [(1, i) for i in range(6)]
    for epoch in (0, 3):
        steps = range(4 * epoch, 4 * epoch + 4)
        assert slices_of(plan, steps) == order + order[:3]


def test_epochs_and_seeds_differ_in_order_and_crops():
    plan, other = plan_of(batch_size=13), plan_of(batch_size=13, seed=4)
    assert slices_of(plan, [0]) != slices_of(plan, [1])
    assert slices_of(plan, [0]) != slices_of(other, [0])
    assert plan.rows(0).left.tolist() != plan.rows(1).left.tolist()
    assert plan.rows(0).left.tolist() != other.rows(0).left.tolist()


def test_a_far_step_is_reached_at_once_and_is_the_same():
    shapes = [(10, 48, 64)] * 30
    first, second = plan_of(table_of(*shapes)), plan_of(table_of(*shapes))
    for step in range(5):
        first.rows(step)
    began = time.perf_counter()
    far = second.rows(10**9)
    assert time.perf_counter() - began < 0.5
    for name, column in vars(first.rows(10**9)).items():
        assert column.tobytes() == getattr(far, name).tobytes()


def test_random_crops_are_uniform_up_to_the_last_place():
    plan = plan_of(table_of((8, 34, 52)), batch_size=8, crop_size=(32, 48))
    rows = [plan.rows(step) for step in range(500)]
    for starts, choices in (
        (np.concatenate([r.top for r in rows]), 3),
        (np.concatenate([r.left for r in rows]), 5),
    ):
        counts = np.bincount(starts, minlength=choices)
        assert len(counts) == choices
        mean = len(starts) / choices
        assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)


@pytest.mark.parametrize(
    ("size", "start"),
    [(32, 0), (33, 0), (34, 1), (51, 9), (52, 10), (7, 0), (31, 0)],
)
def test_centre_crops_start_at_half_the_size_less_half_the_crop(size, start):
    table = table_of((1, size, 48))
    plan = plan_of(table, batch_size=1, crop_size=(32, 48), random_crop=False)
    assert plan.rows(0).top.tolist() == [start]
    assert plan.rows(0).left.tolist() == [0]


def test_an_axis_shorter_than_the_crop_is_taken_from_its_start():
    plan = plan_of(table_of((9, 20, 60)), batch_size=9)
    for step in range(20):
        assert plan.rows(step).top.tolist() == [0] * 9
    assert max(plan.rows(step).left.max() for step in range(20)) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop_size": (32, 50)}, ["crop_size is (32, 50)", "16", "(32, 48)"]),
        ({"crop_size": (0, 48)}, ["crop_size is (0, 48)", "(16, 48)"]),
        ({"crop_size": (32,)}, ["crop_size is (32,)", "two"]),
        ({"batch_size": 14}, ["batch_size is 14", "only 13 slices", "'fill'"]),
        ({"batch_size": 0, "last_batch": "fill"}, ["batch_size is 0"]),
        ({"last_batch": "keep"}, ["last_batch is 'keep'", "'drop' or 'fill'"]),
        ({"seed": -1}, ["config.seed is -1"]),
        ({"table": table_of()}, ["no volume is left"]),
    ],
)
def test_what_a_config_can_get_wrong_is_explained(changes, words):
    with pytest.raises(UserError) as error:
        plan_of(**changes)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_plan_counts_its_slices_and_volumes():
    plan = plan_of(table_of((7, 40, 50), (6, 20, 60), (1, 5, 5)))
    assert (plan.num_slices, plan.num_volumes) == (14, 3)


def test_partitions_draw_one_slice_of_every_quarter_of_whole_volumes():
    table = table_of((9, 32, 32), (14, 32, 32), (3, 32, 32), (4, 32, 32))
    plan = plan_of(table, batch_size=8, sampling="partitions")
    seen = set()
    for step in range(40):
        rows = plan.rows(step)
        size = rows.count // 4
        assert set(rows.volume.tolist()) <= {0, 1, 3}, "three slices have no quarters"
        assert np.all(rows.volume.reshape(-1, 4) == rows.volume[::4, None])
        assert np.all(rows.index // size == np.tile(np.arange(4), 2))
        assert np.all(rows.partition == np.tile([1, 2, 3, 4], 2))
        assert np.all(table.index[rows.slice] == rows.index)
        seen |= set(zip(rows.volume.tolist(), rows.index.tolist(), strict=True))
    left_over = {(0, 8), (1, 12), (1, 13)}  # on top of floor(count / 4) * 4 slices
    assert seen == {(v, i) for v, n in ((0, 9), (1, 14), (3, 4)) for i in range(n)} - (
        left_over
    )


def test_partitions_take_every_volume_once_a_pass():
    plan = plan_of(table_of(*[(8, 32, 32)] * 6), batch_size=12, sampling="partitions")
    volumes = np.stack([plan.rows(step).volume[::4] for step in range(8)])
    passes = volumes.reshape(4, 6)  # 2 steps of 3 volumes are a pass
    assert np.all(np.sort(passes) == np.arange(6))
    assert len(np.unique(passes, axis=0)) > 1


def test_partitions_never_draw_a_volume_twice_for_a_batch():
    plan = plan_of(table_of(*[(8, 32, 32)] * 5), batch_size=12, sampling="partitions")
    volumes = np.stack([plan.rows(step).volume[::4] for step in range(50)])
    assert all(len(set(batch)) == 3 for batch in volumes.tolist())
    assert set(volumes.ravel().tolist()) == set(range(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_size=6), "multiple of 4"),
        (dict(table=(3, 32, 32), batch_size=4, last_batch="fill"), "no volume has 4"),
        (dict(sampling="rows"), "'slices' or 'partitions'"),
    ],
)
def test_partitions_that_cannot_be_are_refused(changes, message):
    shape = changes.pop("table", (8, 32, 32))
    with pytest.raises(UserError, match=message):
        plan_of(table_of(shape), **({"sampling": "partitions"} | changes))


def test_slice_numbers_name_the_rows_of_the_table():
    plan = plan_of()
    rows = plan.rows(3)
    assert np.all(rows.num_slices == len(plan.table))
    assert np.all(plan.table.volume[rows.slice] == rows.volume)
    assert np.all(plan.table.index[rows.slice] == rows.index)
