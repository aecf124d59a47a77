"""`qproxy check`: what is wrong, and what to do about it.

Here: the words of the command.  The checks themselves are `qproxy.diagnostics`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from qproxy import config as configuration
from qproxy.cli.help import HelpPage
from qproxy.cli.output import print_note, print_result
from qproxy.config import Config
from qproxy.config.accounts import ConfigError

if TYPE_CHECKING:
    from qproxy.diagnostics import Finding

HELP = "look for what is wrong with settings, accounts and servers, and say what to do"
PAGE = HelpPage(
    about="""Look at this machine, the settings, the tools and every account, and say in a line each what is well, what is not, and what to do.
    It uses the server's own parts and changes nothing. Accounts are asked a few small questions, which costs some hundred tokens each.

    With a URL, any OpenAI-compatible server is asked instead, and its answers are held to OpenAI's contract: what they break is named by
    its rule (docs/check.md).""",
    examples={
        "qproxy check": "everything",
        "qproxy check --offline": "what can be said without a connection",
        "qproxy check http://127.0.0.1:8080/v1 --model my-model": "a server of your own",
        "qproxy check https://example.com/v1 --key - < key.txt": "with a key that no list of processes shows",
    },
    exits={
        0: "all well; warnings are no failure",
        1: "something failed",
        2: "wrong usage, or the configuration cannot be served",
    },
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url", nargs="?", help="base URL of any OpenAI-compatible server to check instead of your accounts"
    )
    parser.add_argument("--key", help="the server's key; - reads it from standard input")
    parser.add_argument("--model", help="the model to ask (default: default_model, else the cheapest listed)")
    parser.add_argument("--config", metavar="PATH", help="configuration file")
    parser.add_argument(
        "--offline",
        action="store_true",
        help="make no connections; with a URL, ask only what costs nothing",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    from qproxy import diagnostics

    try:
        found = _print_findings(arguments)
    except ConfigError as error:
        found = [
            diagnostics.Finding(
                "configuration", "settings", "failed", str(error), "see docs/configuration.md"
            )
        ]
    if arguments.json:
        print_result(json.dumps(diagnostics.fields(found), indent=1, ensure_ascii=False))
    else:
        for line in diagnostics.lines(found):
            print_result(line)
    return diagnostics.exit_code(found)


def _print_findings(arguments: argparse.Namespace) -> Sequence[Finding]:
    config = configuration.load(path=arguments.config)
    if arguments.model is not None:
        config = replace(config, default_model=arguments.model)
    if arguments.url is not None:
        return _check_url(config, arguments)
    if arguments.key is not None:
        raise ConfigError("--key is for a server that is named by its URL.")
    return _check_server(config, arguments)


def _check_server(config: Config, arguments: argparse.Namespace) -> Sequence[Finding]:
    from qproxy import diagnostics

    if not arguments.offline:
        print_note(
            "Each account is asked a few small questions, which costs some hundred tokens; --offline asks none."
        )
    file = configuration.config_file(arguments.config)
    return trio.run(
        partial(diagnostics.run_checks, config, configuration.data_dir(), file, offline=arguments.offline)
    )


def _check_url(config: Config, arguments: argparse.Namespace) -> Sequence[Finding]:
    from qproxy import diagnostics

    key = sys.stdin.readline().strip() if arguments.key == "-" else arguments.key
    if not arguments.offline:
        print_note(
            "The server is asked a few small questions, which costs some hundred tokens; --offline: what is free."
        )
    ask = partial(
        diagnostics.check_url,
        config,
        base_url(arguments.url),
        key=key,
        model=arguments.model,
        costs=not arguments.offline,
    )
    return trio.run(ask)


def base_url(text: str) -> str:
    """The base URL that is meant: `/v1` where there is no path."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ConfigError(f"{text!r} is not http(s)://host[:port]/path without a query or a password.")
    return f"{text.rstrip('/')}{'' if parts.path.strip('/') else '/v1'}"
