"""`qproxy reload`: make a running server reload its configuration."""

from __future__ import annotations

import argparse

from qproxy import config as configuration
from qproxy.cli.arguments import port
from qproxy.cli.help import DONE, VARIABLES, HelpPage
from qproxy.cli.output import print_error, print_result
from qproxy.system import pidfile

HELP = "make a running server reload its settings, keys and accounts"
PAGE = HelpPage(
    about="""Make the server of this data directory reload its settings, keys and accounts. No stream
    is dropped. If the new configuration is invalid, the error is printed and the server keeps the current
    one.""",
    examples={
        "qproxy reload": "the server of this data directory",
        "qproxy reload --port 8080": "one of several",
    },
    exits={**DONE, 1: "no such server is running, or it kept its configuration"},
    files={"$QPROXY_HOME/serving-PORT.json": "process that serves a port, and the result of its last reload"},
    environment={"QPROXY_HOME": VARIABLES["QPROXY_HOME"]},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=port, help="port of the server, if several of them are running")


def run(arguments: argparse.Namespace) -> int:
    applied, message = pidfile.request_reload(configuration.data_dir(), arguments.port)
    if not applied:
        print_error(message)
        return 1
    print_result(f"qproxy: {message}")
    return 0
