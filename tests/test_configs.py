"""Every config file, dry-run against volumes under the names that real ones have."""

import re

import pytest
from tiny_nifti import (
    ROOT,
    acdc_tree,
    call_main,
    chd_tree,
    contents,
    hippocampus_tree,
    hvsmr_tree,
    mmwhs_tree,
    nifti_tree,
    stage_folder,
)

from pclseg import building
from pclseg.config import load_config, override

FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
TREES = {
    "acdc": acdc_tree,
    "chd": chd_tree,
    "hippocampus": hippocampus_tree,
    "hvsmr": hvsmr_tree,
    "mmwhs": mmwhs_tree,
    "nifti": nifti_tree,
}
# A config that starts from another dataset's encoder, and where that comes from.
SOURCES = {"chd_to_mmwhs": "pcl_chd", "acdc_to_hvsmr": "pcl_acdc"}
# Parameters from the authors' modules, by width, and by width and number of classes.
PRETRAIN = {48: 11_586_704, 32: 5_238_880}
FINETUNE = {
    (48, 4): 17_462_016,
    (48, 3): 17_461_968,
    (32, 8): 7_763_584,
    (32, 4): 7_763_456,
}
# What the first stage of an arm trains, where it is not the arm's own method.
FIRST = {
    "pcl_tcsm": "pcl",
    "ssl4mis_pcl": "pcl",
    "gcl_local": "gcl_proper",
    "action": "action_global",
    "action_pp": "action_local",
    "pcl_action_pp": "pcl",
    "mona": "action_local",
    "arco": "action_local",
    "arco_code": "action_local",
    "arco_paper": "action_local",
    "pcl_arco": "pcl",
}
# Arms with a stage in the middle, and its method.
MIDDLE = {
    "gcl_local": "gcl_local",
    "action": "action_local",
    "pcl_action_pp": "action_local",
    "pcl_arco": "action_local",
}
# Arms without pre-training, and their method.
SCRATCH = {
    "scratch": "supervised",
    "ssl4mis_scratch": "supervised",
    "ssl4mis_mean_teacher": "mean_teacher",
    "mixup": "mixup",
    "mean_teacher": "mean_teacher",
    "tcsm": "tcsm",
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A folder with one small tree of every dataset that has files."""
    root = tmp_path_factory.mktemp("trees")
    for name, write in TREES.items():
        write(root / name)
    for source in SOURCES.values():
        finished_pretraining(source, root)
    return root


def finished_pretraining(name, root):
    """`name`/pretrain below `root`: as training of the config leaves it, but zeros."""
    config = load_config(f"{ROOT}/configs/{name}.py")
    raw_dir = root / name.partition("_")[2]
    smaller = ["--config.data.pipeline=numpy", "--config.pretrain.data.batch_size=2"]
    override(config, [f"--config.data.raw_dir={raw_dir}", *smaller])
    outline = building.outline(config)
    folder = root / name / "pretrain"
    stage_folder(folder, outline.stages["pretrain"], patients=outline.split.train)


@pytest.fixture
def dry_run(trees, capsys, finished):
    """(name, *more, arg) -> (text of each stage, first three lines) of a dry run."""

    def run(name, *more, arg=""):
        if (name, more, arg) not in finished:
            finished[name, more, arg] = _dry_run(capsys, trees, name, more, arg)
        return finished[name, more, arg]

    return run


@pytest.fixture(scope="module")
def finished():
    """Dry runs that more than one test looks at."""
    return {}


def _dry_run(capsys, trees, name, more, arg):
    data = name.split("_")[-1]
    if name in SOURCES:
        arg = f"source={trees / SOURCES[name] / 'pretrain'}"
    args = [f"--config={ROOT}/configs/{name}.py:{arg}", "--dry_run", "--devices=1"]
    args.append("--config.data.pipeline=numpy")
    if data == "phantom":
        args.append("--config.data.options.volumes=8")
    else:
        args.append(f"--config.data.raw_dir={trees / data}")
    if has_pretraining(name):  # fewer slices here than in a batch of the paper
        args.append("--config.pretrain.data.batch_size=16")
    before = contents(trees)
    code, text = call_main(capsys, *args, *more)
    assert code == 0, text
    assert contents(trees) == before
    lines = text.splitlines()
    assert lines[-1] == "dry run: nothing was written."
    stages = {}
    for line in lines[3:-1]:
        if not line.startswith(" "):
            stages[line.partition(":")[0]] = []
        list(stages.values())[-1].append(line)
    return {stage: "\n".join(found) for stage, found in stages.items()}, lines[:3]


def has_pretraining(name):
    return name not in SOURCES and name.rpartition("_")[0] not in SCRATCH


SIZES = {"acdc": ("size=paper", "size=cpu"), "nifti": ("size=gpu", "size=cpu")}
RUNS = [(name, arg) for name in FILES for arg in SIZES.get(name.split("_")[-1], [""])]


@pytest.mark.parametrize(("name", "arg"), RUNS)
def test_dry_run_tells_all_of_a_run_and_writes_nothing(
    name, arg, dry_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where relative folders would appear
    data = name.split("_")[-1]
    arg = f"classes=3,{arg}" if data == "nifti" else arg
    stages, lines = dry_run(name, arg=arg)
    assert list(tmp_path.iterdir()) == []
    assert lines[0].startswith("dataset ")
    assert lines[1].startswith("slices along axis ")
    assert lines[2].startswith("split: fold 0; ")
    arm = name.rpartition("_")[0]
    first = ["pretrain"] if has_pretraining(name) else []
    if arm in MIDDLE:
        first = ["pretrain", "local"]
    assert list(stages) == [*first, "finetune"]
    for text in stages.values():
        for fact in (
            r"\d+ slices of \d+ volumes",
            r" steps an epoch, [1-9]\d* steps",
            r"parameters [\d,]+; state [\d.]+ MiB",
            r"activations kept for the gradient [\d.]+ MiB a device",
            r"batch\['image'\] float32 \[\d+, \d+, \d+, 1\]",
        ):
            assert re.search(fact, text), text
    assert "batch['label'] int32" in stages["finetune"]
    if arm in SCRATCH:
        assert f"method {SCRATCH[arm]}," in stages["finetune"]
    if has_pretraining(name):
        assert f"method {FIRST.get(arm, arm)}," in stages["pretrain"]
    assert "the same number" not in "".join(stages.values())
    if arm in MIDDLE:
        assert f"method {MIDDLE[arm]}," in stages["local"]
    if "arco" in arm or arm == "mona":
        assert "method mona," in stages["finetune"]
    if "action" in arm:
        method = arm.removeprefix("pcl_")
        assert f"method {method}," in stages["finetune"]
    if arm in ("pcl", "gcl", "simclr", "gcl_proper", "gcl_local"):
        positives = re.search(r"per anchor: mean ([\d.]+), least", stages["pretrain"])
        assert float(positives[1]) >= 1  # the other view of the same slice


@pytest.mark.parametrize("warmup", [4, 5])
def test_steps_that_do_not_go_together_are_told(warmup, dry_run):
    few = [f"--config.{stage}.train.steps=9" for stage in ("pretrain", "finetune")]
    slow = f"--config.pretrain.optimizer.warmup_steps={warmup}"
    mona, _ = dry_run("mona_phantom", *few, slow)
    falls = "finetune: method.entropy_steps is 1000, but there are 9 steps: it is meant"
    assert falls in mona["finetune"]
    rises = "pretrain: optimizer.warmup_steps is 5, but there are 9 steps: the learning"
    assert (rises in mona["pretrain"]) == (warmup == 5)
    assert "temperature_period" not in mona["pretrain"]  # its temperatures stay
    if warmup == 4:
        tcsm, _ = dry_run("tcsm_phantom", "--config.finetune.train.steps=9")
        rises = "finetune: method.ramp_steps is 525, but there are 9 steps: the consist"
        assert rises in tcsm["finetune"]
        action_pp, _ = dry_run("action_pp_phantom", *few)
        for stage, period in (("pretrain", 300), ("finetune", 1000)):
            moves = f"{stage}: method.temperature_period is {period}, but there are 9"
            assert moves in action_pp[stage]


def count(text):
    return int(re.search(r"parameters ([\d,]+);", text)[1].replace(",", ""))


def test_networks_of_the_paper_have_its_number_of_parameters(dry_run):
    stages, _ = dry_run("pcl_acdc", arg="size=paper")
    assert count(stages["pretrain"]) == PRETRAIN[48]
    assert count(stages["finetune"]) == FINETUNE[48, 4]
    assert "batch 16 slices of 352x352" in stages["pretrain"]
    assert "batch 10 slices of 352x352" in stages["finetune"]
    stages, _ = dry_run("pcl_chd")
    assert count(stages["pretrain"]) == PRETRAIN[32]
    assert count(stages["finetune"]) == FINETUNE[32, 8]
    assert "batch 16 slices of 512x512" in stages["pretrain"]
    assert "batch 10 slices of 512x512" in stages["finetune"]


@pytest.mark.parametrize(
    ("name", "patch", "size", "patients"),
    [
        (
            "chd_to_mmwhs",
            "256x256",
            (32, 8),
            "16 training patients, 2 of them labelled (mmwhs1019, mmwhs1002);",
        ),
        (
            "acdc_to_hvsmr",
            "352x352",
            (48, 3),
            "8 training patients, 2 of them labelled (hvsmr9, hvsmr1);",
        ),
    ],
)
def test_an_encoder_of_another_dataset_fits(name, patch, size, patients, dry_run):
    stages, lines = dry_run(name)
    assert count(stages["finetune"]) == FINETUNE[size]
    assert f"batch 10 slices of {patch}" in stages["finetune"]
    assert patients in lines[2]
    scratch, same_lines = dry_run(f"scratch_{name.split('_')[-1]}")
    assert (scratch, same_lines) == (stages, lines)


def test_without_the_source_the_folder_that_is_missing_is_named(trees, capsys):
    code, text = call_main(
        capsys,
        f"--config={ROOT}/configs/chd_to_mmwhs.py:source=runs/none/pretrain",
        "--dry_run",
        f"--config.data.raw_dir={trees / 'mmwhs'}",
    )
    assert code == 1
    assert "config.finetune.init_from is 'runs/none/pretrain'" in text


def test_networks_for_own_volumes_have_the_authors_width_for_ct(dry_run, trees):
    root = trees / "four_classes"
    acdc_tree(root, patients=6)  # as plain files: pairs of x and x_gt
    images = "training/*/patient*_frame[0-9][0-9].nii.gz"
    arg = (
        f"classes=4,images={images},labels=training/*/*_gt.nii.gz,patient=(patient...)"
    )
    stages, lines = dry_run("pcl_nifti", f"--config.data.raw_dir={root}", arg=arg)
    assert count(stages["pretrain"]) == PRETRAIN[32]
    assert count(stages["finetune"]) == FINETUNE[32, 4]
    assert "12 volumes, 12 labelled" in lines[0]
    assert "4 training patients, 2 of them labelled" in lines[2]


def test_frames_of_a_series_take_the_place_of_the_labelled_two(dry_run):
    stages, lines = dry_run("pcl_acdc", arg="size=cpu")
    # 12 patients, two frames each; patient002 has three more in its 4-D file
    assert "27 volumes, 24 labelled" in lines[0]
    assert "9 training patients, 2 of them labelled" in lines[2]
    assert "3 validation" in lines[2]
    # 9 x 2 frames, or, with patient002 among them, 8 x 2 + 3
    assert re.search(r"(162 slices of 18|171 slices of 19) volumes", stages["pretrain"])
    assert "36 slices of 4 volumes" in stages["finetune"]


@pytest.mark.parametrize(
    ("labelled", "rate"), [(1, 1e-3), (2, 1e-3), (6, 5e-4), (0, 5e-4)]
)
def test_rate_of_few_labels_is_not_that_of_all_patients(labelled, rate):
    """Of 1e-3 and 5e-4; labelled=0 is all patients of the fold."""
    for arm in ("pcl", "scratch"):  # the same for all initialisations
        config = load_config(f"{ROOT}/configs/{arm}_acdc.py:labelled={labelled}")
        assert config.finetune.optimizer.peak_lr == rate


def test_hippocampus_is_sliced_along_its_length(dry_run):
    stages, lines = dry_run("pcl_hippocampus")
    assert "10 volumes, 8 labelled, classes background, label 1, label 2" in lines[0]
    # 6 of the lengths 30..37 train, 38 and 39 are unlabelled
    slices = int(re.search(r"(\d+) slices of 8 volumes", stages["pretrain"])[1])
    assert slices in range(sum(range(30, 36)) + 77, sum(range(32, 38)) + 77 + 1)


def test_arms_of_a_dataset_differ_in_the_method_only(dry_run):
    texts = {}
    for arm in ("pcl", "gcl", "simclr", "scratch"):
        stages, lines = dry_run(f"{arm}_acdc", arg="size=cpu")
        texts[arm] = stages, lines
    for arm in ("gcl", "simclr", "scratch"):
        assert texts[arm][1] == texts["pcl"][1]
        assert texts[arm][0]["finetune"] == texts["pcl"][0]["finetune"]
        if arm != "scratch":
            a, b = (texts[x][0]["pretrain"].splitlines() for x in (arm, "pcl"))
            assert a[1:4] == b[1:4]  # batch, steps, parameters, memory


def test_number_of_devices_divides_what_each_keeps(dry_run):
    one, _ = dry_run("gcl_hippocampus")
    two, _ = dry_run("gcl_hippocampus", "--devices=2")
    kept = [
        float(re.search(r"gradient ([\d.]+) MiB", text["finetune"])[1])
        for text in (one, two)
    ]
    assert "on 2 device(s)" in two["finetune"]
    assert 0.5 * kept[0] <= kept[1] < 0.7 * kept[0]  # the weights are kept by both
