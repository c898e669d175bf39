"""`pclseg completion`: what TAB gives, in a bash that runs nothing of pclseg for it."""

import os
import pty
import re
import select
import shutil
import subprocess

import pytest

from pclseg.__main__ import COMMANDS
from pclseg.cli import completion


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "pclseg"
    path.write_text(completion.script("bash"), encoding="utf-8")
    return path


def words_for(script, *line):
    """What bash offers for the last word; an = is a word of its own there."""
    words = [part for word in line for part in re.split("(=)", word)]
    if words[-2:] == ["=", ""]:
        words.pop()
    call = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pclseg'
    done = subprocess.run(
        ["bash", "-uc", f'{call}; printf "%s\\n" "${{COMPREPLY[@]}}"', script, *words],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_first_word_is_a_command(script):
    assert words_for(script, "pclseg", "") == list(COMMANDS)
    assert words_for(script, "pclseg", "in") == ["init"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_offers_its_options(script, command):
    offered = words_for(script, "pclseg", command, "--")
    names = {option.name for option in completion.options_of(command) if option.name}
    assert {word.rstrip("=") for word in offered} == names
    assert "--help" in names


def test_options_that_take_a_value_end_in_an_equals_sign(script):
    assert words_for(script, "pclseg", "check", "data", "--im") == ["--images="]
    assert words_for(script, "pclseg", "predict", "--fl") == ["--flips"]
    assert "--workdir=" in words_for(script, "pclseg", "train", "--")
    assert "--dry_run" in words_for(script, "pclseg", "train", "--")


@pytest.mark.parametrize("line", [["--size="], ["--size", ""]])
def test_values_of_a_choice_are_offered(script, line):
    assert words_for(script, "pclseg", "init", "data", *line) == ["cpu", "gpu"]
    assert words_for(script, "pclseg", "completion", "z") == ["zsh"]


def typed(script, folder, keys):
    """Arguments that pclseg gets where a person types `keys` in an interactive bash."""
    terminal, inside = pty.openpty()
    environment = {"PATH": "", "TERM": "dumb", "INPUTRC": "/dev/null", "PS1": ""}
    with subprocess.Popen(
        [shutil.which("bash"), "--norc", "--noprofile", "-i"],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        cwd=folder,
        env=environment,
        start_new_session=True,
    ) as bash:
        os.close(inside)
        start = f"source {script}; pclseg() {{ printf '[%s]' \"$@\"; echo; }}\n"
        os.write(terminal, f"{start}{keys}\nexit\n".encode())
        shown = b""
        while select.select([terminal], [], [], 20)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # bash has ended
                break
        bash.kill()
    os.close(terminal)
    found = re.findall(r"^\[.*\]\r?$", shown.decode(), re.M)
    assert found, shown.decode()
    return re.findall(r"\[(.*?)\]", found[-1])


def test_tab_completes_in_an_interactive_bash(script, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "mine.py").touch()
    assert typed(script, tmp_path, "pclseg che\t--im\tsc\t") == [
        "check",
        "--images=scans/",
    ]
    assert typed(script, tmp_path, "pclseg train --con\tmi\t") == [
        "train",
        "--config=mine.py",
    ]


def test_zsh_and_fish_have_every_option():
    zsh, fish = completion.script("zsh"), completion.script("fish")
    assert zsh.startswith("#compdef pclseg\n")
    for command in COMMANDS:
        assert f"{command})" in zsh
        for option in completion.options_of(command):
            if option.name:
                assert f"{option.name}{'=' * option.takes}[" in zsh
                assert f"from {command}' -l {option.name[2:]} " in fish


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_are_right_for_their_shell(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "script").write_text(completion.script(shell), encoding="utf-8")
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)
