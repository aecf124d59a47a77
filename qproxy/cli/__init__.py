"""The command line.

One module a command, each with `add(parser)` for its arguments and `run(arguments)`, which returns the exit
code: 0 done, 1 failed, 2 wrong usage or configuration.  A new command is one module and one row of `COMMANDS`.

This is the only room that prints: results to standard output (`saying.say`), everything else to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Protocol, cast

from qproxy.cli.saying import complain
from qproxy.keys import KeyFileError
from qproxy.presets import ConfigError
from qproxy.version import VERSION


class Command(Protocol):
    """A module of this package."""

    @property
    def add(self) -> Callable[[argparse.ArgumentParser], None]: ...

    @property
    def run(self) -> Callable[[argparse.Namespace], int]: ...


COMMANDS = {
    "serve": "serve your accounts",
    "demo": "try qproxy on the built-in emulator, without an account",
    "login": "sign in to a Qwen account",
    "logout": "sign out of a Qwen account: remove its tokens from this machine",
    "emulator": "serve the built-in Qwen emulator alone, with its identity server, to try signing in",
    "reload": "have a running server read its settings, keys and accounts again",
    "keys": "make, list and revoke the keys of your clients",
    "accounts": "show how your accounts are doing",
    "tools": "list the tools that this server runs, or try one",
    "usage": "show who used how much: requests, tokens and their estimated cost",
    "check": "look for what is wrong with settings, accounts and servers, and say what to do",
}


def _module(name: str) -> Command:
    """The module of a command, imported when it is the one that is asked for: a supervisor needs no Trio."""
    return cast(Command, import_module(f"qproxy.cli.{name}"))


def parser(chosen: str) -> argparse.ArgumentParser:
    """The parser of every command, with the arguments of the chosen one."""
    top = argparse.ArgumentParser(prog="qproxy", description="An OpenAI-compatible server for Qwen models.")
    top.add_argument("--version", action="version", version=f"qproxy {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help in COMMANDS.items():
        command = commands.add_parser(name, help=help, description=f"{help[:1].upper()}{help[1:]}.")
        if name == chosen:
            _module(name).add(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    chosen = next((word for word in words if not word.startswith("-")), "")
    arguments = parser(chosen).parse_args(words)
    try:
        return _module(arguments.command).run(arguments)
    except (ConfigError, KeyFileError) as error:
        complain(str(error))
        return 2
    except OSError as error:
        complain(str(error))
        return 1
