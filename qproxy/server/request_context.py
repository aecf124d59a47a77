"""The request being served: what is known of it, wherever it is asked.

All of it lives in the request's ASGI scope, so it ends with the request.  The scope is found by a context variable,
which is set by whoever begins to serve a request: a request has a task of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import trio

from qproxy.access.api_keys import ApiKey
from qproxy.telemetry import RequestRecord

Default = TypeVar("Default")
MAX_LOGGED_PATH = 200
"""What a log line and an error repeat of a path that a client made up."""
_scope: ContextVar[dict[str, Any]] = ContextVar("qproxy.request")


class Headers:
    """The header fields of a request, by name in whatever case; the first of several with one name."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[bytes, bytes] = {}
        for name, value in raw:
            self._values.setdefault(name.lower(), value)

    def __repr__(self) -> str:
        return f"<Fields {', '.join(name.decode('latin-1') for name in self._values)}>"

    def __contains__(self, name: str) -> bool:
        return name.lower().encode() in self._values

    def get(self, name: str, default: Default | None = None) -> str | Default | None:
        """A field's value as text."""
        value = self._values.get(name.lower().encode())
        return default if value is None else value.decode("latin-1")


def bind(
    scope: Any, stack: AsyncExitStack, nursery: trio.Nursery, body: Callable[[], Awaitable[bytes]]
) -> None:
    """Serve this request from here on, in this task and its children."""
    scope["qproxy.stack"] = stack
    scope["qproxy.nursery"] = nursery
    stack.callback(scope.pop, "qproxy.nursery")  # it refers to the task, whose context refers to the scope
    scope["qproxy.body"] = body
    scope["qproxy.headers"] = Headers(scope["headers"])
    _scope.set(scope)


def scope() -> dict[str, Any]:
    """The request's ASGI scope."""
    return _scope.get()


def headers() -> Headers:
    """The request's header fields."""
    return cast("Headers", scope()["qproxy.headers"])


async def body() -> bytes:
    """The request's whole body; a RequestError when it is too large or too slow."""
    return cast("bytes", await scope()["qproxy.body"]())


def peer() -> tuple[str | None, Iterable[tuple[bytes, bytes]]]:
    """The address of the socket's other end, None for a Unix socket, and the header fields as they came."""
    here = scope()
    client = here.get("client")
    return None if client is None else str(client[0]), here["headers"]


def allow_receive() -> None:
    """Let a WebSocket's next message be read."""
    scope()["qproxy.listen"]()


def stack() -> AsyncExitStack:
    """What closes everything that is opened for the request, whatever happens."""
    return cast("AsyncExitStack", scope()["qproxy.stack"])


def nursery() -> trio.Nursery:
    """What owns the tasks beside the request's handler; cancelled when the client leaves or the answer is whole."""
    return cast("trio.Nursery", scope()["qproxy.nursery"])


def record() -> RequestRecord:
    """The request's record, begun when it is first asked for."""
    here = scope()
    if "qproxy.record" not in here:
        path = here["path"][:MAX_LOGGED_PATH]
        here["qproxy.record"] = RequestRecord("req_" + secrets.token_hex(16), here.get("method", "GET"), path)
    return cast("RequestRecord", here["qproxy.record"])


def api_key() -> ApiKey | None:
    """Whose request it is, where that is asked."""
    return cast("ApiKey | None", scope().get("qproxy.key"))
