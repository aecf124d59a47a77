"""A fast path around Quart's router for requests to models: the same views, called directly from ASGI.

For every request, Quart makes a request, two contexts, a session, a response, and a task that waits for the
client to disconnect: as much work as everything else together. Other requests, and apps with custom hooks,
use Quart's router.

Every request has a nursery, which owns the tasks beside the handler (tools, the task that waits for the
disconnect) and whose cancel scope ends the request when the client disconnects: called by our Hypercorn's
HTTP stream if there is one, otherwise by that task at ASGI's message.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import trio

from qproxy.server import error_handlers, request_context
from qproxy.server.http_response import HTTPResponse
from qproxy.server.middleware import RequestMiddleware
from qproxy.server.request_body import (
    BodyDeadline,
    RequestLimits,
    body_timeout,
    body_too_large,
    upload_too_large,
)
from qproxy.server.request_context import ROOT_PATH
from qproxy.server.state import Route, StateHolder
from qproxy.wire.errors import QproxyError

HTTP_STREAM = "qproxy.http_stream"
"""ASGI extension of our Hypercorn: it calls `on_disconnect` when the client disconnects, or at once if it
already has."""
LENGTH_DIGITS = 18
"""Digits of a Content-Length: other ASGI servers may pass more than `int` accepts."""


class FastPath:
    """An ASGI app in front of another one."""

    def __init__(
        self,
        server: StateHolder,
        middleware: RequestMiddleware,
        routes: Mapping[str, Route],
        fallback: Callable[..., Awaitable[None]],
        is_eligible: Callable[[], bool],
    ) -> None:
        self._server = server
        self._middleware = middleware
        self._routes = {path: route for path, route in routes.items() if "<id>" not in path}
        self._item_routes = {path: route for path, route in routes.items() if "<id>" in path}
        self._fallback = fallback
        self._is_eligible = is_eligible

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if "path" in scope and (root := self._server.state.root_path or scope.get("root_path", "")):
            scope = _below_root(scope, root)
        route = None
        if scope["type"] == "http" and scope["method"] == "POST" and self._is_eligible():
            route = self._routes.get(scope["path"]) or self._route_of_item(scope["path"])
        if route is None:
            await self._fallback(scope, receive, send)
            return
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            incoming = _RequestReader(receive, nursery.cancel_scope, scope["extensions"].get(HTTP_STREAM))
            request_context.bind(
                scope,
                stack,
                nursery,
                partial(self._receive_body, incoming),
                partial(self._receive_pieces, incoming),
            )
            await self._serve(route, send)
            nursery.cancel_scope.cancel()  # the response is complete, or the client has disconnected

    def _route_of_item(self, path: str) -> Route | None:
        """Return the route of `.../<id>/...`, with a view for this id."""
        above, _, last = path.rpartition("/")
        above, _, id_ = above.rpartition("/")
        route = self._item_routes.get(f"{above}/<id>/{last}")
        return None if route is None else replace(route, view=partial(route.view, id_))

    async def _serve(self, route: Route, send: Any) -> None:
        reply = await respond(self._middleware, route)
        await send(
            {"type": "http.response.start", "status": reply.status, "headers": self._response_headers(reply)}
        )
        body = reply.body
        del reply  # a stream may last
        if isinstance(body, bytes):
            await send({"type": "http.response.body", "body": body})
            return
        more = True
        async for piece in body:
            more = not body.finished
            await send({"type": "http.response.body", "body": piece, "more_body": more})
            del piece  # waiting for the next one may take long
        if more:  # the last chunk was not known to be the last
            await send({"type": "http.response.body", "body": b""})

    def _response_headers(self, reply: HTTPResponse) -> list[tuple[bytes, bytes]]:
        headers = reply.headers
        headers["content-type"] = reply.content_type
        if isinstance(reply.body, bytes):
            headers["content-length"] = str(len(reply.body))
        self._middleware.on_response(reply.status, headers)
        return [(name.encode(), value.encode()) for name, value in headers.items()]

    async def _receive_pieces(self, incoming: _RequestReader, max_bytes: int) -> AsyncGenerator[bytes, None]:
        limits = self._server.state.request_limits
        if _declares_more(max_bytes):
            raise upload_too_large(max_bytes)
        deadline = BodyDeadline(limits)
        size, more = 0, True
        while more:
            piece = None
            with trio.move_on_at(deadline.scope.deadline):
                piece, more = await incoming.receive()
            if piece is None:
                raise body_timeout(limits)
            size += len(piece)
            if size > max_bytes:
                raise upload_too_large(max_bytes)
            yield piece
            deadline.extend(size)

    async def _receive_body(self, incoming: _RequestReader) -> bytes:
        limits = self._server.state.request_limits
        if _declares_more(limits.max_body_bytes):
            raise body_too_large(limits)
        if incoming.is_complete():
            return await incoming.body(limits)
        deadline = BodyDeadline(limits)
        with deadline.scope:
            return await incoming.body(limits, deadline)
        raise body_timeout(limits)


async def respond(middleware: RequestMiddleware, route: Route) -> HTTPResponse:
    """Return the response of a route to the current request, which may be an error."""
    try:
        middleware.on_request(route.path, route)
        await middleware.authorize(route.access)
        reply: HTTPResponse = await route.view()
    except QproxyError as error:
        return error_handlers.error_response(error)
    except Exception as error:
        return error_handlers.internal_error_response(error)
    except BaseExceptionGroup as group:
        faults = group.split(trio.Cancelled)[1]
        if not isinstance(faults, ExceptionGroup):
            raise
        return error_handlers.internal_error_response(faults)
    return reply


def _declares_more(max_bytes: int) -> bool:
    """Return whether the head of the request declares a longer body."""
    length = request_context.headers().get("content-length") or ""
    return length.isdecimal() and (len(length) > LENGTH_DIGITS or int(length) > max_bytes)


def _below_root(scope: Any, root: str) -> Any:
    """Return the scope with its path below `root`, which a reverse proxy may have removed already."""
    path = scope["path"]
    below = path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path
    return {**scope, "path": below or "/", "root_path": "", ROOT_PATH: root}  # Quart would remove it again


class _RequestReader:
    """Receives the client's body, and then its disconnect."""

    def __init__(self, receive: Any, request_scope: trio.CancelScope, http_stream: Any) -> None:
        self._receive = receive
        self._request_scope = request_scope
        self._http_stream = http_stream
        if http_stream is not None:
            http_stream.on_disconnect = request_scope.cancel

    def is_complete(self) -> bool:
        """Return whether the whole body has arrived, so that reading it cannot wait."""
        return self._http_stream is not None and self._http_stream.request_complete

    async def receive(self) -> tuple[bytes, bool]:
        """Return the next piece of the body, and whether there are more."""
        message = await self._receive()
        if message["type"] != "http.request":
            await self._on_disconnect()
            return b"", False
        more = message.get("more_body", False)
        if not more and self._http_stream is None:
            request_context.nursery().start_soon(self._watch)
        return message.get("body", b""), more

    async def body(self, limits: RequestLimits, deadline: BodyDeadline | None = None) -> bytes:
        """Return the whole body.  Raises RequestError when it is too large."""
        pieces, size = [], 0
        while (message := await self._receive())["type"] == "http.request":
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limits.max_body_bytes:
                raise body_too_large(limits)
            if deadline is not None:
                deadline.extend(size)
            if not message.get("more_body", False):
                if self._http_stream is None:
                    request_context.nursery().start_soon(self._watch)
                return b"".join(pieces)
        await self._on_disconnect()
        return b""

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        await self._on_disconnect()

    async def _on_disconnect(self) -> None:
        self._request_scope.cancel()
        await trio.lowlevel.checkpoint()
