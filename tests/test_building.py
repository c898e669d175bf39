"""From a config to what runs: who is in which part, and what a stage draws."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_nifti import ROOT, InlinePool, nifti_tree

from pclseg import building, parallel
from pclseg.config import load_config, override
from pclseg.data import make_pipeline, prepare, splits
from pclseg.data.splits import Split
from pclseg.data.tfds_store import CaseInfo, open_store
from pclseg.data.volume import prepared_geometry
from pclseg.errors import UserError
from pclseg.state import TrainState
from pclseg.train.checkpoint import Checkpoints
from pclseg.train.step import make_train_step


def info(name, patient, *, labelled, in_series=False, slices=4):
    geometry, shape, spacing = prepared_geometry(
        (10, 8, slices), np.eye(4), slice_axis=2, spacing=()
    )
    return CaseInfo(
        name=name,
        patient=patient,
        frame="",
        shape=shape,
        spacing=spacing,
        labelled=labelled,
        spacing_known=True,
        in_series=in_series,
        geometry=geometry,
        image_path=f"/{name}.nii.gz",
    )


# As in ACDC: p1 and p3 have a 4-D file, p2 and p4 only the two labelled frames.
INFOS = (
    info("p1_4d_00", "p1", labelled=False),
    info("p1_4d_01", "p1", labelled=False),
    info("p1_ED", "p1", labelled=True, in_series=True),
    info("p1_ES", "p1", labelled=True, in_series=True),
    info("p2_ED", "p2", labelled=True),
    info("p2_ES", "p2", labelled=True),
    info("p3_4d_00", "p3", labelled=False),
    info("p3_ED", "p3", labelled=True, in_series=True),
    info("p4_ED", "p4", labelled=True),
    info("u1", "u1", labelled=False),
)
SPLIT = Split(
    train=("p1", "p2"),
    labelled=("p1",),
    validation=("p3",),
    test=("p4",),
    unlabelled=("u1",),
)


def names_of(subset, *, transductive=False, split=SPLIT):
    rows = building.rows_of(INFOS, split, subset, transductive=transductive)
    return [INFOS[row].name for row in rows]


def test_pretraining_sees_frames_of_a_series_but_not_their_labelled_copies():
    expected = ["p1_4d_00", "p1_4d_01", "p2_ED", "p2_ES", "u1"]
    assert names_of("train") == expected


def test_transductive_pretraining_sees_held_out_images_too():
    expected = ["p1_4d_00", "p1_4d_01", "p2_ED", "p2_ES", "p3_4d_00", "p4_ED", "u1"]
    assert names_of("train", transductive=True) == expected


@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize(
    ("subset", "expected"),
    [("labelled", ["p1_ED", "p1_ES"]), ("validation", ["p3_ED"]), ("test", ["p4_ED"])],
)
def test_other_subsets_hold_labelled_volumes(subset, expected, transductive):
    assert names_of(subset, transductive=transductive) == expected


def test_pretraining_does_not_depend_on_the_number_of_labelled_patients():
    more = dataclasses.replace(SPLIT, labelled=("p1", "p2"))
    assert names_of("train", split=more) == names_of("train")
    assert names_of("labelled", split=more) == ["p1_ED", "p1_ES", "p2_ED", "p2_ES"]


def test_unknown_subset_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"known are: train, .*mean 'labelled'\?"):
        names_of("labeled")


def config_for(tmp_path, arm="pcl", *more):
    config = load_config(
        f"{ROOT}/configs/{arm}_nifti.py:size=cpu,crop=16,classes=3,seed=5"
    )
    values = {
        "data.raw_dir": tmp_path / "data",
        "data.store_dir": tmp_path / "prepared",
        "data.pipeline": "numpy",
        "data.prepare.workers": 1,
        "finetune.data.batch_size": 4,
        "finetune.model.width": 2,
        "finetune.train.steps": 2,
    }
    if arm == "pcl":
        values |= {
            "pretrain.data.batch_size": 4,
            "pretrain.model.width": 2,
            "pretrain.model.out_dim": 4,
            "pretrain.train.steps": 2,
        }
    override(config, [f"--config.{key}={value}" for key, value in values.items()])
    override(config, more)
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/: seven volumes of as many patients, the last one without label."""
    root = tmp_path_factory.mktemp("place")
    nifti_tree(root / "data", volumes=7, labelled=6)
    return root


@pytest.fixture(scope="module")
def outline(place):
    return building.outline(config_for(place))


def test_splits_are_the_seeded_folds_of_labelled_patients(place, outline):
    data = config_for(place).data
    names = [f"case{number:02d}" for number in range(6)]
    expected = splits.make_splits(
        names, ["case06"], folds=5, fold_seed=12345, draw_seed=1234
    )
    assert building.make_splits(data, outline.infos) == expected == outline.all_splits


def test_patient_with_one_labelled_volume_is_no_unlabelled_patient(place):
    data = config_for(place).data
    data.split.folds = 2
    made = building.make_splits(data, INFOS)
    assert made["unlabelled"] == ["u1"]
    assert sorted(made["folds"][0]["draw"] + made["folds"][0]["validation"]) == [
        "p1",
        "p2",
        "p3",
        "p4",
    ]


@pytest.mark.parametrize("fold", range(5))
def test_labelled_subsets_are_nested_and_everybody_else_pretrains(place, outline, fold):
    seen = None
    for labelled in range(1, 5):
        split = splits.select(outline.all_splits, fold=fold, labelled=labelled)
        rows = building.rows_of(outline.infos, split, "train", transductive=False)
        patients = {outline.infos[row].patient for row in rows}
        assert patients == {*split.train, "case06"}
        assert not patients & {*split.validation}
        assert set(split.labelled) >= (seen or set())
        seen = set(split.labelled)


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
        patch.setattr(prepare.futures, "ProcessPoolExecutor", InlinePool)
        data = config_for(place).data
        path = building.prepare_dataset(data, outline.dataset, lambda line: None)
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


def stage_folder(folder, stage, *, patients):
    """RUN/STAGE of a finished run, as another run starts from it."""
    shapes = stage.abstract()

    def zeros(tree):
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)

    state = TrainState(
        step=np.int32(7),
        params=zeros(shapes.params),
        opt_state={},
        model_state=zeros(shapes.model_state),
        method_state={},
    )
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(state)
    checkpoints.close()
    (folder / "patients.json").write_text(json.dumps(patients))


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


def test_weights_that_saw_held_out_patients_are_refused(place, outline, tmp_path):
    leaked = [*outline.split.train, outline.split.validation[0]]
    stage_folder(tmp_path / "run", outline.stages["pretrain"], patients=leaked)
    source = f"--config.finetune.init_from={tmp_path / 'run'}"
    with pytest.raises(UserError, match=f"tests on, {outline.split.validation[0]}"):
        building.outline(config_for(place, "scratch", source))
    allowed = config_for(place, "scratch", source, "--config.data.transductive=True")
    assert list(building.outline(allowed).stages) == ["finetune"]


def test_store_that_cannot_be_written_is_named(place, outline, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "/somewhere/x.npz")

    monkeypatch.setattr(prepare, "prepare", full)
    with pytest.raises(UserError, match=r"^config.data.store_dir: .*No space left"):
        building.prepare_dataset(config_for(place).data, outline.dataset, print)
