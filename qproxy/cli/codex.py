"""`qproxy codex`: Codex with this server."""

from __future__ import annotations

from functools import partial

from qproxy.cli import client_programs
from qproxy.cli.client_programs import CODEX, add

__all__ = ["HELP", "PAGE", "add", "run"]

HELP = "print the settings with which Codex uses this server, or start it with them"
PAGE = client_programs.page(CODEX, 'exec "Hello"')
run = partial(client_programs.run, CODEX)
