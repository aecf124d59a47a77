"""A WebSocket to an upstream: trio-websocket over a connection of the transport.

One task owns the connection and closes it when cancelled; others send, receive and wait. So its reader's
errors (trio-websocket #184: a pong after the end) are caught in one place, it always closes in the same way,
and no nursery is held open across other tasks' work.

At most one message is read ahead: a slow consumer makes the upstream wait. Every wait has a limit; an
upstream that is silent for `ping_interval` gets one ping, and has failed after as long again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from wsproto.utilities import ProtocolError

from qproxy.transport.bounded_handshake import BoundedHandshakeStream
from qproxy.transport.connection import format_seconds, timeout_error
from qproxy.transport.pool import UpstreamTransport
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.http_request import Headers

ABNORMAL = 1006
"""RFC 6455 7.4.1: closed without a close frame."""
CLOSE_TIMEOUT = 0.05
"""Seconds for the close frame: a disconnect takes less than a tenth of a second."""


class HandshakeRejected(Exception):
    """The server rejected the handshake by an HTTP response."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers
        self.body = body


class UpstreamClosed(Exception):
    """The other end has closed the connection."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class UpstreamWebSocket:
    """One WebSocket to an upstream."""

    def __init__(self, url: str, headers: Headers, *, ping_interval: float, max_message_bytes: int) -> None:
        self._url = url
        self._headers = headers
        self._ping_interval = ping_interval
        self._max_message_bytes = max_message_bytes
        self._host = urlsplit(url).hostname or ""
        self._cancel_scope = trio.CancelScope()
        self._closed = trio.Event()
        self._rejection: HandshakeRejected | None = None
        self._receive_requested = False
        """Whether a ping is unanswered."""

    def __repr__(self) -> str:
        return f"<WebSocket to {self._host}{', closed' if self._closed.is_set() else ''}>"

    async def run(self, transport: UpstreamTransport, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the connection until `aclose` or a cancellation; `started` when it is open.

        Raises `HandshakeRejected`, or UpstreamError without a connection or a response.
        """
        try:
            with self._cancel_scope:
                async with transport.stream(self._url) as stream, trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self._limits = transport.limits
                    self._connection = await self._handshake(stream, nursery)
                    task_status.started()
                    try:
                        await trio.sleep_forever()
                    finally:
                        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                            await self._connection.aclose()
                        nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _single_error(group) from None
        finally:
            self._closed.set()

    async def _handshake(self, stream: trio.abc.Stream, nursery: trio.Nursery) -> WebSocketConnection:
        parts, limit = urlsplit(self._url), self._limits.first_byte_timeout
        connection = None
        with trio.move_on_after(format_seconds(limit)) as waiting:
            connection = await wrap_client_stream(
                cast("trio.Nursery", _WatchedNursery(nursery, self._read, waiting)),
                cast("Any", BoundedHandshakeStream(stream, self._limits.max_head_bytes)),
                parts.netloc.rpartition("@")[2],
                f"{parts.path or '/'}?{parts.query}",
                extra_headers=list(self._headers),
                message_queue_size=0,
                max_message_size=self._max_message_bytes,
                receive_buffer_size=64 * 1024,
            )
        if connection is not None:
            return connection
        if self._rejection is not None:
            raise self._rejection
        if trio.current_time() >= waiting.deadline:
            raise timeout_error(
                f"Upstream {self._host} did not open the WebSocket", limit or 0, "upstream_first_byte_timeout"
            )
        message = f"Upstream {self._host} closed the connection before it opened the WebSocket."
        raise UpstreamError(message, retry=RetryHint.SOON)

    async def _read(self, reader: Callable[[], Awaitable[None]]) -> None:
        """Run trio-websocket's reader; its end, by any error, ends only the connection."""
        try:
            await reader()
        except ConnectionRejected as error:
            self._rejection = HandshakeRejected(
                error.status_code, tuple(error.headers or ()), error.body or b""
            )
        except (ConnectionClosed, ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            return
        except ValueError:  # wsproto decodes fields of the head as ASCII
            return

    async def receive(self) -> str | bytes:
        """Return the next message. Raises UpstreamClosed if the other end has closed, UpstreamError if it is
        lost."""
        while True:
            try:
                with trio.move_on_after(self._ping_interval):
                    message = await self._connection.get_message()
                    self._receive_requested = False
                    return message
            except ConnectionClosed as closed:
                raise _closed_error(closed) from None
            if self._receive_requested:
                raise UpstreamError(
                    f"Upstream {self._host} did not respond to a ping (realtime_ping_interval).",
                    code="upstream_ping_timeout",
                )
            self._receive_requested = True
            self._nursery.start_soon(self._ping)

    async def _ping(self) -> None:
        try:
            await self._connection.ping()
        except (ConnectionClosed, ProtocolError):
            return
        self._receive_requested = False

    async def send(self, text: str) -> None:
        """Send a message. Raises UpstreamError if the other end does not accept it in time."""
        limit = self._limits.write_timeout
        with trio.move_on_after(limit):
            try:
                await self._connection.send_message(text)
            except (ConnectionClosed, ProtocolError) as error:
                raise _closed_error(error) from None
            return
        raise timeout_error(
            f"Upstream {self._host} did not accept a message", limit, "upstream_write_timeout"
        )

    async def aclose(self) -> None:
        """Close the connection, and return when it is closed."""
        self._cancel_scope.cancel()
        with trio.CancelScope(shield=True):  # bounded by CLOSE_TIMEOUT
            await self._closed.wait()


class _WatchedNursery:
    """A nursery for trio-websocket that cancels the pending handshake when its reader ends."""

    def __init__(
        self, nursery: trio.Nursery, run: Callable[..., Awaitable[None]], waiting: trio.CancelScope
    ) -> None:
        self._nursery = nursery
        self._run = run
        self._waiting = waiting

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._watch, reader)

    async def _watch(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._run(reader)
        finally:
            self._waiting.cancel()


def _closed_error(error: Exception) -> UpstreamClosed:
    reason = error.reason if isinstance(error, ConnectionClosed) else None
    if reason is None:
        return UpstreamClosed(ABNORMAL, "")
    return UpstreamClosed(int(reason.code), reason.reason or "")


def _single_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the only error of a group, or the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
