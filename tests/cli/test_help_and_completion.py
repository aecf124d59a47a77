"""The command line as a whole: every command's page, and the scripts that complete it."""

import argparse
import re
import shlex
import shutil
import subprocess

import pytest

from qproxy import cli
from qproxy.cli.shell_completion import SHELLS, describe_parser

TOP = describe_parser(cli.build_parser())
SECTIONS = ("examples:", "exit codes:", "options:")


def page(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_page(name, capsys):
    """`--help` says what the command is for, with examples, exit codes, and the files and variables that it reads."""
    told, command = page(name, capsys), cli.resolve_command(name)
    assert [section for section in SECTIONS if section not in told] == []
    assert " ".join(command.PAGE.about.split())[:60] in " ".join(told.split())
    assert all(f"qproxy {name}" in line for line in command.PAGE.examples)
    assert {0, 2} <= set(command.PAGE.exits)
    reads_settings = "--config" in told
    assert reads_settings == ("qproxy.toml" in told) == ("QPROXY_CONFIG" in told)
    assert max(map(len, command.HELP.splitlines())) <= 90
    assert (
        max(len(line) for line in told.splitlines() if not line.startswith(("  qproxy", "  DASH", "usage")))
        <= 100
    )


EXAMPLES = [(name, line) for name in cli.COMMANDS for line in cli.resolve_command(name).PAGE.examples]


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_every_example_is_a_command_line(name, line):
    """What the pages show is understood as it stands."""
    line = line.removeprefix('eval "$(').removesuffix(')"')
    inner = re.search(r"qproxy .+?(?=$| [|<>] )", line)
    assert inner is not None
    words = shlex.split(inner[0])
    assert cli.build_parser().parse_args(words[1:]).command == name


def test_every_option_says_what_it_is():
    """No option or command is without a word."""
    dumb = [
        (command.names, option.flags)
        for command in TOP.all()
        for option in command.options
        if not option.help
    ]
    assert dumb == []
    assert [command.names for command in TOP.all() if command is not TOP and not command.help] == []


def test_without_a_command(capsys):
    """The page of `qproxy` itself, and the exit code of wrong usage."""
    assert cli.main([]) == 2
    told = capsys.readouterr().out
    assert all(f"\n    {name}" in told for name in cli.COMMANDS)


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_know_everything(shell, capsys):
    """Every command and every option stands in every shell's script."""
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in TOP.all():
        assert command.names[-1] in script
        for option in command.options:
            longest = max(option.flags, key=len).removeprefix("--")
            assert re.search(rf"(--|-l ){re.escape(longest)}\b", script), (command.names, longest)


COMPLETED = {
    "a command": (["qproxy", "che"], ["check"]),
    "an option": (["qproxy", "check", "--off"], ["--offline"]),
    "a subcommand": (["qproxy", "keys", "cr"], ["create"]),
    "an option of a subcommand": (["qproxy", "keys", "create", "--rp"], ["--rpm"]),
    "after an option with a value": (["qproxy", "keys", "--config", "x", "rev"], ["revoke"]),
    "the values of an option": (["qproxy", "usage", "--by", ""], ["key", "account", "model"]),
    "the values of an argument": (["qproxy", "completion", "z"], ["zsh"]),
    "nothing": (["qproxy", "check", "--model", ""], []),
}


@pytest.mark.parametrize(("words", "found"), COMPLETED.values(), ids=COMPLETED.keys())
def test_bash_completes(words, found):
    """The script does in bash what it should."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _qproxy; echo "${{COMPREPLY[*]}}"'
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-uec", f"{SHELLS['bash'](TOP)}\n{ask}"], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (found, "")


def test_words_of_any_kind():
    """Quotes, brackets and colons in the words of options do no harm in any shell."""
    parser = argparse.ArgumentParser(prog="odd")
    parser.add_argument("--quote", help="it's [a: b] \\ `x` $(y)")
    scripts = {shell: write(describe_parser(parser)) for shell, write in SHELLS.items()}
    assert "it'\\''s \\[a\\: b\\] \\\\ `x` $(y)" in scripts["zsh"]
    assert "'it\\'s [a: b] \\\\ `x` $(y)'" in scripts["fish"]
