"""`qproxy serve`: its options are the table of settings."""

from __future__ import annotations

import argparse
from typing import Any

from qproxy import config as configuration
from qproxy.cli.saying import say

HELP = "serve your accounts"


def add(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve OpenAI's API from Qwen accounts. Every option is also a key of qproxy.toml and a variable "
        "QPROXY_NAME; flags win over variables, variables over the file."
    )
    parser.add_argument(
        "--config", metavar="PATH", help="configuration file (default: qproxy.toml, if there is one)"
    )
    for name, item in configuration.SETTINGS.items():
        flag, text = f"--{name.replace('_', '-')}", item.metadata["help"].replace("%", "%%")
        if configuration.TYPES[name] is bool:
            parser.add_argument(flag, dest=name, action="store_const", const="true", help=text)
        else:
            parser.add_argument(flag, dest=name, metavar=name.rpartition("_")[2].upper(), help=text)


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
    config.check()
    from qproxy import serving  # late: `--help` should not wait for the server's imports

    return serving.run(config, say, read)
