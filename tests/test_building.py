"""From a config to stages: what they draw, and what their weights may come from."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_nifti import InlinePool, config_for, nifti_tree, stage_folder

from pclseg import building, cohort, parallel
from pclseg.data import make_pipeline, workers
from pclseg.data.tfds_store import open_store
from pclseg.errors import UserError
from pclseg.train.step import make_train_step


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/: seven volumes of as many patients, the last one without label."""
    root = tmp_path_factory.mktemp("place")
    nifti_tree(root / "data", volumes=7, labelled=6)
    return root


@pytest.fixture(scope="module")
def outline(place):
    return building.outline(config_for(place))


def test_users_split_file_is_followed(place, outline, tmp_path):
    path = tmp_path / "mine.json"
    fold = {"train": ["case00", "case01"], "validation": ["case02"]}
    path.write_text(json.dumps({"folds": [fold], "test": ["case03"]}))
    config = config_for(place, "pcl", f"--config.data.split.file={path}")
    found = building.outline(config)
    assert found.split.test == ("case03",)
    assert found.all_splits["test"] == ["case03"]
    assert set(found.split.train) == {"case00", "case01"}
    slices = {name: stage.plan.num_volumes for name, stage in found.stages.items()}
    assert slices == {"pretrain": 3, "finetune": 2}  # two and the unlabelled one


def rows_drawn(stage, steps=3):
    """[steps, batch] of every field of the plan's rows."""
    drawn = [dataclasses.asdict(stage.plan.rows(step)) for step in range(steps)]
    return {key: np.stack([rows[key] for rows in drawn]) for key in drawn[0]}


def test_same_stage_draws_the_same_in_every_arm(place, outline):
    scratch = building.outline(config_for(place, "scratch"))
    pairs = [(outline.stages["finetune"], scratch.stages["finetune"])]
    simclr = config_for(place)
    with simclr.unlocked():
        del simclr.pretrain.method.position_threshold
        del simclr.pretrain.method.threshold_mode
        simclr.pretrain.method.name = "simclr"
    pairs.append(
        (outline.stages["pretrain"], building.outline(simclr).stages["pretrain"])
    )
    for ours, theirs in pairs:
        jax.tree.map(
            np.testing.assert_array_equal, rows_drawn(ours), rows_drawn(theirs)
        )
        assert (jax.random.key_data(ours.key) == jax.random.key_data(theirs.key)).all()


def test_stages_and_seeds_draw_differently(place, outline):
    other = building.outline(config_for(place, "pcl", "--config.seed=6"))
    keys = [
        tuple(jax.random.key_data(stage.key).tolist())
        for stage in (*outline.stages.values(), *other.stages.values())
    ]
    assert len(set(keys)) == 4
    ours, theirs = outline.stages["pretrain"], other.stages["pretrain"]
    assert not np.array_equal(rows_drawn(ours)["index"], rows_drawn(theirs)["index"])


def test_example_batch_has_the_shapes_of_the_batch_contract(outline):
    example = outline.stages["pretrain"].example(4)
    assert {k: (v.dtype.name, v.shape) for k, v in example.items()} == {
        "image": ("float32", (4, 16, 16, 1)),
        "position_bits": ("uint32", (4, 3)),
    }
    label = outline.stages["finetune"].example(2)["label"]
    assert (label.dtype.name, label.shape) == ("int32", (2, 16, 16))


def test_epochs_are_counted_in_steps(place):
    config = config_for(
        place,
        "pcl",
        "--config.pretrain.train.steps=0",
        "--config.pretrain.train.epochs=3",
    )
    stage = building.outline(config).stages["pretrain"]
    slices = stage.plan.num_slices
    assert stage.plan.steps_per_epoch == slices // 4
    assert stage.num_steps == 3 * (slices // 4)


@pytest.fixture(scope="module")
def store(place, outline):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.futures, "ProcessPoolExecutor", InlinePool)
        data = config_for(place).data
        path = cohort.prepare_dataset(data, outline.dataset, lambda line: None)
    return open_store(path)


def test_store_is_what_the_headers_promised(outline, store):
    assert store.infos == outline.infos


@pytest.mark.tf
@pytest.mark.slow
def test_two_steps_from_both_pipelines_end_in_the_same_bits(place, store):
    no_augment = "--config.finetune.augment={'name': 'none'}"  # slow to compile
    stage = building.outline(config_for(place, "scratch", no_augment)).stages[
        "finetune"
    ]
    train_step = make_train_step(stage.method, stage.tx, stage.axis_name)
    devices = jax.local_devices()[:1]
    step = parallel.pmap_step(train_step, devices)
    first = jax.device_get(stage.init())
    ends = []
    for pipeline in ("numpy", "tf"):
        state = parallel.replicate(first, devices)
        for batch in make_pipeline(
            pipeline,
            store=store,
            plan=stage.plan,
            keys=stage.method.batch_keys,
            first_step=0,
            num_steps=2,
            prefetch=1,
        ):
            state, _ = step(state, parallel.shard(dict(batch), 1), stage.key)
        ends.append(jax.device_get(state))
    assert int(ends[0].step) == 2
    a, b = (jax.tree.leaves(end) for end in ends)
    for ours, theirs in zip(a, b, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    moved = [
        not np.array_equal(before, after)
        for before, after in zip(
            jax.tree.leaves(first.params), jax.tree.leaves(ends[0].params), strict=True
        )
    ]
    assert any(moved)


def test_weights_of_another_run_are_checked_before_training(place, outline, tmp_path):
    train = list(outline.split.train)
    stage_folder(tmp_path / "fits", outline.stages["pretrain"], patients=train)
    more = "--config.pretrain.model.width=4", "--config.finetune.model.width=4"
    wide = building.outline(config_for(place, "pcl", *more))
    stage_folder(tmp_path / "wide", wide.stages["pretrain"], patients=train)

    def start_from(name, *more):
        source = f"--config.finetune.init_from={tmp_path / name}"
        return building.outline(config_for(place, "scratch", source, *more))

    assert list(start_from("fits").stages) == ["finetune"]
    with pytest.raises(UserError, match=r"^config.finetune.init_from: .*model.width"):
        start_from("wide")
    (tmp_path / "fits" / "done.json").write_text('{"steps": 8}')  # its last is gone
    with pytest.raises(
        UserError, match=r"fits is not finished, or its last checkpoint"
    ):
        start_from("fits")
    (tmp_path / "fits" / "done.json").write_text("[]")
    with pytest.raises(UserError, match=r"done\.json lacks 'steps'"):
        start_from("fits")
    (tmp_path / "fits" / "done.json").unlink()
    with pytest.raises(UserError, match=r"fits is not finished.*run that stage first"):
        start_from("fits")


def test_weights_that_saw_held_out_patients_are_refused(place, outline, tmp_path):
    leaked = [*outline.split.train, outline.split.validation[0]]
    stage_folder(tmp_path / "run", outline.stages["pretrain"], patients=leaked)
    source = f"--config.finetune.init_from={tmp_path / 'run'}"
    with pytest.raises(UserError, match=f"tests on, {outline.split.validation[0]}"):
        building.outline(config_for(place, "scratch", source))
    allowed = config_for(place, "scratch", source, "--config.data.transductive=True")
    assert list(building.outline(allowed).stages) == ["finetune"]


@pytest.mark.parametrize("transductive", [True, False])
def test_weights_that_saw_held_out_labels_are_refused_always(
    transductive, place, outline, tmp_path
):
    held_out, stage = outline.split.validation[0], outline.stages["finetune"]
    seen = [*outline.split.labelled, held_out]
    stage_folder(tmp_path / "run", stage, patients=seen, labels=seen)
    config = config_for(
        place,
        "scratch",
        f"--config.finetune.init_from={tmp_path / 'run'}",
        f"--config.data.transductive={transductive}",
    )
    with pytest.raises(UserError, match=rf"labels of 1 patients .* {held_out} first"):
        building.outline(config)


def test_weights_whose_labels_are_not_recorded_are_refused(place, outline, tmp_path):
    stage_folder(tmp_path / "run", outline.stages["pretrain"], patients=[])
    (tmp_path / "run" / "patients.json").write_text("[]")
    source = f"--config.finetune.init_from={tmp_path / 'run'}"
    with pytest.raises(UserError, match="is of an earlier version"):
        building.outline(config_for(place, "scratch", source))


def test_only_a_stage_that_learns_from_labels_sees_them(outline):
    assert outline.stages["pretrain"].label_subsets() == ()
    assert outline.stages["finetune"].label_subsets() == ("labelled",)


def test_without_labels_only_pretraining_is_possible(tmp_path):
    nifti_tree(tmp_path / "data", labelled=0)
    no_labels = "--config.data.options.labels="
    with pytest.raises(UserError, match="the dataset has none; .* pre-train alone"):
        building.outline(config_for(tmp_path, "pcl", no_labels))
    alone = "--config.stages=('pretrain',)"
    outline = building.outline(config_for(tmp_path, "pcl", no_labels, alone))
    assert list(outline.stages) == ["pretrain"]
    assert outline.stages["pretrain"].plan.num_volumes == len(outline.infos)
