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

from qproxy.server import error_handlers as refusals
from qproxy.server import request_context as current
from qproxy.server.http_response import Reply
from qproxy.server.middleware import Around
from qproxy.server.state import Parts, Route
from qproxy.wire.errors import QproxyError

EXCHANGE = "qproxy.exchange"
"""ASGI extension of our Hypercorn: `leave` is called when the client has left, or at once when it has already."""
LENGTH_DIGITS = 18
"""Of a content-length that is looked at: another ASGI server may pass on more digits than Python reads."""


class Lane:
    """An ASGI app."""

    def __init__(
        self,
        parts: Parts,
        around: Around,
        routes: Mapping[str, Route],
        otherwise: Callable[..., Awaitable[None]],
        plain: Callable[[], bool],
    ) -> None:
        self._parts = parts
        self._around = around
        self._routes = routes
        self._otherwise = otherwise
        self._plain = plain

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        route = None
        if scope["type"] == "http" and scope["method"] == "POST" and self._plain():
            route = self._routes.get(scope["path"])
        if route is None:
            await self._otherwise(scope, receive, send)
            return
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            incoming = _Incoming(receive, nursery.cancel_scope, scope["extensions"].get(EXCHANGE))
            current.enter(scope, stack, nursery, partial(self._body, incoming))
            await self._serve(route, send)
            nursery.cancel_scope.cancel()  # the answer is whole, or nobody waits for it any more

    async def _serve(self, route: Route, send: Any) -> None:
        reply = await self._reply(route)
        await send({"type": "http.response.start", "status": reply.status, "headers": self._head(reply)})
        body = reply.body
        del reply  # a stream may last
        if isinstance(body, bytes):
            await send({"type": "http.response.body", "body": body})
            return
        more = True
        async for piece in body:
            more = not body.over
            await send({"type": "http.response.body", "body": piece, "more_body": more})
            del piece  # the next one may be long in coming
        if more:  # nobody knew that the last piece was the last
            await send({"type": "http.response.body", "body": b""})

    def _head(self, reply: Reply) -> list[tuple[bytes, bytes]]:
        fields = reply.fields
        fields["content-type"] = reply.content_type
        if isinstance(reply.body, bytes):
            fields["content-length"] = str(len(reply.body))
        self._around.finish(reply.status, fields)
        return [(name.encode(), value.encode()) for name, value in fields.items()]

    async def _reply(self, route: Route) -> Reply:
        try:
            self._around.begin(route.path)
            await self._around.admit(route.access)
            reply: Reply = await route.view()
        except QproxyError as error:
            return refusals.reply(error)
        except Exception as error:
            return refusals.fault(error)
        except BaseExceptionGroup as group:
            faults = group.split(trio.Cancelled)[1]
            if not isinstance(faults, ExceptionGroup):
                raise
            return refusals.fault(faults)
        return reply

    async def _body(self, incoming: _Incoming) -> bytes:
        door = self._parts.door
        length = current.headers().get("content-length") or ""
        if length.isdecimal() and (len(length) > LENGTH_DIGITS or int(length) > door.max_body_bytes):
            raise refusals.too_large()
        if incoming.is_there():
            return await incoming.body(door.max_body_bytes)
        with trio.move_on_after(door.body_timeout):
            return await incoming.body(door.max_body_bytes)
        raise refusals.too_slow()


class _Incoming:
    """What comes from the client: a body, and then its end."""

    def __init__(self, receive: Any, gone: trio.CancelScope, exchange: Any) -> None:
        self._receive = receive
        self._gone = gone
        self._exchange = exchange
        if exchange is not None:
            exchange.leave = gone.cancel

    def is_there(self) -> bool:
        """Whether the whole body has come already."""
        return self._exchange is not None and self._exchange.whole

    async def body(self, limit: int) -> bytes:
        """The whole body; RequestError when it is longer than `limit`."""
        pieces, size = [], 0
        while (message := await self._receive())["type"] == "http.request":
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limit:
                raise refusals.too_large()
            if not message.get("more_body", False):
                if self._exchange is None:
                    current.nursery().start_soon(self._watch)
                return b"".join(pieces)
        await self._left()
        return b""

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        await self._left()

    async def _left(self) -> None:
        self._gone.cancel()
        await trio.lowlevel.checkpoint()
