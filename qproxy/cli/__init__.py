"""The command line.

Each command is a module with `HELP` (one line), `PAGE` (the rest of `--help`), `add(parser)` for its
arguments and `run(arguments)`, which returns the exit code: 0 success, 1 failure, 2 wrong usage or
configuration. A new command is a module and its name in `COMMANDS`.

This is the only package that prints: results to standard output (`output.print_result`), everything else to
standard error.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn, Protocol, cast

from qproxy.cli.errors import WRONG_USAGE, run_command
from qproxy.cli.help import VARIABLES, HelpPage
from qproxy.cli.output import print_result
from qproxy.cli.shell_completion import describe_parser
from qproxy.config.parsing import suggestion
from qproxy.version import VERSION


class CommandModule(Protocol):
    """A module of this package that implements a command."""

    HELP: str
    PAGE: HelpPage

    @property
    def add(self) -> Callable[[argparse.ArgumentParser], None]: ...

    @property
    def run(self) -> Callable[[argparse.Namespace], int]: ...


PAGE = HelpPage(
    about="""An OpenAI-compatible server for Alibaba's Qwen models, with reliable function calling. Every
    command has its own --help with examples.""",
    examples={
        "qproxy demo": "try it without an account",
        "DASHSCOPE_API_KEY=sk-... qproxy serve": "serve a Model Studio key on http://127.0.0.1:8787/v1",
        "qproxy init": "write a configuration file",
        "qproxy check": "diagnose problems",
        "qproxy help configuration": "read the documentation of the settings",
    },
    environment=VARIABLES,
)
COMMANDS = (
    "init", "serve", "demo", "login", "logout", "emulator", "reload", "keys", "accounts", "tools", "usage",
    "backup", "restore", "purge", "shared", "check", "claude", "codex", "opencode", "qwen", "help",
    "completion",
)  # fmt: skip
MODULES = {"help": "topics"}
"""Modules that have another name than their command."""
ALL = "completion"
"""The command that needs the parsers of all others."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; its subcommands have the same class."""

    def print_help(self, file: Any = None) -> None:
        """Print the help. Raises OSError if it cannot be written, which argparse ignores."""
        print_result(self.format_help().rstrip())

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"{self.prog}: error: {message}\n")


def resolve_command(name: str) -> CommandModule:
    """Return the module of a command, imported by name to keep the start of the others fast."""
    return cast(CommandModule, import_module(f"qproxy.cli.{MODULES.get(name, name)}"))


def build_parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Build the parser for these commands."""
    top = Parser(prog="qproxy")
    top.add_argument("--version", action="version", version=f"qproxy {VERSION}")
    PAGE.apply_to(top)
    top.set_defaults(parser=top)  # for `qproxy completion`
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in names:
        command = commands.add_parser(name, help=resolve_command(name).HELP)
        resolve_command(name).PAGE.apply_to(command)
        resolve_command(name).add(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Raises SystemExit for wrong usage and after `--help`."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(command_line: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape what the locale cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    known = command_line and command_line[0] in COMMANDS and command_line[0] != ALL
    top = build_parser(command_line[:1] if known else COMMANDS)
    arguments = _parse(top, command_line)
    if arguments.command is None:
        top.print_help()
        return WRONG_USAGE
    return resolve_command(arguments.command).run(arguments)


def _parse(top: argparse.ArgumentParser, command_line: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; exit with 2 and a suggestion for an unknown command or option."""
    for text in command_line:
        if not _is_text(text):
            top.error(f"argument {text!r} is not valid UTF-8.")
    command = command_line[0] if command_line else ""
    if command and not command.startswith("-") and command not in COMMANDS:
        top.error(f"unknown command {command!r}.{suggestion(command, COMMANDS)}")
    arguments, unknown = top.parse_known_args(command_line)
    if unknown:
        top.error(_describe_unknown(unknown[0].partition("=")[0], arguments))
    return arguments


def _describe_unknown(word: str, arguments: argparse.Namespace) -> str:
    """Return the error for a word that a command does not accept: what was probably meant, or where to look.

    A suggestion is an option of this command; an option of other commands names those.
    """
    top = describe_parser(build_parser())
    path = [word for word in (top.names[0], arguments.command, getattr(arguments, "action", None)) if word]
    help_command = f"See {' '.join(path)} --help."
    if not word.startswith("-"):
        return f"unknown argument {word!r}. {help_command}"
    commands = {" ".join(spec.names): [flag for o in spec.options for flag in o.flags] for spec in top.all()}
    own = [flag for name, flags in commands.items() if " ".join(path).startswith(name) for flag in flags]
    owners = [name for name, flags in commands.items() if word in flags]
    if owners:
        return f"unknown option {word!r}, which {owners[0]} has. {help_command}"
    return f"unknown option {word!r}.{suggestion(word, own) or f' {help_command}'}"


def _is_text(argument: str) -> bool:
    """Return whether an argument can be encoded: bytes that are not UTF-8 are lone surrogates in it."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True
