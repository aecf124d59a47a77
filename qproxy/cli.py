"""The command line: `qproxy serve`, `demo`, `reload` and `keys`.

Options of `serve` are derived from the table of settings.  This is the only room that prints.
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qproxy import config as configuration
from qproxy import keys
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
    reload = commands.add_parser(
        "reload", help="have a running server read its settings, keys and accounts again"
    )
    reload.add_argument("--port", type=int, default=8787, help="the port that it serves (default 8787)")
    _keys_parser(commands.add_parser("keys", help="make, list and revoke the keys of your clients"))
    return parser


def _keys_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="PATH", help="configuration file that may name keys_file")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key; it is shown once and kept nowhere")
    create.add_argument("--name", default="", help="what the list calls it")
    create.add_argument("--rpm", type=_count, help="requests a minute")
    create.add_argument("--tpm", type=_count, help="tokens a minute, in and out")
    create.add_argument(
        "--models", default="", help="patterns of the models that it may ask for, comma-separated"
    )
    create.add_argument("--expires", metavar="WHEN", help="a span (12h, 30d) or a date (2027-01-31, UTC)")
    actions.add_parser("list", help="show what is known of every key")
    revoke = actions.add_parser("revoke", help="refuse a key from now on")
    revoke.add_argument("key", help="its id or its name")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _keys(arguments: argparse.Namespace) -> int:
    path = Path(configuration.load(path=arguments.config).keys_file or "")
    now = time.time()
    if arguments.action == "list":
        for line in keys.table(keys.read(path), now):
            say(line)
    elif arguments.action == "revoke":
        say(
            f"Revoked {keys.revoke(path, arguments.key).id}. A running server refuses it from its next request on."
        )
    else:
        try:
            expires = keys.until(arguments.expires, now) if arguments.expires else None
        except ValueError:
            raise ConfigError(
                f"--expires: {arguments.expires!r} is neither a span (30d) nor a date."
            ) from None
        models = tuple(word.strip() for word in arguments.models.split(",") if word.strip())
        key, secret = keys.create(
            path, name=arguments.name, rpm=arguments.rpm, tpm=arguments.tpm, models=models, expires=expires
        )
        print(f"{key.id}, in {path}. This is the key; it is not shown again:", file=sys.stderr)
        say(secret)
    return 0


def _reload(port: int) -> int:
    from qproxy import reloading

    taken_up, said = reloading.ask_to_reload(configuration.home(), port)
    print(f"qproxy: {said}", file=sys.stdout if taken_up else sys.stderr)
    return 0 if taken_up else 1


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
        if arguments.command == "keys":
            return _keys(arguments)
        if arguments.command == "reload":
            return _reload(arguments.port)

        def read() -> configuration.Config:
            return configuration.load(path=arguments.config, flags=_flags(arguments))

        config = read()
        config.check()
        from qproxy import serving

        return serving.run(config, say, read)
    except (ConfigError, keys.KeyFileError) as error:
        print(f"qproxy: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"qproxy: {error}", file=sys.stderr)
        return 1
