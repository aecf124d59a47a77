"""HTTP/1.1 that keeps reading while it answers, and refuses in words.

A request that is written as nearly all are (`wire.http1`) is read and answered by hand, and h11 hears nothing of it;
every other one is h11's, from the first byte on.

What is rejected here never became a request, so no API is known: its error has the default shape, OpenAI's.
"""

from __future__ import annotations

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
from qproxy.http_server.tcp_server import TCPServer
from qproxy.wire import http1, json_codec
from qproxy.wire.bounded_h11 import BoundedConnection
from qproxy.wire.endpoints.openai_api import OPENAI
from qproxy.wire.errors import RequestError

_SERVER_SIDE = h2.config.H2Configuration(client_side=False)
PREFACE = (b"PRI", b"*", b"2.0")
"""How the beginning of HTTP/2 looks to HTTP/1.1 (RFC 9113 3.4)."""
MAX_PIPELINED = 64 * 1024
"""Bytes that a client may send ahead of the answer it waits for."""


class _Connection(BoundedConnection):
    """h11 says PAUSED when bytes of a next request wait; to the reader that must not look like the end.

    Nor is HTTP/2's preface a request: one that asks for nothing more is idle.
    """

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request) and (event.method, event.target, event.http_version) == PREFACE:
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.trailing_data[0])
        return h11.NEED_DATA if event is h11.PAUSED else event


class H11Protocol(hypercorn.protocol.h11.H11Protocol):
    """HTTP/1.1 that keeps reading while it answers."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._h11: Any = None
        self._pipelined = b""
        """What came behind a request that is answered by hand."""
        self._ended = False
        """The connection carries no further request: nothing more is read."""
        self._is_last = False
        self._retires_at = retirement_time(TCPServer.max_age)

    @property
    def connection(self) -> Any:
        """h11's, or what came after it; made when it is first needed, which is never on most connections."""
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
        """The head of a request that is read and answered by hand, while h11 has nothing under way."""
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
        """Some of the body of a request that is answered by hand, and what comes behind it."""
        body, ahead = data[: framing.upcoming], data[framing.upcoming :]
        framing.upcoming -= len(body)
        self._pipelined += ahead
        if body or not exchange.whole:
            await exchange.has_more(body, whole=not framing.upcoming)
        if len(self._pipelined) > MAX_PIPELINED:
            await self.send(Closed())

    async def _end_body(self, exchange: HTTPStream, framing: FastWriter) -> None:
        """The client says no more: in the middle of its request that is an error."""
        if framing.upcoming:
            if not exchange.began:
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
        """The server's fields of a response."""
        return _server_headers(self.config, int(time.time()))

    @property
    def in_last_exchange(self) -> bool:
        """Whether the connection ends after this exchange: it has had its requests, or its time."""
        many = self.keep_alive_requests >= self.config.keep_alive_max_requests
        return many or self._is_last or trio.current_time() >= self._retires_at

    async def finished(self) -> None:
        """The exchange is over: the next request, or the end of the connection."""
        await self._maybe_recycle()

    async def _handle_events(self) -> None:
        async with self._request_lock:
            await super()._handle_events()

    async def _send_error_response(self, status_code: int) -> None:
        what = _head_too_large_message(self.config) if status_code == 431 else "It is not valid HTTP/1.1."
        error = RequestError(f"The request cannot be read. {what}", status=status_code)
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
        """The request with one length and one host, as the app may believe them; ValueError when it has no host."""
        target, fields, names = request.target, list(request.headers), {name for name, _ in request.headers}
        if {
            b"content-length",
            b"transfer-encoding",
        } <= names:  # RFC 9112 6.1: whoever reads it otherwise is in between
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
            await self.send(Updated(idle=True))  # waits for nothing
            if self._pipelined:
                self.connection.receive_data(self._pipelined)
                self._pipelined = b""
            if self._wait_readable():
                self.task_group.spawn(self._handle_events)
        else:
            self._ended = True
            # This runs in the app's task, which Quart-Trio cancels at the http.disconnect that is queued here.
            with trio.CancelScope(shield=True):
                await super()._maybe_recycle()


def _head_too_large_message(config: Config) -> str:
    return (
        f"Its head is too large: it may have {config.h11_max_incomplete_size} bytes (the setting max_header_bytes), "
        f"{http1.MAX_LINES} lines and {http1.MAX_BLANK_RUN} blanks in a row."
    )


@lru_cache(maxsize=8)
def _server_headers(config: Config, second: int) -> list[tuple[bytes, bytes]]:
    """They change once a second: the date is among them."""
    return config.response_headers("h11")


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
    return len(settings) == 1 and request.method != b"CONNECT"


def _split_target(target: bytes) -> tuple[bytes, bytes]:
    """The authority of a target in absolute form, and its path and query; ValueError when there is no authority."""
    cooldown = target.partition(b"://")[2]
    authority = re.split(rb"[/?#]", cooldown, maxsplit=1)[0]
    if not authority:
        raise ValueError("no authority")
    path = cooldown[len(authority) :]
    return authority, path if path.startswith(b"/") else b"/" + path


def _is_websocket(request: h11.Request) -> bool:
    """Whether a request asks for a WebSocket (RFC 6455 4.1), whatever is wrong with its version and its key."""
    fields = dict(request.headers)
    wants = {token.strip().lower() for token in fields.get(b"connection", b"").split(b",")}
    upgrade = fields.get(b"upgrade", b"").strip().lower()
    asks = b"sec-websocket-key" in fields and not {b"content-length", b"transfer-encoding"} & set(fields)
    return request.method == b"GET" and upgrade == b"websocket" and b"upgrade" in wants and asks


def _without_upgrade(request: h11.Request) -> h11.Request:
    """The request as one that is answered in HTTP: it asks for nothing that there is, and RFC 9110 7.8 lets a server go on.

    Its `Upgrade` field stays, so that the app can say so.
    """
    fields = [(name, value) for name, value in request.headers if name != b"connection"]
    if len(fields) == len(request.headers) or b"upgrade" not in dict(request.headers):
        return request
    return h11.Request(
        method=request.method, target=request.target, headers=fields, http_version=request.http_version
    )
