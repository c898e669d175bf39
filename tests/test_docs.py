"""What the documents name exists: files, configs, keys, modules, make targets."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/*.md")]
)


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
    configs, overrides = configs_and_overrides(words)
    for config in map(load_config, configs):
        for key in overrides:
            section = config
            for name in key.split("."):
                assert name in section, f"{key} is no key of the config"
                section = section[name]
