"""The command line: every command's help, and the completion scripts."""

import argparse
import re
import shlex
import shutil
import subprocess

import pytest

from qproxy import __main__, cli
from qproxy.cli import serve
from qproxy.cli.shell_completion import SHELLS, describe_parser
from qproxy.config import SETTINGS, TYPES, setting_groups

TOP = describe_parser(cli.build_parser())
SECTIONS = ("examples:", "exit codes:", "options:")


def page(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_page(name, capsys, monkeypatch):
    """`--help` describes a command, with examples, exit codes, and the files and variables that it reads."""
    monkeypatch.setenv("COLUMNS", "80")
    text, command = page(name, capsys), cli.resolve_command(name)
    assert [section for section in SECTIONS if section not in text] == []
    assert " ".join(command.PAGE.about.split())[:60] in " ".join(text.split())
    assert all(f"qproxy {name}" in line for line in command.PAGE.examples)
    assert {0, 2} <= set(command.PAGE.exits)
    reads_settings = "--config" in text
    assert reads_settings == ("qproxy.toml" in text) == ("QPROXY_CONFIG" in text)
    assert max(map(len, command.HELP.splitlines())) <= 90
    examples = tuple(f"  {line}" for line in command.PAGE.examples)
    assert [line for line in text.splitlines() if len(line) > 80 and not line.startswith(examples)] == []


EXAMPLES = [(name, line) for name in cli.COMMANDS for line in cli.resolve_command(name).PAGE.examples]


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_every_example_is_a_command_line(name, line):
    """Every example in the help parses."""
    line = line.removeprefix('eval "$(').removesuffix(')"')
    inner = re.search(r"qproxy .+?(?=$| [|<>] )", line)
    assert inner is not None
    words = shlex.split(inner[0])
    assert cli.build_parser().parse_args(words[1:]).command == name


def test_every_option_has_help():
    """Every option and every command has a help text."""
    undocumented = [
        (command.names, option.flags)
        for command in TOP.all()
        for option in command.options
        if not option.help
    ]
    assert undocumented == []
    assert [command.names for command in TOP.all() if command is not TOP and not command.help] == []


def test_without_a_command(capsys):
    """`qproxy` alone prints its help and exits with the code of wrong usage."""
    assert cli.main([]) == 2
    text = capsys.readouterr().out
    assert all(f"\n    {name}" in text for name in cli.COMMANDS)


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_have_every_option(shell, capsys):
    """Every command and every option is in every shell's script."""
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
    """The script for bash completes commands, options and values."""
    line = " ".join(f"'{word}'" for word in words)
    program = f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _qproxy; echo "${{COMPREPLY[*]}}"'
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-uec", f"{SHELLS['bash'](TOP)}\n{program}"], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (found, "")


def test_quotes_special_characters():
    """Quotes, brackets and colons in help texts are escaped for every shell."""
    parser = argparse.ArgumentParser(prog="odd")
    parser.add_argument("--quote", help="it's [a: b] \\ `x` $(y)")
    scripts = {shell: write(describe_parser(parser)) for shell, write in SHELLS.items()}
    assert "it'\\''s \\[a\\: b\\] \\\\ `x` $(y)" in scripts["zsh"]
    assert "'it\\'s [a: b] \\\\ `x` $(y)'" in scripts["fish"]


def test_serve_groups_its_settings(capsys, monkeypatch):
    """The help of `serve` has every setting once, in titled groups, with its default."""
    monkeypatch.setenv("COLUMNS", "80")
    text = page("serve", capsys)
    flags = re.findall(r"^  --([a-z0-9-]+)", text, re.MULTILINE)
    settings = [name.replace("_", "-") for names in setting_groups().values() for name in names]
    assert flags == ["config", *settings]
    assert [title for title in setting_groups() if f"\n{title}:\n" not in text] == []
    assert set(settings) == {name.replace("_", "-") for name in SETTINGS}
    assert "seconds to establish an upstream connection, including" in text
    assert "(default: 8787)" in " ".join(text.split())


SWITCHES = [name for name, kind in TYPES.items() if kind is bool]


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [True, False])
def test_a_flag_switches_a_boolean_on_and_off(name, value):
    """A boolean setting has a flag and a --no- flag, which a supervisor passes on to its workers."""
    flag = f"--{'' if value else 'no-'}{name.replace('_', '-')}"
    arguments = cli.build_parser(["serve"]).parse_args(["serve", flag])
    assert serve._flags(arguments) == {name: value}
    assert serve._command(arguments)[-1] == flag


MISTAKES = {
    "a command": (["chek"], "unknown command 'chek'. Did you mean 'check'?"),
    "an option": (["serve", "--prot=1"], "unknown option '--prot'. Did you mean '--port'?"),
    "an option of a subcommand": (
        ["keys", "create", "--nmae", "x"],
        "unknown option '--nmae'. Did you mean '--name'?",
    ),
    "an argument": (["usage", "x"], "unknown argument 'x'. See qproxy usage --help."),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_suggests_commands_and_options(words, message, capsys):
    """An unknown command or option exits with 2 and names the closest one."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"qproxy: error: {message}\n")


INTERRUPTS = {
    "plain": KeyboardInterrupt(),
    "of a nursery": BaseExceptionGroup("nursery", [KeyboardInterrupt()]),
}


@pytest.mark.parametrize("error", INTERRUPTS.values(), ids=INTERRUPTS.keys())
def test_ctrl_c_prints_one_line(error, capsys, monkeypatch):
    """Ctrl+C ends any command with one line and exit code 130, without a traceback."""

    def interrupt():
        raise error

    monkeypatch.setattr(cli, "main", interrupt)
    assert __main__.main() == __main__.INTERRUPTED
    assert capsys.readouterr().err == "qproxy: interrupted.\n"


def test_ctrl_c_hides_no_other_error(monkeypatch):
    """A group with another error besides the interrupt is raised."""

    def fail():
        raise BaseExceptionGroup("nursery", [KeyboardInterrupt(), ValueError("x")])

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(BaseExceptionGroup):
        __main__.main()
