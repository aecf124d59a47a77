"""The request being served: what is known of it, wherever it is asked.

All of it lives in the request's ASGI scope, so it ends with the request and needs no variable of its own.
"""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from typing import Any, cast

import trio
from quart import request

from qproxy.keys import Key
from qproxy.observe import Record

LONGEST_PATH = 200
"""What a log line and an error repeat of a path that a client made up."""


def scope() -> dict[str, Any]:
    """The request's ASGI scope."""
    return cast("dict[str, Any]", request.scope)


def stack() -> AsyncExitStack:
    """What closes everything that is opened for the request, whatever happens."""
    return cast("AsyncExitStack", scope()["qproxy.stack"])


def nursery() -> trio.Nursery:
    """Where what goes on beside the request's handler runs; cancelled with the request."""
    return cast("trio.Nursery", scope()["qproxy.nursery"])


def record() -> Record:
    """The request's record, begun when it is first asked for."""
    here = scope()
    if "qproxy.record" not in here:
        path = request.path[:LONGEST_PATH]
        here["qproxy.record"] = Record("req_" + secrets.token_hex(16), request.method, path)
    return cast("Record", here["qproxy.record"])


def client() -> Key | None:
    """Whose request it is, where that is asked."""
    return cast("Key | None", scope().get("qproxy.key"))
