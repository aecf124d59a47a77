"""`qproxy qwen`: Qwen Code with this server."""

from __future__ import annotations

from functools import partial

from qproxy.cli import client_programs
from qproxy.cli.client_programs import QWEN, add

__all__ = ["HELP", "PAGE", "add", "run"]

HELP = "print the settings with which Qwen Code uses this server, or start it with them"
PAGE = client_programs.page(QWEN, '-p "Hello"')
run = partial(client_programs.run, QWEN)
