"""`qproxy reload`."""

from __future__ import annotations

import argparse

from qproxy import config as configuration
from qproxy import running
from qproxy.cli.saying import complain, say


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8787, help="the port that it serves (default 8787)")


def run(arguments: argparse.Namespace) -> int:
    taken_up, said = running.ask_to_reload(configuration.home(), arguments.port)
    if not taken_up:
        complain(said)
        return 1
    say(f"qproxy: {said}")
    return 0
