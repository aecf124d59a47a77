"""The request being served, found by a context variable.

Each request has a task of its own, which binds the context before the request is handled; child tasks inherit
it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import trio

from qproxy.access.api_keys import ApiKey
from qproxy.access.usage_limiter import UsageReservation
from qproxy.telemetry import RequestRecord
from qproxy.wire.endpoints import OPENAI, Api

Default = TypeVar("Default")
OWNER_EXTENSION = "qproxy.owner"
"""ASGI extension of requests that the server itself sends for a client: the digest of its API key."""
ROOT_PATH = "qproxy.root_path"
"""Key of the ASGI scope."""
MAX_LOGGED_PATH = 200
"""Characters of a client's path that log lines and errors repeat."""


class Headers:
    """The headers of a request, by case-insensitive name; the first of several with one name."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[bytes, bytes] = {}
        for name, value in raw:
            self._values.setdefault(name.lower(), value)

    def __repr__(self) -> str:
        return f"<Headers {', '.join(name.decode('latin-1') for name in self._values)}>"

    def __contains__(self, name: str) -> bool:
        return name.lower().encode() in self._values

    def get(self, name: str, default: Default | None = None) -> str | Default | None:
        """Return a header's value as text."""
        value = self._values.get(name.lower().encode())
        return default if value is None else value.decode("latin-1")


@dataclass(eq=False, slots=True)
class RequestContext:
    """The data of one request while it is served."""

    scope: dict[str, Any]
    """The ASGI scope."""
    headers: Headers
    record: RequestRecord
    stack: AsyncExitStack
    """Closes everything that is opened for the request."""
    nursery: trio.Nursery | None
    """Owns the tasks beside the handler; None once the request is finished."""
    read_body: Callable[[], Awaitable[bytes]]
    body_pieces: Callable[[int], AsyncGenerator[bytes, None]] | None = None
    """Yields a body as it arrives, up to a number of bytes; None where bodies are read at once."""
    allow_receive: Callable[[], None] | None = None
    """Lets the next message of a WebSocket be read."""
    api: Api = OPENAI
    """The API whose errors and headers the request gets; `RequestMiddleware.on_request` chooses it."""
    coding: str = ""
    """The content coding of the body; "" for none."""
    api_key: ApiKey | None = None
    """The client's key; None before authentication and on servers without keys."""
    limited_key: ApiKey | None = None
    """The client's key if the response describes its rate limits."""
    reservation: UsageReservation | None = None
    charged_tokens: int = 0
    """Tokens of a realtime session that its key has paid for already."""

    def release_nursery(self) -> None:
        """Drop the nursery: it refers to the task, whose context refers to this object."""
        self.nursery = None


_current: ContextVar[RequestContext] = ContextVar("qproxy.request")
current = _current.get
"""Return the context of the request being served."""


def bind(
    scope: Any,
    stack: AsyncExitStack,
    nursery: trio.Nursery,
    read_body: Callable[[], Awaitable[bytes]],
    body_pieces: Callable[[int], AsyncGenerator[bytes, None]] | None = None,
) -> RequestContext:
    """Make this the request of the current task and its children."""
    record = RequestRecord(
        "req_" + secrets.token_hex(16), scope.get("method", "GET"), scope["path"][:MAX_LOGGED_PATH]
    )
    context = RequestContext(scope, Headers(scope["headers"]), record, stack, nursery, read_body, body_pieces)
    stack.callback(context.release_nursery)
    _current.set(context)
    return context


def resume(context: RequestContext, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
    """Continue a request in the current task and its children, with another stack and nursery than its
    connection's."""
    _current.set(replace(context, stack=stack, nursery=nursery))


def scope() -> dict[str, Any]:
    """Return the request's ASGI scope."""
    return _current.get().scope


def root_path() -> str:
    """Return the path under which the client sees this server, "" without a prefix."""
    return str(_current.get().scope.get(ROOT_PATH, ""))


def headers() -> Headers:
    """Return the request's headers."""
    return _current.get().headers


async def body() -> bytes:
    """Return the request's whole body.  Raises RequestError when it is too large or too slow."""
    return await _current.get().read_body()


async def body_pieces(max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the request's body as it arrives. Raises RequestError when it is too large or too slow."""
    pieces = _current.get().body_pieces
    if pieces is None:
        yield await body()
        return
    async with aclosing(pieces(max_bytes)) as arriving:
        async for piece in arriving:
            yield piece


def peer() -> tuple[str | None, Iterable[tuple[bytes, bytes]]]:
    """Return the socket's peer address (None for a Unix socket) and the raw headers."""
    here = _current.get().scope
    client = here.get("client")
    return None if client is None else str(client[0]), here["headers"]


def allow_receive() -> None:
    """Let a WebSocket's next message be read."""
    allow = _current.get().allow_receive
    assert allow is not None, "not a WebSocket"
    allow()


def stack() -> AsyncExitStack:
    """Return the exit stack that closes everything opened for the request."""
    return _current.get().stack


def nursery() -> trio.Nursery:
    """Return the nursery of the tasks beside the handler; cancelled when the client disconnects or all is
    sent."""
    here = _current.get().nursery
    assert here is not None, "the request is finished"
    return here


def record() -> RequestRecord:
    """Return the request's record."""
    return _current.get().record


def api() -> Api:
    """Return the API whose errors and headers the request gets."""
    return _current.get().api


def api_key() -> ApiKey | None:
    """Return the client's API key; None where no keys are required."""
    return _current.get().api_key
