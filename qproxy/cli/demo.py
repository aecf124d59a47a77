"""`qproxy demo`."""

from __future__ import annotations

import argparse

from qproxy.cli.help import HelpPage
from qproxy.cli.output import print_result

HELP = "try qproxy on the built-in emulator, without an account"
PAGE = HelpPage(
    about="""Show the whole way on this machine, without an account or a network: the built-in Qwen emulator, qproxy in front of it,
    one streamed question with a tool call, one for which the server itself runs a tool in its sandbox. Then go on serving.""",
    examples={
        "qproxy demo": "show it, then serve the emulator's models on port 8787",
        "qproxy demo --once --port 0": "show it and stop, on any free port",
    },
    files={},
    environment={},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=int, default=8787, help="port to listen on (default 8787; 0 takes a free one)"
    )
    parser.add_argument("--once", action="store_true", help="stop after the answer instead of serving on")


def run(arguments: argparse.Namespace) -> int:
    from qproxy.emulator import demo

    return demo.run(arguments.port, arguments.once, print_result)
