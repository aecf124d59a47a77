"""`qproxy check`: find problems and suggest fixes.

The checks themselves are in `qproxy.diagnostics`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from qproxy import config as configuration
from qproxy.cli.help import HelpPage
from qproxy.cli.output import Color, colored, output_width, print_note, print_result
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.urls import complete_base_url, split_url

if TYPE_CHECKING:
    from qproxy.diagnostics import Finding

HELP = "diagnose settings, accounts and servers, and suggest fixes"
PAGE = HelpPage(
    about="""Check this machine, the settings, the tools and every account, and print one line per check with
    a fix where it failed. It uses the server's own code and changes nothing. Each account gets a few small
    requests, which cost a few hundred tokens.

    With a URL, check any OpenAI-compatible server instead: its responses are compared with OpenAI's contract,
    and each violation is named by its rule (qproxy help check).""",
    examples={
        "qproxy check": "check everything",
        "qproxy check --offline": "make no connections",
        "qproxy check --cost": "say what would have saved most",
        "qproxy check http://127.0.0.1:8080/v1 --model my-model": "check your own Qwen server",
        "qproxy check https://example.com/v1 --key - < key.txt": "read the key from standard input",
    },
    exits={
        0: "no check failed (there may be warnings)",
        1: "a check failed",
        2: "wrong usage, or an invalid configuration",
    },
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url", nargs="?", help="base URL of an OpenAI-compatible server to check instead of your accounts"
    )
    parser.add_argument("--key", help="API key for the server; - reads it from standard input")
    parser.add_argument(
        "--model", help="model to test (default: default_model, otherwise the cheapest listed)"
    )
    parser.add_argument("--config", metavar="PATH", help="configuration file")
    parser.add_argument(
        "--offline",
        action="store_true",
        help="make no connections; with a URL, send only requests that cost nothing",
    )
    parser.add_argument(
        "--cost", action="store_true", help="say what would have saved most, from the usage ledger"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from qproxy import diagnostics

    try:
        findings = _findings(arguments)
    except ConfigError as error:
        findings = [
            diagnostics.Finding(
                "configuration", "settings", "failed", str(error), "see: qproxy help configuration"
            )
        ]
    if arguments.json:
        print_result(json.dumps(diagnostics.fields(findings), indent=1, ensure_ascii=False))
    else:
        for line in diagnostics.lines(findings, output_width(), _colored_state):
            print_result(line)
    return diagnostics.exit_code(findings)


def _colored_state(text: str, state: str) -> str:
    colors: dict[str, Color] = {"ok": "green", "warning": "yellow", "failed": "red"}
    return colored(text, colors.get(state))


def _findings(arguments: argparse.Namespace) -> Sequence[Finding]:
    config = configuration.load(path=arguments.config)
    if arguments.model is not None:
        config = replace(config, default_model=arguments.model)
    if arguments.url is not None:
        return _check_url(config, arguments)
    if arguments.key is not None:
        raise ConfigError("--key requires the URL of a server.")
    if arguments.cost:
        from qproxy.diagnostics.costs import check_costs

        return trio.run(check_costs, config)
    return _check_server(config, arguments)


def _check_server(config: Config, arguments: argparse.Namespace) -> Sequence[Finding]:
    from qproxy import diagnostics

    if not arguments.offline:
        print_note(
            "Sending a few small requests per account (a few hundred tokens each); --offline sends none."
        )
    file = configuration.config_file(arguments.config)
    return trio.run(
        partial(diagnostics.run_checks, config, configuration.data_dir(), file, offline=arguments.offline)
    )


def _check_url(config: Config, arguments: argparse.Namespace) -> Sequence[Finding]:
    from qproxy import diagnostics

    url = base_url(arguments.url)
    if url != arguments.url.rstrip("/"):
        print_note(f"The URL has no path; checking {url}.")
    key = sys.stdin.readline().strip() if arguments.key == "-" else arguments.key
    if not arguments.offline:
        print_note("Sending a few small requests (a few hundred tokens); --offline sends only free ones.")
    check = partial(
        diagnostics.check_url,
        config,
        url,
        key=key,
        model=arguments.model,
        costs=not arguments.offline,
    )
    return trio.run(check)


def base_url(text: str) -> str:
    """Return the base URL with /v1 if it has no path. Raises ConfigError."""
    if split_url(text) is None:
        raise ConfigError(f"{text!r}: must be http(s)://host[:port]/path, without a query or password.")
    return complete_base_url(text)
