"""docs/messages.md: what pclseg says to each fault that the tests know.

After a change of messages, `PCLSEG_WRITE_MESSAGES=1 pytest tests/test_check.py
tests/test_bad_inputs.py -k "fault or one_line"` writes the rows anew.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "messages.md"
START = "| --- | --- | --- |\n"


def check_row(
    table: str,
    name: str,
    status: int,
    line: str,
    *,
    expected: Sequence[str],
    root: Path,
) -> None:
    """Asserts that the table of that title has a row for the fault and says the same.

    Args:
        table: title of the section.
        name: of the fault.
        status: exit status.
        line: what the program said; "" for nothing.
        expected: parts of the line, which do not depend on versions of libraries.
        root: the folder of the test, not shown.
    """
    shown = (
        line.replace(f"{root}/", "").replace("|", "\\|") or "nothing: it is no fault"
    )
    shown = re.sub(r"(?<=[\s(])/[^\s:;,)]*/", "", shown)  # other paths of this machine
    if os.environ.get("PCLSEG_WRITE_MESSAGES"):
        _write(table, name, f"| {name} | {status} | {shown} |")
    rows = _rows(PAGE.read_text(encoding="utf-8"), table)
    assert name in rows, f"docs/messages.md lacks {name!r}; see tests/messages_page.py"
    assert rows[name].startswith(f"| {name} | {status} | ")
    for part in expected:
        assert part.replace("|", "\\|") in rows[name], (part, rows[name])


def _rows(text: str, table: str) -> dict[str, str]:
    section = text.partition(f"## {table}\n")[2].partition("\n## ")[0]
    lines = section.partition(START)[2].splitlines()
    return {line.split(" | ")[0][2:]: line for line in lines if line.startswith("| ")}


def _write(table: str, name: str, row: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    old = _rows(text, table).get(name)
    if old:
        PAGE.write_text(text.replace(old, row, 1), encoding="utf-8")
        return
    head, title, rest = text.partition(f"## {table}\n")
    section, more, after = rest.partition("\n## ")
    text = f"{head}{title}{section.rstrip()}\n{row}\n{more}{after}"
    PAGE.write_text(text, encoding="utf-8")
