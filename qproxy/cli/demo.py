"""`qproxy demo`: run qproxy against the built-in emulator."""

from __future__ import annotations

import argparse

from qproxy.cli.arguments import port
from qproxy.cli.help import HelpPage
from qproxy.cli.output import print_result

HELP = "try qproxy on the built-in emulator, without an account"
PAGE = HelpPage(
    about="""Run an end-to-end demo on this machine, without an account or a network: the built-in Qwen
    emulator, qproxy in front of it, a streamed request with a tool call, and one for which the server runs a
    tool in its sandbox. Then keep serving.""",
    examples={
        "qproxy demo": "run it, then serve the emulator's models on port 8787",
        "qproxy demo --once --port 0": "run it on a free port and exit",
        "qproxy demo --once --raw": "print the bytes of the responses, too",
    },
    files={},
    environment={},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=port, default=8787, help="port to listen on (default: 8787; 0 selects a free one)"
    )
    parser.add_argument("--raw", action="store_true", help="print the lines of the responses, too")
    parser.add_argument("--once", action="store_true", help="exit after the demo instead of serving")


def run(arguments: argparse.Namespace) -> int:
    from qproxy.emulator import demo

    return demo.run(arguments.port, arguments.once, print_result, raw=arguments.raw)
