"""The way of requests that ask a model, beside Quart's router: the same views, with less between.

Quart makes a request, two contexts, a session and a response for every request, and a task that waits for the
client's end; that is as much work as all of the rest.  Here a view is called straight from ASGI.  What is not one of
these requests, as it is written most often, goes Quart's way, and so does all of it once somebody has added functions
of their own to the app (`plain`).

Every request has a nursery, which owns what runs beside the handler (a round's tools, the task that waits for the
client's leaving) and whose cancel scope ends the request when the client leaves: called by the server's `Exchange` where
there is one, else by that task, at ASGI's message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import trio

from qproxy.server import error_handlers, request_context
from qproxy.server.http_response import HTTPResponse
from qproxy.server.middleware import RequestMiddleware
from qproxy.server.state import Route, ServerState
from qproxy.wire.errors import QproxyError

HTTP_STREAM = "qproxy.exchange"
"""ASGI extension of our Hypercorn: `leave` is called when the client has left, or at once when it has already."""
LENGTH_DIGITS = 18
"""Of a content-length that is looked at: another ASGI server may pass on more digits than Python reads."""


class FastPath:
    """An ASGI app."""

    def __init__(
        self,
        state: ServerState,
        around: RequestMiddleware,
        routes: Mapping[str, Route],
        otherwise: Callable[..., Awaitable[None]],
        plain: Callable[[], bool],
    ) -> None:
        self._state = state
        self._middleware = around
        self._routes = routes
        self._fallback = otherwise
        self._is_eligible = plain

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        route = None
        if scope["type"] == "http" and scope["method"] == "POST" and self._is_eligible():
            route = self._routes.get(scope["path"])
        if route is None:
            await self._fallback(scope, receive, send)
            return
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            incoming = _RequestReader(receive, nursery.cancel_scope, scope["extensions"].get(HTTP_STREAM))
            request_context.bind(scope, stack, nursery, partial(self._send_body, incoming))
            await self._serve(route, send)
            nursery.cancel_scope.cancel()  # the answer is whole, or nobody waits for it any more

    async def _serve(self, route: Route, send: Any) -> None:
        reply = await self._send_response(route)
        await send({"type": "http.response.start", "status": reply.status, "headers": self._send_head(reply)})
        body = reply.body
        del reply  # a stream may last
        if isinstance(body, bytes):
            await send({"type": "http.response.body", "body": body})
            return
        more = True
        async for piece in body:
            more = not body.finished
            await send({"type": "http.response.body", "body": piece, "more_body": more})
            del piece  # the next one may be long in coming
        if more:  # nobody knew that the last piece was the last
            await send({"type": "http.response.body", "body": b""})

    def _send_head(self, reply: HTTPResponse) -> list[tuple[bytes, bytes]]:
        fields = reply.headers
        fields["content-type"] = reply.content_type
        if isinstance(reply.body, bytes):
            fields["content-length"] = str(len(reply.body))
        self._middleware.on_response(reply.status, fields)
        return [(name.encode(), value.encode()) for name, value in fields.items()]

    async def _send_response(self, route: Route) -> HTTPResponse:
        try:
            self._middleware.on_request(route.path)
            await self._middleware.authorize(route.access)
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

    async def _send_body(self, incoming: _RequestReader) -> bytes:
        policy = self._state.policy
        length = request_context.headers().get("content-length") or ""
        if length.isdecimal() and (len(length) > LENGTH_DIGITS or int(length) > policy.max_body_bytes):
            raise error_handlers.body_too_large()
        if incoming.is_connected():
            return await incoming.body(policy.max_body_bytes)
        with trio.move_on_after(policy.body_timeout):
            return await incoming.body(policy.max_body_bytes)
        raise error_handlers.body_timeout()


class _RequestReader:
    """What comes from the client: a body, and then its end."""

    def __init__(self, receive: Any, gone: trio.CancelScope, exchange: Any) -> None:
        self._receive = receive
        self._disconnected = gone
        self._http_stream = exchange
        if exchange is not None:
            exchange.leave = gone.cancel

    def is_connected(self) -> bool:
        """Whether the whole body has come already."""
        return self._http_stream is not None and self._http_stream.whole

    async def body(self, limit: int) -> bytes:
        """The whole body; RequestError when it is longer than `limit`."""
        pieces, size = [], 0
        while (message := await self._receive())["type"] == "http.request":
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limit:
                raise error_handlers.body_too_large()
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
        self._disconnected.cancel()
        await trio.lowlevel.checkpoint()
