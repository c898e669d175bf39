"""The report: its numbers are those of the files, and any browser can show it."""

import csv
import html.parser
import itertools
import json
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from test_diagnostics import embedded
from test_tables import as_before_the_legacy_scores, write_run
from test_tfds_store import make_volume, write

from pclseg import diagnostics
from pclseg.cli import figures as figures_command
from pclseg.cli import report, table
from pclseg.data import volume
from pclseg.data.volume_file import write_volume
from pclseg.errors import UserError
from pclseg.evaluation import cases
from pclseg.files import write_json
from pclseg.reports import (
    artifacts,
    comparison,
    page,
    repeat,
    runs,
    sentences,
    sources,
    stages,
)

NAMES = ("RV", "LV")
ARMS = ("scratch", "pcl")
PATIENTS = {0: ("p1", "p2", "p3"), 1: ("p4", "p5")}
HOSTILE = "<script>alert('x')</script>$\\frac$&\""


def make_rows(patients, rng):
    for patient, (number, name) in itertools.product(patients, enumerate(NAMES, 1)):
        dice, distance = rng.uniform(0.2, 0.9), rng.uniform(1, 9)
        yield {
            "case": f"{patient}_1",
            "patient": patient,
            "frame": "1",
            "class": number,
            "class_name": name,
            "dice": dice,
            "hd95_mm": distance,
            "asd_mm": distance / 3,
            "nsd": dice / 2,
            "predicted_voxels": 5,
            "labelled_voxels": 5,
            "dice_legacy": dice,
            "asd_legacy_voxel": distance / 4,
        }


def make_run(folder, *, arm, labelled=2, fold=0, seed=0, rename=str, name="acdc"):
    """A finished run as a training leaves it, without checkpoints and predictions."""
    rng = np.random.default_rng([len(arm), labelled, fold, seed])
    scores = runs.Run(
        arm=arm,
        labelled=labelled,
        labelled_patients=[f"t{number}" for number in range(labelled)],
        fold=fold,
        seed=seed,
        rows=[
            row | {key: rename(row[key]) for key in ("case", "patient", "class_name")}
            for row in make_rows(PATIENTS[fold], rng)
        ],
    )
    write_run(folder, scores)
    pretrained = arm != "scratch"
    config = json.loads((folder / "config.json").read_text())
    config["stages"] = ["pretrain"] * pretrained + ["finetune"]
    config["data"]["name"] = name
    config["finetune"] |= {
        "init_from": "pretrain" * pretrained,
        "data": {"subset": "labelled"},
        "lr": 0.1,
    }
    if pretrained:
        config["pretrain"] = {
            "data": {"subset": "train"},
            "init_from": "",
            "method": {"name": arm},
        }
        (folder / "pretrain").mkdir()
        write_json(
            folder / "pretrain" / "diagnostics.json", diagnostics.summary(embedded())
        )
    write_json(folder / "config.json", config)
    for stage in config["stages"]:
        (folder / stage).mkdir(exist_ok=True)
        lines = [f"{step},{1 / step},{0.1 / step}" for step in range(1, 9)]
        text = "\n".join(["step,loss,learning_rate", *lines, ""])
        (folder / stage / "metrics.csv").write_text(text)
    (folder / "finetune" / "validation.csv").write_text("step,dice_pooled\n4,0.3\n")
    write_json(
        folder / "dataset.json",
        {"fingerprint": "0123abcd", "store": str(folder / "gone")},
    )
    start = {
        "command": ["main.py", f"--workdir={folder}", "--config=a b.py"],
        "commit": "0123456789ab",
        "pclseg": "0.1.0",
        "python": "3.11.7",
        "platform": "Linux",
        "packages": {"jax": "0.10.2", "tensorflow-datasets": None},
    }
    write_json(folder / "run.json", [start, start])
    return folder


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    cells = itertools.product(ARMS, (2, 6), PATIENTS, (0, 1))
    return {
        cell: make_run(
            folder / "_".join(map(str, cell)),
            arm=cell[0],
            labelled=cell[1],
            fold=cell[2],
            seed=cell[3],
        )
        for cell in cells
    }


@pytest.fixture(scope="module")
def written(workdirs, tmp_path_factory):
    """The page of all runs."""
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    arguments = [*map(str, workdirs.values()), f"--out={out}"]
    assert report.main(arguments) == 0
    return out.read_text()


class Page(html.parser.HTMLParser):
    """Tables {caption: [{column: cell}]}, all tags, text outside of style and script.

    A parser that knows no error; `unclosed` is what it was left with.
    """

    EMPTY = {"meta", "img"}

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.text, self.scripts = {}, [], "", []
        self.open, self.caption, self.rows = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "caption":
            self.caption, self.rows = "", []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            columns, *rows = self.rows
            self.tables[self.caption] = [
                dict(zip(columns, row, strict=True)) for row in rows
            ]

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data
        if "caption" in self.open:
            self.caption += data
        elif self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data

    def table(self, start):
        (name,) = [name for name in self.tables if name.startswith(start)]
        return self.tables[name]


@pytest.fixture(scope="module")
def parsed(written):
    return Page(written)


def scores(workdir, column, name):
    """{case: score}: of one class, or the mean over the classes."""
    cases = {}
    with open(workdir / "cases.csv", newline="") as file:
        for row in csv.DictReader(file):
            if name in (None, row["class_name"]):
                cases.setdefault(row["case"], []).append(float(row[column]))
    return {case: statistics.fmean(values) for case, values in cases.items()}


@pytest.mark.parametrize(
    ("title", "column", "decimals"),
    [("Dice per case", "dice", 3), ("HD95", "hd95_mm", 2), ("NSD at 2 mm", "nsd", 3)],
)
def test_tables_show_the_means_of_cases_csv(workdirs, parsed, title, column, decimals):
    for arm, labelled in itertools.product(ARMS, (2, 6)):
        lines = parsed.table(title)
        (line,) = [r for r in lines if (r["M"], r["arm"]) == (str(labelled), arm)]
        for name, cell in [("RV", "RV"), ("LV", "LV"), (None, "mean")]:
            folds = [
                statistics.fmean(
                    statistics.fmean(
                        scores(
                            workdirs[arm, labelled, fold, seed], column, name
                        ).values()
                    )
                    for seed in (0, 1)
                )
                for fold in PATIENTS
            ]
            mean, sd = statistics.fmean(folds), statistics.stdev(folds)
            assert line[cell] == f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def test_differences_and_sentences_show_the_paired_means_of_cases_csv(workdirs, parsed):
    for labelled in (2, 6):
        cases = {}
        for arm, fold, seed in itertools.product(ARMS, PATIENTS, (0, 1)):
            found = scores(workdirs[arm, labelled, fold, seed], "dice", None)
            for case, value in found.items():
                cases.setdefault(case, {}).setdefault(arm, []).append(value)
        differences = [
            statistics.fmean(c["pcl"]) - statistics.fmean(c["scratch"])
            for c in cases.values()
        ]
        mean = f"{statistics.fmean(differences):+.3f}"
        lines = parsed.table("Differences to scratch: Dice")
        (line,) = [line for line in lines if line["M"] == str(labelled)]
        better = str(sum(d > 0 for d in differences))
        assert (line["mean"], line["better"]) == (mean, better)
        assert f"the difference is {mean} (95% interval " in parsed.text
        assert f"5 cases of 5 patients: {better} better" in parsed.text


def test_the_page_holds_all_numbers_for_machines(workdirs, parsed):
    read = [runs.read_run(workdir) for workdir in workdirs.values()]
    (found,) = map(json.loads, parsed.scripts)
    learned = found.pop("diagnostics")
    assert found == json.loads(json.dumps(comparison.numbers(read, baseline=None)))
    assert [(each["arm"], each["run"]) for each in learned] == [
        ("pcl", "pcl, M = 2, fold 0, seed 0")
    ]
    expected = diagnostics.summary(embedded())["measures"]
    assert learned[0]["after"] == expected["after"]


def test_small_numbers_are_warned_of(parsed):
    assert "no difference, however large, reaches 0.05" in parsed.text


def test_nothing_is_fetched_and_no_script_runs(written, parsed):
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
        if tag == "script":
            assert attributes["type"] == "application/json"
    assert "url(" not in written and "@import" not in written
    assert "default-src 'none'" in written


def test_the_page_is_whole_and_named_for_who_cannot_see_it(parsed):
    assert parsed.open == []
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("h1") == tags.count("main") == tags.count("title") == 1
    assert dict(parsed.tags)["html"]["lang"] == "en"
    pictures = [attributes for tag, attributes in parsed.tags if tag == "img"]
    # label efficiency; pretrain 2, finetune 3 for M of 2 and 6; similarity and two maps
    assert len(pictures) == 1 + 2 + 2 * 3 + 3
    assert all(len(picture["alt"]) > 40 for picture in pictures)
    anchors = {attributes.get("id") for _, attributes in parsed.tags}
    for tag, attributes in parsed.tags:
        assert tag != "a" or attributes["href"][1:] in anchors


def test_the_page_says_how_to_repeat_the_runs(workdirs, parsed):
    for (arm, labelled, fold, seed), workdir in workdirs.items():
        assert (
            f"# {arm}, M = {labelled}, fold {fold}, seed {seed}\n"
            f"python -m pclseg.main --workdir={workdir} '--config=a b.py'\n"
        ) in parsed.text + "\n"
    (versions,) = parsed.table("Versions")
    assert versions["packages"] == "jax 0.10.2" and versions["runs"] == "16"
    (data,) = parsed.table("Data")
    assert data["fingerprint"] == "0123abcd"
    drawn = parsed.table("Labelled patients of every fold")
    assert [(line["M"], line["fold"]) for line in drawn] == [
        *(("2", "0"), ("2", "1"), ("6", "0"), ("6", "1"))
    ]
    assert drawn[0]["labelled patients"] == "t0, t1"
    different = parsed.table("Settings in which the arms differ")
    assert [line["config"] for line in different] == ["stages", "finetune.init_from"]


def test_prepared_volumes_that_are_gone_are_told(parsed):
    assert "No case is shown: there is no folder" in parsed.text


def test_equal_runs_give_equal_bytes(workdirs, tmp_path):
    chosen = [workdirs["scratch", 2, 0, 0], workdirs["pcl", 2, 0, 0]]
    first, second = (page.make_page(chosen, baseline="pcl") for _ in range(2))
    assert first == second
    assert "<h1>scratch against pcl: acdc</h1>" in first


def test_names_from_outside_are_text(tmp_path):
    def rename(text):
        return f"{text} {HOSTILE}"

    folder = tmp_path / "<b>&"
    arms = ("scratch", rename("pcl"))
    made = [make_run(folder / f"{n}", arm=a, rename=rename) for n, a in enumerate(arms)]
    text = page.make_page(made, baseline=None)
    found = Page(text)
    assert found.open == []
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert "b" not in {tag for tag, _ in found.tags}
    assert "<script>alert" not in text
    assert f"pcl {HOSTILE} against scratch" in found.text
    assert any(rename("RV") in line for line in found.table("Dice per case"))
    assert json.loads(found.scripts[0])["arms"][1] == rename("pcl")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a, b: (a / "config.json").unlink(), "is no run directory"),
        (
            lambda a, b: (a / "summary.json").unlink(),
            "is not finished: it has no summary.json; start its command again",
        ),
        (lambda a, b: (a / "cases.csv").unlink(), "it has no cases.csv"),
        (
            lambda a, b: change(a, lambda c: c["data"].update(name="other")),
            "compare runs of one data set",
        ),
        (
            lambda a, b: change(a, lambda c: c["evaluate"].update(tolerance_mm=3.0)),
            "NSD tolerances of 2.0 and 3.0 mm",
        ),
        (lambda a, b: change(a, lambda c: c.update(arm="b")), "two runs are arm 'b'"),
    ],
    ids=["no run", "unfinished", "no cases", "dataset", "tolerance", "twice"],
)
def test_runs_that_cannot_be_reported_are_named_in_one_line(
    tmp_path, capsys, spoil, message
):
    a, b = (make_run(tmp_path / name, arm=name) for name in "ab")
    spoil(a, b)
    out = tmp_path / "report.html"
    out.write_text("old")
    assert report.main([str(a), str(b), f"--out={out}"]) == 1
    _, error = capsys.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "[]", "lacks 'arm'"),
        ("config.json", None, "config.json has arm = '5'"),
        ("summary.json", '{"labelled_patients": null}', "labelled_patients = 'None'"),
        ("summary.json", '{"labelled_patients": [[]]}', "labelled_patients = '[[]]'"),
        (
            "summary.json",
            '{"labelled_patients": [], "dice_pooled_best": 5}',
            "is broken (TypeError",
        ),
        ("run.json", "null", "run.json lacks 'command'"),
        ("run.json", "[{}]", "run.json lacks 'command'"),
        ("run.json", '[{"command": []}]', "run.json has command = '[]'"),
        ("dataset.json", "{}", "dataset.json lacks 'fingerprint'"),
        (
            "dataset.json",
            '{"fingerprint": "c", "earlier_fingerprints": 5}',
            "dataset.json has earlier_fingerprints = '5'",
        ),
        ("cases.csv", "x" * 200_000, "cases.csv holds a broken row"),
        ("finetune/metrics.csv", "x" * 200_000, "metrics.csv is broken"),
        ("finetune/metrics.csv", "step,loss\nx,1\n", "metrics.csv is broken"),
        ("finetune/metrics.csv", "step,loss\n1,x\n", "metrics.csv is broken"),
    ],
)
def test_a_broken_file_of_a_run_is_named_in_one_line(
    tmp_path, capsys, file, text, message
):
    run = make_run(tmp_path / "run", arm="scratch")
    if text is None:
        change(run, lambda config: config.update(arm=5))
    else:
        (run / file).write_text(text)
    assert report.main([str(run), f"--out={tmp_path / 'report.html'}"]) == 1
    _, error = capsys.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error and Path(file).name in error


def change(workdir, edit):
    config = json.loads((workdir / "config.json").read_text())
    edit(config)
    write_json(workdir / "config.json", config)


def test_no_run_is_told():
    with pytest.raises(UserError, match="no run to report"):
        page.make_page([], baseline=None)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "is a folder; name a file"),
        ("file/report.html", "cannot be written"),
        (300 * "x", "cannot be written: File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch, out, message):
    (tmp_path / "file").touch()
    monkeypatch.setattr(page, "make_page", lambda *_, **__: "page")
    with pytest.raises(UserError, match=message):
        page.write_page(tmp_path / out, [tmp_path], baseline=None)


def test_a_page_too_large_to_send_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "make_page", lambda *_, **__: "x" * 20_000_001)
    with pytest.raises(UserError, match="20 MB, more than 20; give it fewer arms"):
        page.write_page(tmp_path / "report.html", [tmp_path], baseline=None)
    assert not list(tmp_path.iterdir())


def test_an_old_page_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "make_page", lambda *_, **__: "new")
    (tmp_path / "report.html").write_text("old")
    page.write_page(tmp_path / "report.html", [tmp_path], baseline=None)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_a_name_that_is_no_text_does_not_stop_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "make_page", lambda *_, **__: "--workdir=\udcff")
    page.write_page(tmp_path / "report.html", [tmp_path], baseline=None)
    assert (tmp_path / "report.html").read_text() == "--workdir=?"


def test_runs_of_an_earlier_version_are_reported_beside_new_ones(tmp_path):
    old = as_before_the_legacy_scores(make_run(tmp_path / "old", arm="scratch"))
    page.write_page(tmp_path / "old.html", [old], baseline=None)
    assert "SSL4MIS" not in (tmp_path / "old.html").read_text()
    new = make_run(tmp_path / "new", arm="pcl")
    page.write_page(tmp_path / "both.html", [old, new], baseline=None)
    assert "As the authors of SSL4MIS" in (tmp_path / "both.html").read_text()


def test_cases_are_shown_with_the_prediction_in_the_run(tmp_path):
    import nibabel as nib

    volumes = [make_volume(row) for row in range(2)]
    store = write(tmp_path / "store", volumes)
    workdir = make_run(tmp_path / "run", arm="pcl")
    write_json(workdir / "dataset.json", {"store": str(store)})
    rows = cases.read_cases(workdir / "cases.csv")
    of_one = [row for row in rows if row["case"] == rows[0]["case"]]
    renamed = [row | {"case": "case_1"} for row in of_one]
    cases.write_cases(workdir / "cases.csv", renamed)
    info = volumes[1].info
    image = tmp_path / "image.nii.gz"
    nib.save(
        nib.Nifti1Image(
            np.zeros(info.geometry.file_shape, "u1"), np.array(info.geometry.affine)
        ),
        image,
    )
    native = volume.restore_label(
        volumes[1].label, info.geometry, label_values=(0, 2, 5)
    )
    write_volume(workdir / "predictions" / "case_1.nii.gz", native, like=image)
    shown, class_names = artifacts.cases_to_show(workdir)
    assert [case.role for case in shown] == ["worst", "median", "best"]
    assert class_names == ("class 0", "class 2", "class 5")
    np.testing.assert_array_equal(shown[0].image, volumes[1].image[..., 0])
    np.testing.assert_array_equal(shown[0].label, volumes[1].label)
    np.testing.assert_array_equal(shown[0].prediction, volumes[1].label)


@pytest.mark.parametrize(
    ("interval", "p", "verdict"),
    [
        ([0.02, 0.2], 0.01, "more than chance"),
        ([-0.2, -0.02], 0.05, "more than chance"),
        ([-0.02, 0.2], 0.01, "Chance among patients may"),
        ([0.02, 0.2], 0.06, "does not contain 0, but the test gives p > 0.05: not set"),
        (None, 1.0, "Nothing can be said"),
    ],
)
def test_a_sentence_claims_no_more_than_interval_and_test(interval, p, verdict):
    numbers = {
        "baseline": "scratch",
        "bootstrap": {"level": 0.95},
        "metrics": {
            "dice": {
                "groups": [
                    {"arm": arm, "labelled": 1, "overall": {"mean": mean}}
                    for arm, mean in [("scratch", 0.5), ("pcl", 0.6)]
                ],
                "differences": [
                    {
                        "arm": "pcl",
                        "labelled": 1,
                        "overall": {
                            **{"mean": 0.1, "interval": interval, "p_holm": p},
                            **{"n": 8, "patients": 4, "better": 3, "worse": 1},
                        },
                    }
                ],
            }
        },
    }
    (sentence,) = sentences.comparisons(numbers)
    assert sentence.startswith(
        "With 1 labelled patient, pcl reaches a Dice of 0.600 and scratch 0.500; over"
        " the same cases the difference is +0.100 ("
    )
    assert "8 cases of 4 patients: 3 better, 1 worse" in sentence
    assert verdict in sentence


def test_arms_are_compared_in_the_stages_that_they_have(tmp_path):
    arms = ("scratch", "pcl", "gcl")
    made = {arm: make_run(tmp_path / arm, arm=arm) for arm in arms}
    change(made["gcl"], lambda config: config["pretrain"]["method"].update(parts=4))
    read = {arm: sources.read_source(path) for arm, path in made.items()}
    assert repeat.config_differences(read).rows == (
        ("stages", '["finetune"]', *['["pretrain", "finetune"]'] * 2),
        ("finetune.init_from", '""', '"pretrain"', '"pretrain"'),
        ("pretrain.method.name", "", '"pcl"', '"gcl"'),
        ("pretrain.method.parts", "", "", "4"),
    )


def make_grid(out, arms=("scratch", "pcl"), counts=(2, 6)):
    """{(arm, labelled): run} of a grid; all but the first arm share a pre-training."""
    made = {}
    for arm, labelled in itertools.product(arms, counts):
        folder = make_run(
            out / "runs" / f"{arm}_{labelled}", arm=arm, labelled=labelled
        )
        made[arm, labelled] = folder
        earlier = out / "pretrain" / "first"
        if arm != arms[0]:
            move_pretraining(folder, earlier)
            point(folder, earlier / "pretrain")
    return made


def move_pretraining(folder, earlier):
    """Makes the pre-training of a run one of a run of its own."""
    if earlier.exists():
        shutil.rmtree(folder / "pretrain")
    else:
        shutil.copytree(folder, earlier)
        for name in ("summary.json", "cases.csv"):
            (earlier / name).unlink()
        shutil.rmtree(earlier / "finetune")
        shutil.rmtree(folder / "pretrain")
        change(earlier, lambda config: config.update(stages=["pretrain"]))
        starts = json.loads((earlier / "run.json").read_text())
        command = ["main.py", f"--workdir={earlier}"]
        write_json(earlier / "run.json", [starts[0] | {"command": command}])
    change(folder, lambda config: config.update(stages=["finetune"]))


def point(folder, place):
    change(folder, lambda config: config["finetune"].update(init_from=str(place)))


def test_a_grid_is_shown_as_if_every_run_had_pretrained_itself(tmp_path):
    made = make_grid(tmp_path / "g", arms=("scratch", "pcl", "pcl_tcsm"))
    change(
        made["pcl", 2],
        lambda config: config["pretrain"]["method"].update(name="unused"),
    )
    found = Page(page.make_page(list(made.values()), baseline=None))
    headings = re.findall(r"finetune, M = \d+|pretrain of .*", found.text)
    assert "pretrain of pcl, pcl_tcsm" in headings
    rows = found.table("Embeddings of held-out slices")
    assert [row["arm"] for row in rows] == ["pcl, pcl_tcsm"] * 2
    alts = [tag["alt"] for name, tag in found.tags if name == "img"]
    shared = [alt for alt in alts if alt.startswith("loss") and "in pretrain" in alt]
    assert [alt.partition("lines: ")[2] for alt in shared] == ["pcl, pcl_tcsm."]
    (versions,) = found.table("Versions")
    assert versions["runs"] == "7"
    command = f"python -m pclseg.main --workdir={tmp_path}/g/pretrain/first"
    assert found.text.count(command) == 1
    assert "Commands of all 6 runs and of 1 that they start from" in found.text
    settings = {
        row["config"]: row for row in found.table("Settings in which the arms differ")
    }
    assert settings["stages"]["pcl"] == '["pretrain", "finetune"]'
    assert settings["finetune.init_from"]["pcl_tcsm"] == '"pretrain"'
    assert "unused" not in found.text and "moved, deleted" not in found.text


def test_stages_are_followed_through_several_runs(tmp_path):
    last, middle, first = (
        make_run(tmp_path / name, arm="pcl") for name in ("last", "middle", "first")
    )
    change(last, lambda config: config.update(stages=["finetune"]))
    change(middle, lambda config: config.update(stages=["local"]))
    local = {"data": {"subset": "train"}, "init_from": str(first / "pretrain")}
    change(middle, lambda config: config.update(local=local))
    point(last, middle / "local")
    found = stages.stages_of(last)
    assert {name: stage.folder for name, stage in found.items()} == {
        "pretrain": first / "pretrain",
        "local": middle / "local",
        "finetune": last / "finetune",
    }
    starts = [stage.config and stage.config["init_from"] for stage in found.values()]
    assert starts == ["", "pretrain", "local"]


def test_a_stage_called_as_a_later_one_keeps_apart(tmp_path):
    first, last = (make_run(tmp_path / name, arm="pcl") for name in ("first", "last"))
    change(
        last,
        lambda config: config["pretrain"].update(init_from=str(first / "pretrain")),
    )
    found = stages.stages_of(last)
    assert list(found) == ["earlier pretrain", "pretrain", "finetune"]
    assert found["earlier pretrain"].folder == first / "pretrain"
    assert found["finetune"].source == last / "pretrain"
    change(
        first,
        lambda config: config["pretrain"].update(init_from=str(last / "pretrain")),
    )
    assert len(stages.stages_of(last)) == 3  # and does not run in circles


def test_a_study_that_was_moved_is_found_from_its_runs(tmp_path, monkeypatch):
    made = make_grid(tmp_path / "moved")
    run = made["pcl", 2]
    starts = json.loads((run / "run.json").read_text())
    for words in (["--workdir=old/runs/pcl_2"], ["--workdir", "old/runs/pcl_2"]):
        write_json(run / "run.json", [starts[0] | {"command": ["main.py", *words]}])
        point(run, "old/pretrain/first/pretrain")
        place = stages.stages_of(run)["pretrain"].folder
        assert place == tmp_path / "moved" / "pretrain" / "first" / "pretrain"
    (run / "run.json").unlink()  # now only from the folder of the command
    assert stages.stages_of(run)["pretrain"].config is None
    (tmp_path / "moved").rename(tmp_path / "old")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "old" / "runs" / "pcl_2"
    assert stages.stages_of(run)["pretrain"].config is not None


@pytest.mark.parametrize("imported", [True, False])
def test_what_is_gone_is_told_in_one_line(tmp_path, imported):
    made = make_grid(tmp_path)
    shutil.rmtree(tmp_path / "pretrain" / "first")
    place = tmp_path / "pretrain" / "first" / "pretrain"
    if imported:
        place.mkdir(parents=True)
        write_json(place / "import.json", {})
    found = Page(page.make_page(list(made.values()), baseline=None))
    line = f"What pcl started from is in no run directory ({place}: moved, deleted,"
    assert line in found.text
    assert "What pre-training learned" not in found.text
    assert "finetune, M = 2" in found.text


def test_data_of_an_earlier_run_that_is_other_data_is_a_setting(tmp_path):
    made = make_grid(tmp_path, counts=(2,))
    earlier = tmp_path / "pretrain" / "first"
    change(earlier, lambda config: config["data"].update(name="chd"))
    read = sources.read_source(made["pcl", 2])
    assert sources.flat(read.config)["pretrain.earlier.data.name"] == "chd"
    (record,) = sources.earlier_runs([read])
    assert record.dataset == "chd"
    assert not list(repeat.notes([read], [record]))


def test_figures_of_a_shared_pretraining_are_drawn_once(tmp_path, monkeypatch):
    made = list(make_grid(tmp_path / "g", arms=("scratch", "pcl", "pcl_tcsm")).values())
    drawn = {}
    monkeypatch.setattr(
        figures_command.figures,
        "training_curves",
        lambda path, files, **_: drawn.update({path.name: files}),
    )
    figures_command.draw_curves(made, tmp_path / "out")
    pretrain = drawn["pretrain_metrics.png"]
    assert {name: len(files) for name, files in pretrain.items()} == {
        "pcl, pcl_tcsm": 1,
        "pcl_tcsm": 0,
    }
    assert set(drawn["finetune_metrics.png"]) == {
        f"{arm}, M = {count}"
        for arm in ("scratch", "pcl", "pcl_tcsm")
        for count in (2, 6)
    }
    (path,) = figures_command.diagnostics_files(made)
    assert list(figures_command.draw_embeddings(path, tmp_path)) == ["first_pretrain"]


def test_a_pretraining_and_a_grid_are_told_what_to_give_instead(tmp_path, capsys):
    made = make_grid(tmp_path)
    write_json(tmp_path / "manifest.json", {})
    wanted = {
        tmp_path / "pretrain" / "first": "is a pre-training and has no scores; give the"
        " runs that start from it",
        tmp_path
        / "pretrain": f"part of a grid; give the runs of the grid, {tmp_path}/",
        tmp_path: "part of a grid",
        tmp_path / "manifest.json": "part of a grid",
    }
    for given, message in wanted.items():
        for command in (report, table):
            assert command.main([str(made["pcl", 2]), str(given)]) == 1
            _, error = capsys.readouterr()
            assert error.count("\n") == 1 and message in error


def comparison_of(means, labelled):
    """Differences of arms: {arm: (mean, Holm p)}."""
    return [
        {
            "arm": arm,
            "labelled": labelled,
            "overall": {
                **{"mean": mean, "p_holm": p, "n": 8, "patients": 8},
                **{"interval": [mean - 0.01, mean + 0.01], "better": 6, "worse": 2},
            },
        }
        for arm, (mean, p) in means.items()
    ]


def test_a_summary_names_the_best_arm_and_those_that_differ():
    means = {"a": (0.1, 0.01), "b": (0.2, 0.001), "c": (-0.3, 0.01), "d": (0.15, 0.2)}
    differences = [*comparison_of(means, 2), *comparison_of({"a": (0.1, 0.01)}, 0)]
    groups = [
        {"arm": arm, "labelled": labelled, "overall": {"mean": 0.5}}
        for arm, labelled in itertools.product(["scratch", *means], (2, 0))
    ]
    numbers = {
        "baseline": "scratch",
        "bootstrap": {"level": 0.95},
        "metrics": {"dice": {"groups": groups, "differences": differences}},
    }
    few, every = sentences.summaries(numbers)
    assert few.startswith("With 2 labelled patients, b reaches")
    assert "Of the differences of 4 arms to scratch it is the highest." in few
    assert few.endswith("2 are better (a, b) and 1 is worse (c).")
    assert every == sentences.comparisons(numbers)[-1]  # one arm: nothing to sum up


def test_many_comparisons_are_summed_up_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_SENTENCES", 1)
    monkeypatch.setattr(page.blocks, "curves", lambda *_: [])
    monkeypatch.setattr(page.blocks, "learned_blocks", lambda *_: [])
    made = [make_run(tmp_path / a, arm=a) for a in ("scratch", "b", "c")]
    found = Page(page.make_page(made, baseline=None))
    assert "All 2 comparisons" in found.text
    (summed,) = re.findall("Of the differences of 2 arms to scratch", found.text)
    assert found.text.count("over the same cases the difference is") == 3
    assert ("details", {"class": "printed"}) in found.tags


def test_data_that_changed_within_a_run_are_noted(tmp_path):
    run = make_run(tmp_path / "run", arm="pcl")
    found = {"fingerprint": "c", "earlier_fingerprints": ["a", "b"]}
    write_json(run / "dataset.json", found)
    records = [sources.read_source(run)]
    assert [row[1:] for row in repeat.data(records).rows] == [
        ("c, earlier b, earlier a", "1")
    ]
    assert "several fingerprints" in " ".join(repeat.notes(records, []))


def test_settings_of_an_arm_that_vary_and_commits_are_noted(tmp_path):
    made = [make_run(tmp_path / f"{fold}", arm="pcl", fold=fold) for fold in (0, 1)]
    change(made[0], lambda config: config["finetune"].update(lr=0.2))
    starts = json.loads((made[0] / "run.json").read_text())
    write_json(made[0] / "run.json", [starts[0] | {"commit": "abc-dirty"}])
    write_json(made[0] / "dataset.json", {"fingerprint": "other"})
    notes = " ".join(repeat.notes([sources.read_source(path) for path in made], []))
    assert "The runs of pcl differ in finetune.lr." in notes
    assert "several commits: 0123456789ab, abc-dirty" in notes
    assert "(-dirty)" in notes and "several fingerprints" in notes
