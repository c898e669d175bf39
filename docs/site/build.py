"""Builds the site of the documents: python docs/site/build.py OUT; warnings are errors.

Its pages are the Markdown files of `docs/`, which are also read as they are, and some
others of the repository. Links between files become links between pages; commands and
keys of configs are written from the code; the notebook is executed.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import reference
from sphinx.cmd.build import main as sphinx

SITE = Path(__file__).resolve().parent
DOCS, ROOT = SITE.parent, SITE.parents[1]
# Pages from outside of docs/, by their name on the site.
TAKEN = {
    "launch.md": ROOT / "launch" / "README.md",
    "benchmarks.md": ROOT / "benchmarks" / "README.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
}


def main(argv: list[str]) -> int:
    """Builds it; returns the exit status."""
    (out,) = argv[1:]
    # The notebook calls pclseg, which is in no PATH where no environment is activated.
    programs = Path(sys.executable).parent
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        shutil.copytree(
            DOCS, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("site")
        )
        for path in DOCS.rglob("*.md"):
            page = source / path.relative_to(DOCS)
            page.write_text(_on_the_site(path), encoding="utf-8")
        for name, path in TAKEN.items():
            (source / name).write_text(_on_the_site(path), encoding="utf-8")
        (source / "reference").mkdir()
        for name, text in reference.pages().items():
            (source / "reference" / name).write_text(text, encoding="utf-8")
        return sphinx(["-q", "-W", "--keep-going", "-c", str(SITE), str(source), out])


def _on_the_site(path: Path) -> str:
    """A page with its links to files turned into links to pages.

    A link to a file that is no page, such as a config, becomes its text.
    """
    names = {source: name for name, source in TAKEN.items()}

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target:
            return found[0]
        aim = (path.parent / target).resolve()
        if aim in names:
            return f"[{label}](/{names[aim]}{anchor})"
        if aim.suffix in (".md", ".ipynb") and aim.is_relative_to(DOCS):
            return f"[{label}](/{aim.relative_to(DOCS)}{anchor})"
        return label

    text = path.read_text(encoding="utf-8")
    return re.sub(r"(?<!!)\[([^]]*)\]\(([^)#\s]+)(#[^)]*)?\)", link, text)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
