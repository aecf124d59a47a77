"""`qproxy serve`: its options are the table of settings."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import Any

from qproxy import config as configuration
from qproxy import workers
from qproxy.cli.saying import say


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
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # what a supervisor gives its workers


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
    if arguments.worker is None and workers.count(config.workers) > 1:
        from qproxy.workers import supervisor  # late: `--help` should not wait for it

        return supervisor.run(config, _command(arguments), say)
    gc.disable()  # what is imported stays: to look through it again and again for garbage is a tenth of the start
    from qproxy import process  # late, and more so
    from qproxy.workers.post import Place

    gc.freeze()
    gc.enable()
    return process.run(config, say, read, arguments.worker and Place.parse(arguments.worker))


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
