"""`qproxy reload`."""

from __future__ import annotations

import argparse

from qproxy import config as configuration
from qproxy.cli.help import DONE, VARIABLES, HelpPage
from qproxy.cli.output import print_error, print_result
from qproxy.system import pidfile

HELP = "have a running server read its settings, keys and accounts again"
PAGE = HelpPage(
    about="""Have the server of this data directory and port read its settings, keys and accounts again. No stream is dropped. Settings that
    cannot be served change nothing, and are said here.""",
    examples={
        "qproxy reload": "the server on port 8787",
        "qproxy reload --port 8080": "the one on another port",
    },
    exits={**DONE, 1: "there is no such server, or it kept its old settings"},
    files={"$QPROXY_HOME/serving-PORT.json": "which process serves a port, and how its last reload went"},
    environment={"QPROXY_HOME": VARIABLES["QPROXY_HOME"]},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8787, help="the port that it serves (default 8787)")


def run(arguments: argparse.Namespace) -> int:
    taken_up, message = pidfile.request_reload(configuration.data_dir(), arguments.port)
    if not taken_up:
        print_error(message)
        return 1
    print_result(f"qproxy: {message}")
    return 0
