"""The command line.

One module a command, each with `HELP`, `add(parser)` for its arguments and `run(arguments)`, which returns the exit
code: 0 done, 1 failed, 2 wrong usage or configuration.  A new command is one module and one row of `COMMANDS`.

This is the only room that prints: results to standard output (`saying.say`), everything else to standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Protocol

from qproxy.cli import accounts, check, demo, emulator, keys, login, logout, reload, serve, tools, usage
from qproxy.cli.saying import complain
from qproxy.keys import KeyFileError
from qproxy.presets import ConfigError
from qproxy.version import VERSION


class Command(Protocol):
    """A module of this package."""

    HELP: str

    @property
    def add(self) -> Callable[[argparse.ArgumentParser], None]: ...

    @property
    def run(self) -> Callable[[argparse.Namespace], int]: ...


COMMANDS: dict[str, Command] = {
    "serve": serve,
    "demo": demo,
    "login": login,
    "logout": logout,
    "emulator": emulator,
    "reload": reload,
    "keys": keys,
    "accounts": accounts,
    "tools": tools,
    "usage": usage,
    "check": check,
}


def parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    top = argparse.ArgumentParser(prog="qproxy", description="An OpenAI-compatible server for Qwen models.")
    top.add_argument("--version", action="version", version=f"qproxy {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add(
            commands.add_parser(
                name, help=command.HELP, description=command.HELP[:1].upper() + command.HELP[1:] + "."
            )
        )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command].run(arguments)
    except (ConfigError, KeyFileError) as error:
        complain(str(error))
        return 2
    except OSError as error:
        complain(str(error))
        return 1
