"""`qproxy demo`."""

from __future__ import annotations

import argparse

from qproxy.cli.saying import say


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=int, default=8787, help="port to listen on (default 8787; 0 takes a free one)"
    )
    parser.add_argument("--once", action="store_true", help="stop after the answer instead of serving on")


def run(arguments: argparse.Namespace) -> int:
    from qproxy import demo  # late: `--help` should not wait for the server's imports

    return demo.run(arguments.port, arguments.once, say)
