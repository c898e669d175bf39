"""Texts from the templates of this package."""

import json
import shlex
from typing import Any

import jinja2


def render(template: str, /, **values: Any) -> str:
    """The template of that name as text; every value it asks for must be given.

    Filters: `cell` makes a text one line of a Markdown table, without markup; `shell`
    quotes it for a shell; `python` writes a value, texts in double quotes; `sentence`
    begins with a capital letter.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pclseg"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": _cell,
        "shell": _shell,
        "python": as_python,
        "sentence": _sentence,
    }
    return environment.get_template(template).render(**values)


def _cell(value: object) -> str:
    text = " ".join(str(value).split()).encode(errors="replace").decode()
    for mark in "\\`*_{}[]<>#|":
        text = text.replace(mark, f"\\{mark}")
    return text


def _shell(value: object) -> str:
    return shlex.quote(str(value))


def as_python(value: object) -> str:
    """The value as Python, texts in double quotes."""
    if isinstance(value, str):
        plain = json.dumps(value, ensure_ascii=False)
        return plain if value.isprintable() else repr(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(map(as_python, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
