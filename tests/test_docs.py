"""What the documents name exists: files, configs, keys, modules, make targets."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from tiny_nifti import acdc_tree, chd_tree, hippocampus_tree, hvsmr_tree, mmwhs_tree

from pclseg import cohort
from pclseg.__main__ import COMMANDS
from pclseg.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/*.md")]
)
# A dataset's page: its tree, where the page has it, a file that is taken out.
DATASETS = {
    "acdc": (acdc_tree, "ACDC", "training/patient002/patient002_frame08_gt"),
    "chd": (chd_tree, "CHD", "ct_1002_label"),
    "mmwhs": (mmwhs_tree, "MMWHS", "ct_train/ct_train_1002_label"),
    "hvsmr": (hvsmr_tree, "HVSMR", "Ground_truth/training_sa_crop_pat1-label"),
    "hippocampus": (
        hippocampus_tree,
        "Task04_Hippocampus",
        "imagesTr/hippocampus_002",
    ),
}


def commands():
    """Words of every shell command in the pages, continued lines joined."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield pytest.param(words, id=f"{page.name}-{' '.join(words)[:60]}")


def configs_and_overrides(words):
    config = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    overrides = [w[9:].partition("=")[0] for w in words if w.startswith("--config.")]
    return config, overrides


def load_config(text):
    path, _, argument = text.partition(":")
    spec = importlib.util.spec_from_file_location("config_of_docs", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument or None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("words", list(commands()))
def test_commands_name_what_exists(words):
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets
    if words[:2] == ["python", "-m"] and words[2].startswith("pclseg"):
        assert importlib.util.find_spec(words[2]) is not None
    if words[0].startswith(("launch/", ".ci/")):
        assert (ROOT / words[0]).is_file()
    if words[0] == "pclseg":
        assert words[1] in COMMANDS
    configs, overrides = configs_and_overrides(words)
    configs = [
        config for config in configs if not config.startswith(("mine.py", "hippo.py"))
    ]
    for config in map(load_config, configs):
        for key in overrides:
            section = config
            for name in key.split("."):
                assert name in section, f"{key} is no key of the config"
                section = section[name]


@pytest.mark.parametrize("name", DATASETS)
def test_pages_of_datasets_quote_what_a_missing_file_gives(name, tmp_path):
    write, folder, missing = DATASETS[name]
    write(tmp_path / folder)
    (tmp_path / folder / f"{missing}.nii.gz").unlink()
    data = load_config(f"configs/scratch_{name}.py").data
    data.raw_dir = str(tmp_path / folder)
    with pytest.raises(UserError) as error:
        cohort.open_dataset(data)
    message = str(error.value).replace(str(tmp_path), "/data")
    page = (ROOT / "docs" / "datasets" / f"{name}.md").read_text()
    assert f"error: {message}" in " ".join(page.split())


def test_every_key_of_a_config_is_explained_on_the_site(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    reference = importlib.import_module("reference")
    rows = [line for line in reference.config().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.endswith("|  |")] == []
    text = reference.commands()
    assert all(f"## {name}\n" in text for name in COMMANDS)
    assert "usage: " in text
