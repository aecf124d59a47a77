"""The command line.

One module a command, each with `HELP` (a line), `PAGE` (what `--help` says beside the options), `add(parser)` for its arguments
and `run(arguments)`, which returns the exit code: 0 done, 1 failed, 2 wrong usage or configuration.  A new command is one module and its name in `COMMANDS`.

This is the only package that prints: results to standard output (`output.print_result`), everything else to standard error.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Protocol, cast

from qproxy.access.api_keys import ApiKeyStoreError
from qproxy.cli.help import VARIABLES, HelpPage
from qproxy.cli.output import print_error, print_result
from qproxy.config.accounts import ConfigError
from qproxy.version import VERSION


class CommandModule(Protocol):
    """A module of this package."""

    HELP: str
    PAGE: HelpPage

    @property
    def add(self) -> Callable[[argparse.ArgumentParser], None]: ...

    @property
    def run(self) -> Callable[[argparse.Namespace], int]: ...


PAGE = HelpPage(
    about="""An OpenAI-compatible server for Alibaba's Qwen models, with function calling that always arrives right. Every command has a
    --help of its own, with examples.""",
    examples={
        "qproxy demo": "try it without an account",
        "DASHSCOPE_API_KEY=sk-... qproxy serve": "serve a Model Studio key on http://127.0.0.1:8787/v1",
        "qproxy check": "find what is wrong",
    },
    environment=VARIABLES,
)
COMMANDS = (
    "serve", "demo", "login", "logout", "emulator", "reload", "keys", "accounts", "tools", "usage", "check", "claude", "codex",
    "opencode", "completion",
)  # fmt: skip
ALL = "completion"
"""The command that knows the others."""


def resolve_command(name: str) -> CommandModule:
    """The module of a command; imported by name, so that one that is not asked for costs nothing."""
    return cast(CommandModule, import_module(f"qproxy.cli.{name}"))


def build_parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of these commands."""
    top = argparse.ArgumentParser(prog="qproxy")
    top.add_argument("--version", action="version", version=f"qproxy {VERSION}")
    PAGE.apply_to(top)
    top.set_defaults(parser=top)  # for the command that tells shells about it
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in names:
        one = commands.add_parser(name, help=resolve_command(name).HELP)
        resolve_command(name).PAGE.apply_to(one)
        resolve_command(name).add(one)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without the letter: say it by its number
        sys.stdout.reconfigure(errors="backslashreplace")
    command_line = sys.argv[1:] if argv is None else argv
    one = command_line[0] if command_line and command_line[0] in COMMANDS and command_line[0] != ALL else None
    top = build_parser([one] if one else COMMANDS)
    arguments = top.parse_args(command_line)
    if arguments.command is None:
        print_result(top.format_help().rstrip())
        return 2
    try:
        return resolve_command(arguments.command).run(arguments)
    except (ConfigError, ApiKeyStoreError) as error:
        print_error(str(error))
        return 2
    except OSError as error:
        print_error(str(error))
        return 1
