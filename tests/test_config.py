"""Loading and overriding of config files, and the rules that they must keep."""

import json

import ml_collections
import pytest
from tiny import ROOT

from pclseg.config import (
    argument,
    as_dict,
    is_override,
    load_config,
    override,
    parse_arg,
    pick,
    sibling,
    with_stages_of,
)
from pclseg.config_rules import check_config, check_only
from pclseg.errors import UserError

CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


def phantom():
    return load_config(str(ROOT / "configs" / "pcl_phantom.py"))


def test_arguments_take_the_type_of_their_defaults():
    given = parse_arg(
        "fold=3,size=cpu,debug=True", fold=0, size="", debug=False, lr=0.5
    )
    assert vars(given) == dict(fold=3, size="cpu", debug=True, lr=0.5)


@pytest.mark.parametrize("arg", [None, ""])
def test_no_argument_gives_the_defaults(arg):
    assert vars(parse_arg(arg, fold=2)) == dict(fold=2)


def test_value_of_an_argument_may_hold_an_equals_sign():
    assert parse_arg(r"patient=(sub=\d+)", patient="").patient == r"(sub=\d+)"


def test_one_argument_is_found_among_others():
    given = r"images=a*,size=cpu,patient=(sub=\d+),size=gpu"
    assert argument(given, "size", "paper") == "gpu"  # the last, as parse_arg takes it
    assert argument(given, "patient", "") == r"(sub=\d+)"
    for arg in ("", None, "sizes=cpu"):
        assert argument(arg, "size", "paper") == "paper"


@pytest.mark.parametrize(
    ("crop", "window"),
    [
        ((256, 384), 64),
        ((144, 96), 24),
        ((96, 64), 16),
        ((48, 48), 16),
        ((112, 112), 32),
        ((80, 112), 16),
        ((16, 32), 8),
        ((50, 50), 8),  # which the network refuses
    ],
)
def test_stages_of_another_dataset_take_the_size_of_this_one(crop, window):
    own = sibling(f"{ROOT}/configs/a.py", "scratch_phantom.py", "")
    other = sibling(f"{ROOT}/configs/a.py", "mona_acdc.py", "size=cpu")
    data = own.data.to_dict()
    own.finetune.data.crop_size = crop
    own.finetune.model.num_classes = 7
    config = with_stages_of(own, other)
    assert config.arm == "mona" and config.stages == ("pretrain", "finetune")
    assert config.data.to_dict() == data
    assert config.evaluate.every_epochs == other.evaluate.every_epochs == 50
    assert config.pretrain.model.window == window
    for name in config.stages:
        assert config[name].data.crop_size == crop
        assert config[name].model.num_classes == 7
    assert "window" not in config.finetune.model


FILES = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


def sections(config):
    for value in config.values():
        if isinstance(value, ml_collections.ConfigDict):
            yield value
            yield from sections(value)


@pytest.mark.parametrize("name", FILES)
def test_no_two_keys_of_a_config_are_one_section(name):
    found = [id(section) for section in sections(load_config(f"{ROOT}/configs/{name}"))]
    assert len(found) == len({*found})


def test_a_change_of_one_stage_is_none_of_another():
    config = load_config(f"{ROOT}/configs/mona_acdc.py")
    before = config.pretrain.augment.turn_probability
    override(config, ["--config.finetune.augment.turn_probability=0.125"])
    assert config.finetune.augment.turn_probability == 0.125
    assert config.pretrain.augment.turn_probability == before != 0.125


def test_references_of_a_config_stay(tmp_path):
    (tmp_path / "a.py").write_text(
        "import ml_collections\n"
        "def get_config():\n"
        "    config = ml_collections.ConfigDict(dict(a=dict(x=1)))\n"
        "    config.b = dict(y=config.a.get_ref('x'))\n"
        "    return config\n"
    )
    config = load_config(str(tmp_path / "a.py"))
    override(config, ["--config.a.x=2"])
    assert config.b.y == 2


SEMI = ("ssl4mis_scratch", "action", "action_pp", "pcl_action_pp", "mona", "arco")


@pytest.mark.parametrize("arm", SEMI)
@pytest.mark.parametrize(("size", "of"), [("gpu", "paper"), ("cpu", "cpu")])
def test_configs_for_own_volumes_have_the_stages_of_acdc(arm, size, of):
    own, acdc = (
        sibling(f"{ROOT}/configs/a.py", f"{arm}_{data}.py", arg)
        for data, arg in (
            ("nifti", f"size={size},crop=112,classes=5,labelled=9"),
            ("acdc", f"size={of}"),
        )
    )
    plain = sibling(f"{ROOT}/configs/a.py", "pcl_nifti.py", f"size={size},crop=112")
    assert (own.arm, own.stages) == (acdc.arm, acdc.stages)
    assert own.data.split.labelled == 9 and own.data.options == plain.data.options
    for name in own.stages:
        ours, theirs = own[name], acdc[name]
        assert ours.data.crop_size == (112, 112)
        assert ours.model.get("num_classes", 5) == 5
        assert ours.model.get("window", 32) == 32
        for key in ("width", "backbone", "name"):
            assert ours.model[key] == theirs.model[key]
        if ours.method.name != "pcl":
            assert ours.method == theirs.method and ours.train == theirs.train
    if arm == "pcl_action_pp":
        pcl, other = own.pretrain, acdc.pretrain if size == "cpu" else plain.pretrain
        assert pcl.augment == plain.pretrain.augment
        assert pcl.method == plain.pretrain.method
        assert pcl.optimizer == other.optimizer and pcl.train == other.train
        assert pcl.data.batch_size == other.data.batch_size


def test_arco_after_pcl_takes_its_stages_from_arco():
    pcl_arco, arco = (
        sibling(f"{ROOT}/configs/a.py", f"{arm}_hippocampus.py", "")
        for arm in ("pcl_arco", "arco")
    )
    local = dict(pcl_arco.local, init_from="", init_parts=arco.pretrain.init_parts)
    assert local == dict(arco.pretrain) and pcl_arco.local.init_from == "pretrain"
    assert dict(pcl_arco.finetune, init_from="pretrain") == dict(arco.finetune)
    assert pcl_arco.pretrain.model.backbone == arco.pretrain.model.backbone


@pytest.mark.parametrize("arg", ["fodl=1", "fold", "=1", "fold=1.5", "debug=yes"])
def test_unknown_or_mistyped_argument_is_refused(arg):
    with pytest.raises(UserError, match="config argument"):
        parse_arg(arg, fold=0, debug=False)


def test_pick_names_the_choices():
    assert pick("size", "cpu", {"cpu": 1, "gpu": 2}) == 1
    with pytest.raises(UserError, match="known are: cpu, gpu"):
        pick("size", "tpu", {"cpu": 1, "gpu": 2})


def test_config_file_gets_its_argument_and_is_locked():
    config = load_config(str(ROOT / "configs" / "pcl_acdc.py") + ":fold=3,labelled=6")
    assert (config.data.split.fold, config.data.split.labelled) == (3, 6)
    with pytest.raises(AttributeError):
        config.pretrain.treshold = 1


def test_loading_leaves_no_compiled_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict()\n"
    )
    load_config(str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


def test_sibling_is_a_config_of_its_own():
    file = str(ROOT / "configs" / "gcl_phantom.py")
    first = sibling(file, "pcl_phantom.py", "seed=4")
    first.data.name = "changed"
    second = sibling(file, "pcl_phantom.py", "seed=4")
    assert (second.seed, second.data.name) == (4, "phantom")


def test_override_sets_values_of_every_type():
    config = phantom()
    override(
        config,
        [
            "--config.seed=7",
            "--config.pretrain.method.temperature=0.2",
            "--config.pretrain.data.crop_size=(32,48)",
            "--config.data.raw_dir=/some/where else",
            "--config.data.transductive",
            "--noconfig.pretrain.data.random_crop",
            "--config.data.split.fold",
            "3",
        ],
    )
    assert config.seed == 7
    assert config.pretrain.method.temperature == 0.2
    assert config.pretrain.data.crop_size == (32, 48)
    assert config.data.raw_dir == "/some/where else"
    assert config.data.transductive is True
    assert config.pretrain.data.random_crop is False
    assert config.data.split.fold == 3


def test_last_override_of_a_key_counts():
    config = phantom()
    override(config, ["--config.seed=7", "--config.seed=8"])
    assert config.seed == 8


def test_override_is_told_from_other_flags():
    assert is_override("--config.seed=1")
    assert is_override("-config.seed")
    assert is_override("--noconfig.data.transductive")
    assert not is_override("--config=x.py")
    assert not is_override("--configs.seed=1")
    assert not is_override("config.seed=1")


@pytest.mark.parametrize("key", ["sede", "pretrain.method.temp", "seed.x", ""])
def test_override_of_an_unknown_key_is_refused(key):
    with pytest.raises(UserError, match=f"--config.{key}"):
        override(phantom(), [f"--config.{key}=1"])


def test_as_dict_is_what_json_gives_back():
    values = as_dict(phantom())
    assert json.loads(json.dumps(values)) == values
    assert values["pretrain"]["data"]["crop_size"] == [64, 64]
    again = ml_collections.ConfigDict(values)
    assert as_dict(again) == values


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_keeps_the_rules(name, tmp_path, monkeypatch):
    config = load_config(str(ROOT / "configs" / name))
    monkeypatch.chdir(tmp_path)
    for stage in config.stages:
        if config[stage].init_from not in ("", *config.stages):  # of another run
            (tmp_path / config[stage].init_from).mkdir(parents=True)
    check_config(config, 1)


def test_config_that_was_read_back_from_json_keeps_the_rules():
    check_config(ml_collections.ConfigDict(as_dict(phantom())), 1)


def test_stages_may_be_any_part_of_a_run():
    check_only((), phantom())
    check_only(("prepare", "pretrain", "finetune", "evaluate"), phantom())
    with pytest.raises(UserError, match="prepare, pretrain, finetune, evaluate"):
        check_only(("train",), phantom())


def test_unused_section_is_allowed():
    config = phantom()
    override(config, ["--config.stages=pretrain"])
    check_config(config, 1)


@pytest.mark.parametrize(
    ("num_devices", "usable"), [(3, 2), (4, 2), (8, 2), (10, 2), (64, 2)]
)
def test_number_of_devices_that_fits_every_batch_is_named(num_devices, usable):
    config = phantom()  # batches of 32 and 10
    with pytest.raises(UserError, match=f"use --devices={usable}.$"):
        check_config(config, num_devices)
    check_config(config, usable)


def test_stage_cannot_start_from_a_later_one():
    config = phantom()
    override(config, ["--config.stages=('finetune','pretrain')"])
    with pytest.raises(UserError, match=r"finetune.init_from .*there is none"):
        check_config(config, 1)


RANGES = {
    "pretrain.optimizer.momentum=1.0": "from 0 to below 1",
    "pretrain.optimizer.weight_decay=-1e-5": ">= 0",
    "pretrain.optimizer.warmup_steps=-1": "from 0",
    "stages=('a','a')": "different names",
    "stages=([],)": "different names",
    "stages=('pre/train',)": "letters, digits",
    "stages=('predictions',)": "none of them",
    "pretrain.optimizer.frozen=('encoder', '')": "names of modules",
    "finetune.init_parts=()": "names of modules",
    "pretrain.optimizer.min_lr=0.5": "at most peak_lr",
    "pretrain.optimizer.schedule=step": "one of: 'cosine', 'poly'",
    "pretrain.train.keep=0": "from 1",
    "pretrain.train.log_every=0": "from 1",
    "pretrain.train.checkpoint_every=0": "from 1",
    "pretrain.model.out_dim=0": "from 1",
    "finetune.model.num_classes=1": "from 2",
    "evaluate.every_epochs=0": "from 1",
    "evaluate.batch_size=0": "from 1",
    "evaluate.tolerance_mm=-1.0": ">= 0",
    "data.prepare.image_order=6": "from 0 to 5",
    "data.prepare.replace_below=(1.0,)": "(limit, value)",
    "data.prepare.label_order=2": "from 0 to 1",
    "data.prepare.spacing=(1.0,)": "or ()",
    "data.prepare.clip_percentiles=(5.0,)": "low < high",
    "data.split.folds=1": "from 2",
    "data.split.fold_seed=4294967296": "to 4294967295",
    "seed=4294967296": "to 4294967295",
    "pretrain.data.crop_size=(96.0,96)": "multiples of 16",
    "pretrain.data.crop_size=(0,96)": "multiples of 16",
}


@pytest.mark.parametrize("arm", ["", " ", "a\nb", "pcl [transductive]", "a/b", "a\\b"])
def test_an_arm_that_names_no_folder_or_another_arm_is_refused(arm):
    config = phantom()
    config.arm = arm
    with pytest.raises(UserError, match="config.arm is .*expected a name of printable"):
        check_config(config, 1)
    config.arm = "pcl, lr=0.1 (mixup)"
    check_config(config, 1)


@pytest.mark.parametrize("text", RANGES)
def test_value_out_of_range_is_named_with_the_range(text):
    config = phantom()
    override(config, [f"--config.{text}"])
    with pytest.raises(UserError) as caught:
        check_config(config, 1)
    assert str(caught.value).startswith(f"config.{text.partition('=')[0]} is ")
    assert RANGES[text] in str(caught.value)
