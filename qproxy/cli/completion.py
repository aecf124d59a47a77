"""`qproxy completion`: what a shell needs to complete the command line."""

from __future__ import annotations

import argparse

from qproxy.cli.help import DONE, HelpPage
from qproxy.cli.output import print_result
from qproxy.cli.shell_completion import SHELLS, describe_parser

HELP = "print a script with which a shell completes commands and options"
PAGE = HelpPage(
    about="""Print a script for bash, zsh or fish that completes commands, options and their values. It is made from the commands
    themselves, so print it again after an upgrade.""",
    examples={
        'eval "$(qproxy completion bash)"': "in ~/.bashrc",
        'eval "$(qproxy completion zsh)"': "in ~/.zshrc, after compinit",
        "qproxy completion fish > ~/.config/fish/completions/qproxy.fish": "once",
    },
    exits={code: DONE[code] for code in (0, 2)},
    files={},
    environment={},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=sorted(SHELLS), help="the shell that runs it")


def run(arguments: argparse.Namespace) -> int:
    print_result(SHELLS[arguments.shell](describe_parser(arguments.parser)).rstrip())
    return 0
