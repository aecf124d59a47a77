"""`qproxy serve`: its options are the table of settings.

Here: the options, and whether this process serves, is one of several workers, or supervises them.  What each of these
does is in `process.serve` and `process.supervisor`, imported when it is known which.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import Any

from qproxy import config as configuration
from qproxy import process
from qproxy.backends.api_keys import has_api_keys
from qproxy.cli.help import CONFIGURATION, VARIABLES, HelpPage
from qproxy.cli.output import print_result
from qproxy.config.renames import RENAMED_SETTINGS

HELP = "serve your accounts"
PAGE = HelpPage(
    about="""Serve OpenAI's API from your Qwen accounts, until SIGINT or SIGTERM. Every option is also a key of qproxy.toml
    and a variable QPROXY_NAME; flags win over variables, variables over the file. `qproxy check` says beforehand whether it
    would work.

    The first signal stops new requests and lets those under way finish (graceful_timeout), a second one ends at once. SIGHUP,
    or `qproxy reload`, reads the settings again without dropping a stream.""",
    examples={
        "DASHSCOPE_API_KEY=sk-... qproxy serve": "Model Studio in Singapore; QPROXY_REGION names another region",
        "qproxy serve --upstream http://127.0.0.1:8080/v1": "a Qwen server of your own",
        "qproxy serve --workers 0": "a process for each core, supervised",
        "qproxy serve --config /etc/qproxy/qproxy.toml --log-format json": "as a service (docs/deploy/)",
    },
    exits={
        0: "stopped by a signal",
        1: "the address cannot be served, or the server broke",
        2: "wrong usage or configuration",
    },
    files={
        **CONFIGURATION,
        "$QPROXY_HOME/keys.json": "keys of clients (`qproxy keys`)",
        "$QPROXY_HOME/accounts/": "tokens of signed-in accounts (`qproxy login`)",
        "$QPROXY_HOME/accounts.db": "what is known of the accounts, shared by all processes",
        "$QPROXY_HOME/meters": "what keys have left of their limits a minute, shared by all processes",
        "$QPROXY_HOME/wrong_keys": "what addresses have left of their wrong keys a minute, shared by all processes",
        "$QPROXY_HOME/access.sqlite3": "digests of the dashboard's sessions and of accepted keys, shared by all processes",
        "$QPROXY_HOME/ledger.sqlite3": "who used how much (`qproxy usage`)",
        "$QPROXY_HOME/responses.sqlite3": "stored responses",
    },
    environment={
        **VARIABLES,
        "DASHSCOPE_API_KEY": "a key; with no accounts configured it is one by itself, like the keys of the plans: BAILIAN_CODING_PLAN_API_KEY, BAILIAN_TOKEN_PLAN_API_KEY",
        "HTTPS_PROXY, NO_PROXY": "the proxy to reach upstreams, unless the setting proxy names one",
    },
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="PATH", help="configuration file (default: qproxy.toml, if there is one)"
    )
    for name, item in configuration.SETTINGS.items():
        flag, text = f"--{name.replace('_', '-')}", item.metadata["help"].replace("%", "%%")
        if configuration.TYPES[name] is bool:
            parser.add_argument(flag, dest=name, action="store_const", const="true", help=text)
        else:
            parser.add_argument(flag, dest=name, metavar=name.rpartition("_")[2].upper(), help=text)
    for name in RENAMED_SETTINGS:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, action=_RefuseRenamed, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # what a supervisor gives its workers


class _RefuseRenamed(argparse.Action):
    """Ends with the error that says how a flag is named now."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: object,
        values: object,
        option_string: str | None = None,
    ) -> None:
        name = self.option_strings[0].removeprefix("--").replace("-", "_")
        parser.error(f"{name!r} was renamed to {RENAMED_SETTINGS[name]!r}.")


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in configuration.SETTINGS}
    return {
        name: configuration.parse(name, text, f"--{name.replace('_', '-')}")
        for name, text in given.items()
        if text is not None
    }


def run(arguments: argparse.Namespace) -> int:
    def read() -> configuration.Config:
        return configuration.load(path=arguments.config, flags=_flags(arguments))

    config = read()
    config.check(has_api_keys)
    if arguments.worker is None and process.worker_count(config.workers) > 1:
        from qproxy.process import supervisor

        return supervisor.run(config, _command(arguments), print_result)
    gc.disable()  # what is imported stays: to look through it again and again for garbage is a tenth of the start
    from qproxy.process import serve
    from qproxy.process.channel import WorkerSpec

    gc.freeze()
    gc.enable()
    return serve.run(config, print_result, read, arguments.worker and WorkerSpec.parse(arguments.worker))


def _command(arguments: argparse.Namespace) -> list[str]:
    """This command once more, by the same Python and with the same modules to import."""
    given = {name: getattr(arguments, name) for name in ("config", *configuration.SETTINGS)}
    flags = [
        f"--{name.replace('_', '-')}" + ("" if configuration.TYPES.get(name) is bool else f"={text}")
        for name, text in given.items()
        if text is not None
    ]
    safely = [] if os.getcwd() in sys.path or "" in sys.path else ["-P"]
    return [sys.executable, *safely, "-m", "qproxy", "serve", *flags]
