"""HTTP/1.1 that keeps reading while it answers, and refuses in words.

What is refused here never became a request, so no route could answer it; its error has OpenAI's shape all the same.
"""

from __future__ import annotations

from typing import Any, cast

import h2.config
import h2.connection
import h2.exceptions
import h11
import hypercorn.protocol.h11
import hyperframe.exceptions
import trio
from hypercorn.events import Closed, RawData, Updated

from qproxy.hypercorn.exchange import Exchange
from qproxy.wire import jsontext
from qproxy.wire.errors import RequestError

_SERVER_SIDE = h2.config.H2Configuration(client_side=False)
MAX_PIPELINED = 64 * 1024
"""Bytes that a client may send ahead of the answer it waits for."""


class _NeverPaused(h11.Connection):
    """h11 says PAUSED when bytes of a next request wait; to the reader that must not look like the end."""

    def next_event(self) -> Any:
        event = super().next_event()
        return h11.NEED_DATA if event is h11.PAUSED else event


class H1(hypercorn.protocol.h11.H11Protocol):
    """HTTP/1.1 that keeps reading while it answers."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = _NeverPaused(
            h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size
        )
        self._one_at_a_time = trio.Lock()

    def _waiting(self) -> int:
        connection = self.connection
        return len(connection.trailing_data[0]) if isinstance(connection, h11.Connection) else 0

    async def handle(self, event: Any) -> None:
        await super().handle(event)
        connection = self.connection
        if isinstance(event, RawData) and self.stream is not None and isinstance(connection, h11.Connection):
            ahead = connection.their_state is not h11.SEND_BODY
            if ahead and self._waiting() > MAX_PIPELINED:
                await self.send(Closed())

    def framed(self, event: Any) -> bytes:
        """The bytes that say a part of a response; none to a client that has broken the protocol."""
        try:
            return self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return b""

    def peer_knows_chunks(self) -> bool:
        """Whether the client can take a body in chunks (HTTP/1.1) or wants the connection's end (1.0)."""
        connection = self.connection
        return isinstance(connection, h11.Connection) and connection.their_http_version != b"1.0"

    async def over(self) -> None:
        """The exchange is over: the next request, or the end of the connection."""
        await self._maybe_recycle()

    async def _handle_events(self) -> None:
        async with self._one_at_a_time:
            await super()._handle_events()

    async def _send_error_response(self, status_code: int) -> None:
        what = "Its head is too large." if status_code == 431 else "It is not valid HTTP/1.1."
        error = RequestError(f"The request cannot be read. {what}", status=status_code)
        body = jsontext.dumps(error.body())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        head = h11.Response(status_code=status_code, headers=headers)
        data = [self.framed(event) for event in (head, h11.Data(data=body), h11.EndOfMessage())]
        await self.send(RawData(data=b"".join(data)))

    async def _create_stream(self, request: h11.Request) -> None:
        # h11 bounds a head that comes in pieces; one that came in a single read must be bounded too.
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > self.config.h11_max_incomplete_size:
            await self._send_error_response(431)
            await self.send(Closed())
        elif self.config.server_names:
            await super()._create_stream(_without_upgrade(request))
        else:
            exchange = Exchange(self, _without_upgrade(request))
            self.stream = exchange  # type: ignore[assignment]
            self.task_group.spawn(exchange.run)
            self.keep_alive_requests += 1
            await self.context.mark_request()

    async def _check_protocol(self, event: h11.Request) -> None:
        names = {name for name, _ in event.headers}
        if event.method == b"PRI" or (b"upgrade" in names and _can_upgrade(event)):
            await super()._check_protocol(event)

    async def _maybe_recycle(self) -> None:
        connection, stream = self.connection, cast("Any", self.stream)
        done = connection.our_state is h11.DONE and connection.their_state is h11.DONE
        if done and isinstance(stream, Exchange) and not self.context.terminated.is_set():
            await self._close_stream()  # neither of these waits for anything
            connection.start_next_cycle()
            await self.send(Updated(idle=True))
            if self._waiting():
                self.task_group.spawn(self._handle_events)
        else:
            # This runs in the app's task, which Quart-Trio cancels at the http.disconnect that is queued here.
            with trio.CancelScope(shield=True):
                await super()._maybe_recycle()


def _can_upgrade(request: h11.Request) -> bool:
    """Whether a request to go on in HTTP/2 can be granted: RFC 7540 3.2.1 wants just one sound HTTP2-Settings."""
    fields = dict(request.headers)
    if fields.get(b"upgrade", b"").strip().lower() != b"h2c":
        return True
    settings = [value for name, value in request.headers if name == b"http2-settings"]
    try:
        h2.connection.H2Connection(_SERVER_SIDE).initiate_upgrade_connection(b"".join(settings))
    except (ValueError, h2.exceptions.ProtocolError, hyperframe.exceptions.HyperframeError):
        return False
    return len(settings) == 1


def _without_upgrade(request: h11.Request) -> h11.Request:
    """The request as one that is answered in HTTP: there is no WebSocket here, and RFC 9110 7.8 lets a server go on.

    Its `Upgrade` field stays, so that the app can say so.
    """
    fields = [(name, value) for name, value in request.headers if name != b"connection"]
    if len(fields) == len(request.headers) or b"upgrade" not in dict(request.headers):
        return request
    return h11.Request(
        method=request.method, target=request.target, headers=fields, http_version=request.http_version
    )
