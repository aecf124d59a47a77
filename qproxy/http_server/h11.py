"""HTTP/1.1 that keeps reading while it responds, and rejects invalid requests with a JSON error.

A request with a plain head (`wire.http1`), as nearly all have, is read and answered without h11; every other
request is h11's from the first byte on.

Input that is rejected here never became a request, so its API is unknown: the error has the default shape,
OpenAI's.
"""

from __future__ import annotations

import math
import re
import time
from functools import cached_property, lru_cache
from typing import Any, cast

import h2.config
import h2.connection
import h2.exceptions
import h11
import hypercorn.protocol.h11
import hyperframe.exceptions
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2ProtocolAssumedError

from qproxy.http_server.http_stream import HTTPStream
from qproxy.http_server.keep_alive import retirement_time
from qproxy.http_server.response_writer import FastWriter, H11Writer
from qproxy.http_server.tcp_server import Linger, TCPServer
from qproxy.wire import http1, json_codec
from qproxy.wire.bounded_h11 import BoundedConnection
from qproxy.wire.endpoints.openai_api import OPENAI
from qproxy.wire.errors import RequestError

_SERVER_SIDE = h2.config.H2Configuration(client_side=False)
PREFACE = (b"PRI", b"*", b"2.0")
"""The start of HTTP/2's preface as HTTP/1.1 parses it (RFC 9113 3.4)."""
MAX_PIPELINED = 64 * 1024
"""Bytes that a client may send before the current response is complete."""


class _Connection(BoundedConnection):
    """An h11 connection that reports PAUSED as NEED_DATA, since Hypercorn's reader takes PAUSED for the end.

    HTTP/2's preface is not a request either: a connection that sends only that is idle.
    """

    they_are_waiting_for_100_continue = False
    """Hypercorn would send 100 at once; `send_continue` sends it once the app reads the body."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request) and (event.method, event.target, event.http_version) == PREFACE:
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.trailing_data[0])
        return h11.NEED_DATA if event is h11.PAUSED else event


class H11Protocol(hypercorn.protocol.h11.H11Protocol):
    """An HTTP/1.1 connection that keeps reading while it responds."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._h11: Any = None
        self._pipelined = b""
        """Bytes received after a request that is handled without h11."""
        self._ended = False
        """Whether the connection carries no further request; later bytes are dropped."""
        self._is_last = False
        self._retires_at = retirement_time(TCPServer.max_age)

    @property
    def connection(self) -> Any:
        """Return h11's connection or its successor, created on first use: most connections never need it."""
        if self._h11 is None:
            self._h11 = _Connection(h11.SERVER, self.config.h11_max_incomplete_size)
        return self._h11

    @connection.setter
    def connection(self, connection: Any) -> None:
        self._h11 = connection

    @cached_property
    def _request_lock(self) -> trio.Lock:
        return trio.Lock()

    def _wait_readable(self) -> int:
        connection = self._h11
        return len(connection.trailing_data[0]) if isinstance(connection, h11.Connection) else 0

    async def handle(self, event: Event) -> None:
        if not isinstance(event, RawData):
            await super().handle(event)
        elif not self._ended:
            await self._read(event.data)

    async def _read(self, data: bytes) -> None:
        stream = cast("Any", self.stream)
        if isinstance(stream, HTTPStream) and isinstance(stream.writer, FastWriter):
            await (self._feed(stream, stream.writer, data) if data else self._end_body(stream, stream.writer))
        elif stream is None and (head := self._plain_head(data)) is not None:
            framing = FastWriter(head.content_length)
            exchange = HTTPStream(self, framing, "POST", "1.1", head.target, head.headers)
            await self.send(Updated(idle=False))
            await self._start_stream(exchange)
            await self._feed(exchange, framing, data[head.end :])
        else:
            await self._read_with_h11(data)

    def _plain_head(self, data: bytes) -> http1.RequestHead | None:
        """Return the head of a request to handle without h11, or None for h11's requests and while h11 is
        active."""
        connection = self._h11
        if connection is not None and (
            connection.our_state is not h11.IDLE
            or connection.their_state is not h11.IDLE
            or self._wait_readable()
        ):
            return None
        if self.config.server_names:
            return None
        return http1.parse_request(data, self.config.h11_max_incomplete_size)

    async def _feed(self, exchange: HTTPStream, framing: FastWriter, data: bytes) -> None:
        """Receive body bytes of a request that is handled without h11, and any pipelined bytes after it."""
        body, ahead = data[: framing.upcoming], data[framing.upcoming :]
        framing.upcoming -= len(body)
        self._pipelined += ahead
        if body or not exchange.request_complete:
            await exchange.has_more(body, complete=not framing.upcoming)
        if len(self._pipelined) > MAX_PIPELINED:
            await self.send(Closed())

    async def _end_body(self, exchange: HTTPStream, framing: FastWriter) -> None:
        """Handle the end of the client's input, which is an error inside a request body."""
        if framing.upcoming:
            if not exchange.response_started:
                await self._send_error_response(400)
            await self.send(Closed())

    async def _read_with_h11(self, data: bytes) -> None:
        await super().handle(RawData(data))
        connection = self.connection
        if self.stream is not None and isinstance(connection, h11.Connection):
            ahead = connection.their_state is not h11.SEND_BODY
            if ahead and self._wait_readable() > MAX_PIPELINED:
                await self.send(Closed())

    def server_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the response headers that the server adds."""
        return _server_headers(self.config, int(time.time()))

    @property
    def in_last_exchange(self) -> bool:
        """Return whether the connection closes after this exchange, having reached its limit of requests or
        its age."""
        many = self.keep_alive_requests >= self.config.keep_alive_max_requests
        return many or self._is_last or trio.current_time() >= self._retires_at

    async def send_continue(self) -> None:
        """Let a client that waits for it send the body that the app now reads (RFC 9110 10.1.1).

        A request that its head alone rejects gets the final response instead.
        """
        if isinstance(self._h11, h11.Connection) and self._h11.client_is_waiting_for_100_continue:
            headers = self.server_headers()
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=headers))

    async def finished(self) -> None:
        """Start the next request after a complete response, or close the connection."""
        await self._maybe_recycle()

    async def _linger(self, stream: HTTPStream) -> None:
        """Let the client send the rest of a request whose response is complete."""
        if isinstance(stream.writer, FastWriter):
            remaining: float = stream.writer.upcoming
        else:
            remaining = math.inf if self.connection.their_state is h11.SEND_BODY else 0
        if remaining:
            await self.send(Linger(remaining))

    async def _handle_events(self) -> None:
        async with self._request_lock:
            await super()._handle_events()

    async def _send_h11_event(self, event: Any) -> None:
        if isinstance(event, h11.Response | h11.InformationalResponse) and not event.reason:
            status, headers = event.status_code, event.headers
            event = type(event)(status_code=status, headers=headers, reason=http1.reason_phrase(status))
        await super()._send_h11_event(event)

    async def _send_error_response(self, status_code: int) -> None:
        message = _head_too_large_message(self.config) if status_code == 431 else "Invalid HTTP/1.1 request."
        error = RequestError(message, status=status_code)
        body = json_codec.dumps(OPENAI.error_body(error, ""))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *self.server_headers(),
        ]
        framing = H11Writer(self.connection, "")
        data = framing.head(status_code, headers) + framing.data(body) + framing.end()
        await self.send(RawData(data=data))
        await self.send(Linger(math.inf))

    async def _create_stream(self, request: h11.Request) -> None:
        try:
            request = self._normalized(request)
        except ValueError:
            await self._send_error_response(400)
            await self.send(Closed())
            return
        if _is_websocket(request):
            await super()._create_stream(request)
        elif self.config.server_names:
            await super()._create_stream(_without_upgrade(request))
        else:
            request = _without_upgrade(request)
            method, version = request.method.decode("ascii").upper(), request.http_version.decode("ascii")
            framing = H11Writer(self.connection, method)
            await self._start_stream(
                HTTPStream(self, framing, method, version, request.target, list(request.headers))
            )

    def _normalized(self, request: h11.Request) -> h11.Request:
        """Return the request with one length and one host. Raise ValueError if its target has no host."""
        target, fields, names = request.target, list(request.headers), {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            # RFC 9112 6.1: an intermediary that reads the length otherwise must not share the connection.
            self._is_last = True
            fields = [field for field in fields if field[0] != b"content-length"]
        if target.lower().startswith((b"http://", b"https://")):  # RFC 9112 3.2.2
            authority, target = _split_target(target)
            fields = [(b"host", authority), *(field for field in fields if field[0] != b"host")]
        elif not self._is_last:
            return request
        return h11.Request(
            method=request.method, target=target, headers=fields, http_version=request.http_version
        )

    async def _start_stream(self, exchange: HTTPStream) -> None:
        self.stream = exchange  # type: ignore[assignment]
        self.task_group.spawn(exchange.run)
        self.keep_alive_requests += 1
        await self.context.mark_request()

    async def _check_protocol(self, event: h11.Request) -> None:
        names = {name for name, _ in event.headers}
        if b"upgrade" in names and _can_upgrade(event):
            await super()._check_protocol(event)

    async def _maybe_recycle(self) -> None:
        stream = cast("Any", self.stream)
        stops = self.context.terminated.is_set()
        if isinstance(stream, HTTPStream) and not stops and stream.writer.next_response():
            stream.end()
            self.stream = None
            await self.send(Updated(idle=True))  # does not block
            if self._pipelined:
                self.connection.receive_data(self._pipelined)
                self._pipelined = b""
            if self._wait_readable():
                self.task_group.spawn(self._handle_events)
        else:
            self._ended = True
            if isinstance(stream, HTTPStream) and stream.complete:
                await self._linger(stream)
            # This runs in the app's task, which Quart-Trio cancels at the http.disconnect queued here.
            with trio.CancelScope(shield=True):
                await super()._maybe_recycle()


def _head_too_large_message(config: Config) -> str:
    return (
        f"The request head is too large: at most {config.h11_max_incomplete_size} bytes (max_header_bytes), "
        f"{http1.MAX_LINES} lines and {http1.MAX_BLANK_RUN} consecutive blanks are allowed."
    )


@lru_cache(maxsize=8)
def _server_headers(config: Config, second: int) -> list[tuple[bytes, bytes]]:
    """Return the server's headers, cached for a second because of the date."""
    return config.response_headers("h11")


def _can_upgrade(request: h11.Request) -> bool:
    """Return whether an upgrade is possible: h2c requires exactly one valid HTTP2-Settings (RFC 7540
    3.2.1)."""
    fields = dict(request.headers)
    if fields.get(b"upgrade", b"").strip().lower() != b"h2c":
        return True
    settings = [value for name, value in request.headers if name == b"http2-settings"]
    try:
        h2.connection.H2Connection(_SERVER_SIDE).initiate_upgrade_connection(b"".join(settings))
    except (ValueError, h2.exceptions.ProtocolError, hyperframe.exceptions.HyperframeError):
        return False
    return len(settings) == 1 and request.method != b"CONNECT"


def _split_target(target: bytes) -> tuple[bytes, bytes]:
    """Split a target in absolute form into its authority, and its path and query. Raise ValueError if it has
    none."""
    rest = target.partition(b"://")[2]
    authority = re.split(rb"[/?#]", rest, maxsplit=1)[0]
    if not authority:
        raise ValueError("no authority")
    path = rest[len(authority) :]
    return authority, path if path.startswith(b"/") else b"/" + path


def _is_websocket(request: h11.Request) -> bool:
    """Return whether a request is a WebSocket handshake (RFC 6455 4.1), even with an invalid version or
    key."""
    fields = dict(request.headers)
    options = {token.strip().lower() for token in fields.get(b"connection", b"").split(b",")}
    upgrade = fields.get(b"upgrade", b"").strip().lower()
    bodyless = not {b"content-length", b"transfer-encoding"} & set(fields)
    has_key = b"sec-websocket-key" in fields
    is_upgrade = upgrade == b"websocket" and b"upgrade" in options
    return request.method == b"GET" and is_upgrade and has_key and bodyless


def _without_upgrade(request: h11.Request) -> h11.Request:
    """Return the request without its Connection header, so that an unsupported upgrade is ignored (RFC 9110
    7.8).

    The Upgrade header stays, so that the app can report it.
    """
    fields = [(name, value) for name, value in request.headers if name != b"connection"]
    if len(fields) == len(request.headers) or b"upgrade" not in dict(request.headers):
        return request
    return h11.Request(
        method=request.method, target=request.target, headers=fields, http_version=request.http_version
    )
