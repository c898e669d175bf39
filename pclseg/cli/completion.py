"""Tab completion for a shell: a script that knows commands, options and their words.

python -m pclseg.cli.completion bash
"""

import argparse
import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator, Sequence

from pclseg.__main__ import COMMANDS
from pclseg.main import train_flags
from pclseg.templating import render

SHELLS = ("bash", "zsh", "fish")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """An option of a command, or what it takes besides.

    Attributes:
        name: such as "--out"; "" for what has no name.
        about: what it is, in a line.
        takes: whether a value follows.
        words: what the value may be; () for files and all else.
    """

    name: str
    about: str
    takes: bool
    words: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the script; returns the exit status."""
    args = command_line().parse_args(argv)
    sys.stdout.write(script(args.shell))
    return 0


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.completion",
        description="Prints a script by which the shell completes commands, options and"
        " files of pclseg at TAB. Keep it in a file: at TAB nothing of pclseg is run.",
        epilog="bash: pclseg completion bash >"
        " ~/.local/share/bash-completion/completions/pclseg",
    )
    parser.add_argument("shell", choices=SHELLS, help="for which shell")
    return parser


def script(shell: str) -> str:
    """The script for one of SHELLS."""
    return render(
        f"completion.{shell}.jinja",
        about={name: what for name, (_, what) in COMMANDS.items()},
        options={name: list(options_of(name)) for name in COMMANDS},
        for_zsh=_for_zsh,
    )


def options_of(command: str) -> Iterator[Option]:
    """What a command takes."""
    if command == "train":
        yield from _train_options()
        return
    parser = importlib.import_module(COMMANDS[command][0]).command_line()
    for action in parser._actions:
        for name in action.option_strings or ("",):
            if name == "" or name.startswith("--"):
                yield Option(
                    name=name,
                    about=(action.help or "").replace("%%", "%"),
                    takes=action.nargs != 0,
                    words=tuple(map(str, action.choices or ())),
                )


def _train_options() -> Iterator[Option]:
    values = train_flags()
    for name in values:
        flag = values[name]
        is_switch = flag.flag_type() == "bool"
        yield Option(name=f"--{name}", about=flag.help, takes=not is_switch)


def _for_zsh(text: str) -> str:
    """The text as it may stand in an option's description, between brackets."""
    return re.sub(r"([][:\\])", r"\\\1", text)


if __name__ == "__main__":
    sys.exit(main())
