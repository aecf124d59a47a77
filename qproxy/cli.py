"""The command line: `qproxy serve` and `qproxy demo`.

Options of `serve` are derived from the table of settings.  This is the only room that prints.
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from qproxy import config as configuration
from qproxy.presets import ConfigError
from qproxy.version import VERSION


def say(line: str) -> None:
    """One line for the person at the terminal."""
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qproxy", description="An OpenAI-compatible server for Qwen models."
    )
    parser.add_argument("--version", action="version", version=f"qproxy {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve your accounts",
        description="Serve OpenAI's API from Qwen accounts. Every option is also a key of qproxy.toml and a "
        "variable QPROXY_NAME; flags win over variables, variables over the file.",
    )
    serve.add_argument(
        "--config", metavar="PATH", help="configuration file (default: qproxy.toml, if there is one)"
    )
    for name, item in configuration.SETTINGS.items():
        flag, text = f"--{name.replace('_', '-')}", item.metadata["help"].replace("%", "%%")
        if configuration.type_of(name) is bool:
            serve.add_argument(flag, dest=name, action="store_const", const="true", help=text)
        else:
            serve.add_argument(flag, dest=name, metavar=name.rpartition("_")[2].upper(), help=text)
    demo = commands.add_parser("demo", help="try qproxy on the built-in emulator, without an account")
    demo.add_argument(
        "--port", type=int, default=8787, help="port to listen on (default 8787; 0 takes a free one)"
    )
    demo.add_argument("--once", action="store_true", help="stop after the answer instead of serving on")
    return parser


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in configuration.SETTINGS}
    return {
        name: configuration.parse(name, text, f"--{name.replace('_', '-')}")
        for name, text in given.items()
        if text is not None
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "demo":
            from qproxy import demo  # late: `--help` should not wait for the server's imports

            return demo.run(arguments.port, arguments.once, say)
        config = configuration.load(path=arguments.config, flags=_flags(arguments))
        config.check()
        from qproxy import serving

        return serving.run(config, say)
    except ConfigError as error:
        print(f"qproxy: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"qproxy: {error}", file=sys.stderr)
        return 1
