"""`qproxy completion`: print a completion script for a shell."""

from __future__ import annotations

import argparse

from qproxy.cli.help import DONE, HelpPage
from qproxy.cli.output import print_result
from qproxy.cli.shell_completion import SHELLS, describe_parser

HELP = "print a shell completion script"
PAGE = HelpPage(
    about="""Print a script for bash, zsh or fish that completes commands, options and their values. Print it
    again after an upgrade.""",
    examples={
        'eval "$(qproxy completion bash)"': "in ~/.bashrc",
        'eval "$(qproxy completion zsh)"': "in ~/.zshrc, after compinit",
        "qproxy completion fish > ~/.config/fish/completions/qproxy.fish": "install it for fish",
    },
    exits={code: DONE[code] for code in (0, 2)},
    files={},
    environment={},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=sorted(SHELLS), help="shell to complete in")


def run(arguments: argparse.Namespace) -> int:
    print_result(SHELLS[arguments.shell](describe_parser(arguments.parser)).rstrip())
    return 0
