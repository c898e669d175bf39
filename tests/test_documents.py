"""Every block of commands or Python in README.md and docs/ runs, or says why not.

The commands run as they stand there, on small files in a temporary folder that stands
for / (`/data/mine` is `data/mine` in it), with `small_configs/` in the Python path.
"""

import dataclasses
import importlib
import json
import locale
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from quick_compilation import XLA_FLAGS
from test_conversion import volume, write_series
from tiny_nifti import ROOT, acdc_tree, clean_process

from pclseg import main
from pclseg.__main__ import COMMANDS
from pclseg.cli import init
from pclseg.config import is_override, load_config
from pclseg.data.datasets import phantom
from pclseg.errors import UserError

PAGES = [
    "README.md",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")),
]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?P<kind>bash|sh|console|python)\n"
    r"(?P<text>.*?)^```$",
    re.M | re.S,
)
# Runs that a page speaks of and does not train: name there, name of what was trained.
RUNS = {
    "docs/follow.md": {"mine": "pcl"},
    "docs/report.md": {"scratch_f0": "scratch", "pcl_f0": "pcl"},
    "docs/share.md": {"mine_f0": "pcl", "mine_f1": "pcl"},
    "docs/statistics.md": {"scratch": "scratch", "pcl": "pcl"},
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: where it is, bash or python, its text, why it is not run."""

    place: str
    kind: str
    text: str
    reason: str | None


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            f"{page}:{text.count(chr(10), 0, found.start('kind')) + 1}",
            "python" if found["kind"] == "python" else "bash",
            found["text"],
            found["reason"],
        )
        for found in BLOCK.finditer(text)
    ]


ALL = {page: blocks(page) for page in PAGES}
RUN = [page for page in PAGES if any(b.reason is None for b in ALL[page])]
NOT_RUN = [b for page in PAGES for b in ALL[page] if b.reason is not None]


def write_files(root):
    """The files that the documents speak of, and nothing trained."""
    phantom.generate(root / "phantom", volumes=7, seed=0)
    for kind, there in {"images": "scans", "labels": "masks"}.items():
        folder = root / "data" / "mine" / there
        folder.mkdir(parents=True)
        for path in (root / "phantom" / kind).iterdir():
            path.rename(folder / path.name.replace("phantom_", "sub-"))
    scans = root / "data" / "mine" / "scans"
    (root / "data" / "new").mkdir()
    shutil.copy(scans / "sub-05.nii.gz", root / "data" / "new")
    shutil.copytree(root / "data" / "new", root / "scans")
    shutil.copy(scans / "sub-06.nii.gz", root / "scan.nii.gz")
    acdc_tree(root / "data" / "ACDC")
    write_series(root / "dicom", volume()[1])
    shutil.copy(ROOT / "tests/reference/torch_unet_legacy.pth", root / "latest.pth")
    (root / "configs").symlink_to(ROOT / "configs")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    before = locale.setlocale(locale.LC_ALL)
    write_files(root)
    locale.setlocale(locale.LC_ALL, before)  # which writing DICOM changes
    return root


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """Runs bash in a folder with this Python's programs and small configs."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "tests" / "small_configs"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": XLA_FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def run(text, folder):
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=folder,
            env={**environment, "HOME": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=300,
        )

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, files, bash):
    """A folder with runs of both arms."""
    root = tmp_path_factory.mktemp("trained")
    arms = "\n".join(
        f"pclseg train --config=mine.py:arm={arm} --workdir={arm}"
        for arm in ("scratch", "pcl")
    )
    options = f"{files}/data/mine --images=scans --labels=masks --out=mine.py"
    done = bash(f"pclseg init {options}\n{arms}", root)
    assert done.returncode == 0, done.stdout
    return root


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_blocks_run(page, files, bash, request, tmp_path, monkeypatch):
    shutil.copytree(files, tmp_path, symlinks=True, dirs_exist_ok=True)
    for name, source in RUNS.get(page, {}).items():
        trained = request.getfixturevalue("trained")
        shutil.copytree(trained / source, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in ALL[page]:
        text = re.sub(r"(?<![\w.])/data/", f"{tmp_path}/data/", block.text)
        if block.reason is not None:
            continue
        if block.kind == "python":
            exec(compile(text, block.place, "exec"), names)
            continue
        done = bash(text, tmp_path)
        assert done.returncode == 0, f"{block.place}\n{done.stdout}"


@pytest.fixture(scope="module")
def configs(files, tmp_path_factory):
    """A folder with the configs that blocks name, those of `pclseg init` too."""
    root = tmp_path_factory.mktemp("configs")
    (root / "configs").symlink_to(ROOT / "configs")
    data = [f"{files}/data/mine", "--images=scans", "--labels=masks"]
    with clean_process():
        assert init.main([*data, f"--out={root / 'mine.py'}"]) == 0
    shutil.copy(root / "mine.py", root / "hippo.py")
    return root


def commands(text):
    """(command, its arguments) of every line of a block that calls pclseg."""
    modules = {module: name for name, (module, _) in COMMANDS.items()}
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["pclseg"]:
            yield words[1], words[2:]
        elif words[:2] == ["python", "-m"] and words[2].startswith("pclseg."):
            yield modules[words[2]], words[3:]


def parse(name, words):
    """Raises SystemExit or UserError where the command would refuse the words."""
    if name == "train":
        main.parse(["pclseg train", *words])
        return
    parser = importlib.import_module(COMMANDS[name][0]).command_line()
    parser.allow_abbrev = False  # else a longer new name would take the old one
    if name == "check":
        _, rest = parser.parse_known_args(words)
        assert all(map(is_override, rest)), rest
        return
    args = parser.parse_args(words)
    if name == "grid" and not args.grid.endswith(".json"):
        load_config(args.grid)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_blocks_that_are_not_run_are_understood(block, configs, monkeypatch):
    assert block.reason.strip()
    monkeypatch.chdir(configs)
    if block.kind == "python":
        compile(block.text, block.place, "exec")
        return
    for name, words in commands(block.text):
        parse(name, words)


@pytest.mark.parametrize(
    "line",
    [
        "pclseg predict --runs=runs/mine --images=new --out=predicted",
        "pclseg predict --run=runs/mine --images=new --ou=predicted",
        "pclseg grid configs/grids/acdc.py --out=runs/study --job=2",
        "pclseg train --config=mine.py --workdirs=runs/mine",
        "python -m pclseg.main --config=mine.py --config.pretrain.train.step=3",
        "python -m pclseg.main --config=configs/pcl_acdc.py:folds=0",
    ],
)
def test_a_name_that_is_gone_is_refused(line, configs, monkeypatch, capsys):
    monkeypatch.chdir(configs)
    ((name, words),) = commands(line)
    with pytest.raises((SystemExit, UserError)):
        parse(name, words)


def test_every_block_is_found():
    for page in PAGES:
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        fences = [
            i for i in lines if re.match(r"\s*(```|~~~)\s*(ba|z)?(sh|console|py)", i)
        ]
        assert len(fences) == len(ALL[page]), page


def test_blocks_are_told_from_marked_ones():
    marked, plain = "```bash\na\n```\n", "```python\nb\n```\n"
    text = f"<!-- not run: long -->\n{marked}\n{plain}```text\nc\n```\n"
    found = [(m["reason"], m["kind"], m["text"]) for m in BLOCK.finditer(text)]
    assert found == [("long", "bash", "a\n"), (None, "python", "b\n")]


def test_the_notebook_is_stored_as_it_was_never_run():
    notebook = json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells)
