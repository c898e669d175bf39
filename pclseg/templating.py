"""Texts from the templates of this package."""

import shlex
from typing import Any

import jinja2


def render(template: str, /, **values: Any) -> str:
    """The template of that name as text; every value it asks for must be given.

    Filters: `cell` makes a text one line of a Markdown table, without markup; `shell`
    and `python` quote it for these languages.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pclseg"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "shell": _shell, "python": repr}
    return environment.get_template(template).render(**values)


def _cell(value: object) -> str:
    text = " ".join(str(value).split()).encode(errors="replace").decode()
    for mark in "\\`*_{}[]<>#|":
        text = text.replace(mark, f"\\{mark}")
    return text


def _shell(value: object) -> str:
    return shlex.quote(str(value))
