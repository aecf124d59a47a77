"""`qproxy serve`: run the server; its options are the table of settings.

This module decides whether the process serves, is one of several workers, or supervises them; `process.serve`
and `process.supervisor` do the rest and are imported only when needed.
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
    about="""Serve OpenAI's API from your Qwen accounts until SIGINT or SIGTERM. Every option is also a key of
    qproxy.toml and a variable QPROXY_NAME; flags override variables, variables override the file. Lists are
    comma-separated, tables are a=b,c=d. `qproxy check` tests the configuration beforehand.

    The first signal rejects new requests and lets requests in flight finish (graceful_timeout); a second one
    quits immediately. SIGHUP, or `qproxy reload`, reloads the settings without dropping a stream.""",
    examples={
        "DASHSCOPE_API_KEY=sk-... qproxy serve": "Model Studio in Singapore; QPROXY_REGION selects another "
        "region",
        "qproxy serve --upstream http://127.0.0.1:8080/v1": "your own Qwen server",
        "qproxy serve --workers 0": "one worker process per CPU core",
        "qproxy serve --config /etc/qproxy/qproxy.toml --log-format json": "a service (qproxy help deploy)",
    },
    exits={
        0: "stopped by a signal",
        1: "cannot listen on the address, or the server failed",
        2: "wrong usage or configuration",
    },
    files={
        **CONFIGURATION,
        "$QPROXY_HOME/keys.json": "API keys of clients (`qproxy keys`)",
        "$QPROXY_HOME/accounts/": "tokens of oauth accounts (`qproxy login`)",
        "$QPROXY_HOME/accounts.db": "states of the accounts, shared by all processes",
        "$QPROXY_HOME/meters": "rate limits of the API keys, shared by all processes",
        "$QPROXY_HOME/wrong_keys": "rate limits for wrong keys, shared by all processes",
        "$QPROXY_HOME/access.sqlite3": "digests of dashboard sessions and accepted keys",
        "$QPROXY_HOME/ledger.sqlite3": "usage ledger (`qproxy usage`)",
        "$QPROXY_HOME/responses.sqlite3": "stored responses",
    },
    environment={
        **VARIABLES,
        "DASHSCOPE_API_KEY": (
            "key of an account, if none is configured; "
            "likewise BAILIAN_CODING_PLAN_API_KEY and BAILIAN_TOKEN_PLAN_API_KEY"
        ),
        "HTTPS_PROXY, NO_PROXY": "outbound proxy, unless the setting proxy names one",
    },
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--config PATH] [--SETTING VALUE ...]"
    parser.add_argument(
        "--config", metavar="PATH", help="configuration file (default: qproxy.toml, if it exists)"
    )
    for title, names in configuration.setting_groups().items():
        group = parser.add_argument_group(title)
        for name in names:
            _add_setting(group, name)
    for name in RENAMED_SETTINGS:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, action=_RejectRenamed, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # set by the supervisor


def _add_setting(group: argparse._ArgumentGroup, name: str) -> None:
    """Add the flag of a setting; a boolean one also gets its `--no-` form."""
    flag, default = f"--{name.replace('_', '-')}", configuration.default_text(name)
    text = configuration.SETTINGS[name].metadata["help"] + (f" (default: {default})" if default else "")
    text = text.replace("%", "%%")
    if configuration.TYPES[name] is bool:
        group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
    else:
        group.add_argument(flag, dest=name, metavar=name.rpartition("_")[2].upper(), help=text)


class _RejectRenamed(argparse.Action):
    """Exit with an error that names the new flag."""

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
    """Return the values of the settings that have flags on the command line. Raises ConfigError."""
    values = {name: getattr(arguments, name) for name in configuration.SETTINGS}
    return {
        name: configuration.parse(name, value, f"--{name.replace('_', '-')}")
        if isinstance(value, str)
        else value
        for name, value in values.items()
        if value is not None
    }


def run(arguments: argparse.Namespace) -> int:
    def read() -> configuration.Config:
        return configuration.load(path=arguments.config, flags=_flags(arguments))

    if arguments.worker is None:
        config = read()
        config.check(has_api_keys)
        if process.worker_count(config.workers) > 1:
            from qproxy.process import supervisor

            return supervisor.run(config, _command(arguments), print_result)
    gc.disable()  # imported modules stay: collecting garbage while importing takes a tenth of the start
    from qproxy.process import serve
    from qproxy.process.channel import WorkerSpec

    gc.freeze()
    gc.enable()
    spec = None
    if arguments.worker is not None:
        spec = WorkerSpec.parse(arguments.worker)
        config = spec.read_settings()
    return serve.run(config, print_result, read, spec, configuration.config_file(arguments.config))


def _command(arguments: argparse.Namespace) -> list[str]:
    """Return the command line of a worker: the same Python, the same import path, the same flags."""
    values = {name: getattr(arguments, name) for name in ("config", *configuration.SETTINGS)}
    flags = [_flag(name, value) for name, value in values.items() if value is not None]
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # deleted
        folder = ""
    safely = [] if folder in sys.path or "" in sys.path else ["-P"]
    return [sys.executable, *safely, "-m", "qproxy", "serve", *flags]


def _flag(name: str, value: str | bool) -> str:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option}={value}"
