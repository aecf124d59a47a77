"""One connection of any protocol, with isolated failures and a write timeout.

The number of connections is limited per process, not per listener.

Two steps are cheaper than in stock Hypercorn, because they run for every chunk and every request: a write
tries the socket first, and only the remainder waits (under a lock and a timeout); and one task per connection
closes it when it is idle, where stock starts and cancels one per request.
"""

from __future__ import annotations

import logging
import math
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import hypercorn.trio.tcp_server
import trio
from hypercorn.events import Closed, Event, RawData, Updated

from qproxy.http_server.keep_alive import KeepAliveTimer
from qproxy.system.sockets import raw_socket, recv, recv_nowait, send_nowait
from qproxy.wire import json_codec
from qproxy.wire.endpoints.openai_api import OPENAI
from qproxy.wire.errors import OverloadedError

READ_SIZE = 64 * 1024
REJECT_TIMEOUT = 1.0
REJECT_READ_SIZE = 64 * 1024
REJECT_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%b"
)
WRITE_SIZE = 16 * 1024
"""Bytes that a client must accept within the write timeout."""
PROBE_AFTER, PROBE_EVERY, PROBES = 30, 10, 3
"""Seconds of silence, seconds between two probes, and the number of unanswered probes before the connection
ends."""
LINGER_SHARE = 0.75
"""The share of max_connections above which no connection lingers."""
log = logging.getLogger("qproxy.http_server")


@dataclass(frozen=True)
class Linger(Event):
    """The last response is sent, but not all of its request is read: discard the rest before closing.

    Closing with unread data resets the connection, and the client loses the response (RFC 9112 9.6).
    """

    remaining: float
    """Bytes of the request that have not been read; `math.inf` if unknown."""


class TCPServer(hypercorn.trio.tcp_server.TCPServer):
    """One connection, with isolated failures and a write timeout."""

    write_timeout = 30.0
    max_connections = 6000
    max_age = math.inf
    """Seconds after which a connection carries no further request, ± 10 %."""
    max_linger_bytes = 128 * 1024 * 1024
    """Bytes of a request that are discarded after its response; 0 closes at once."""
    linger_seconds = 30.0
    connections = 0
    """Open connections in this process."""
    _write: trio.CancelScope | None = None
    _peer_closed = False
    """Whether writing is pointless."""
    _pending_data = False
    """Whether the last read may have left data in the socket. Other tasks run after the next read."""
    _at_end = False
    """Whether the client has finished sending."""
    _to_discard: float | None = None
    """Bytes to discard before the connection closes; None until its last response is sent."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._raw_socket = raw_socket(self.stream)
        self._reading = trio.CancelScope()
        self.idle_task: KeepAliveTimer = KeepAliveTimer(self.context, self.config.keep_alive_timeout)  # type: ignore[assignment]

    async def run(self) -> None:
        """Serve the connection; a failure is logged and does not propagate."""
        if TCPServer.connections >= self.max_connections:
            await self._reject()
            return
        TCPServer.connections += 1
        _enable_keepalive_probes(self.stream, self.write_timeout)
        try:
            await super().run()
        except Exception as error:
            _log_failure(error)
        except BaseExceptionGroup as group:
            cancelled, failures = group.split(trio.Cancelled)
            if failures is not None:
                if failures.split((KeyboardInterrupt, SystemExit))[0] is not None:
                    raise
                _log_failure(failures)
            if cancelled is not None:
                raise cancelled from None
        finally:
            TCPServer.connections -= 1

    async def _reject(self) -> None:
        """Send a 503 over HTTP/1.1 (unless TLS would make that expensive), and close."""
        gone = (trio.BrokenResourceError, trio.ClosedResourceError)
        with trio.move_on_after(REJECT_TIMEOUT), suppress(*gone):
            if not hasattr(self.stream, "do_handshake"):
                message = "The server is at its concurrent connection limit (max_client_connections)."
                body = json_codec.dumps(OPENAI.error_body(OverloadedError(message), ""))
                await self.stream.send_all(REJECT_RESPONSE % (len(body), body))
                await self.stream.send_eof()
                while await self.stream.receive_some(REJECT_READ_SIZE):
                    pass  # closing with unread data would reset the connection and lose the response
        await trio.aclose_forcefully(self.stream)

    async def protocol_send(self, event: Any) -> None:
        """Write with a timeout for progress; a client that does not read is disconnected."""
        if isinstance(event, RawData):
            rest = self._sent_immediately(event.data)
            if rest:
                await self._send_with_timeout(rest)
        elif isinstance(event, Updated):
            self.idle_task.set(event.idle)
        elif isinstance(event, Linger):
            await self._linger(event.remaining)
        elif self._to_discard is None:
            await super().protocol_send(event)

    @classmethod
    def linger_budget(cls) -> int:
        """Return the bytes to discard for one connection, 0 while connections run short."""
        return cls.max_linger_bytes if cls.connections <= LINGER_SHARE * cls.max_connections else 0

    async def _linger(self, remaining: float) -> None:
        """Close the sending side, and the connection once the client has sent the rest, or closes it."""
        budget = min(remaining, self.linger_budget())
        if budget <= 0 or self._to_discard is not None:
            return
        self._to_discard = budget
        self._reading.deadline = trio.current_time() + self.linger_seconds
        self.idle_task.set(True)  # a shutdown does not wait for it
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            if hasattr(self.stream, "send_eof"):  # TLS cannot close one side
                await self.stream.send_eof()

    def _discard(self, size: int) -> bool:
        """Discard some bytes of the last request, and return whether more may come."""
        assert self._to_discard is not None
        self._to_discard -= size
        return self._to_discard > 0

    def _sent_immediately(self, data: bytes) -> bytes:
        """Send without blocking, and return the bytes that the kernel did not accept."""
        if self._raw_socket is None or not data or self._peer_closed or self.send_lock.locked():
            return data
        return data[send_nowait(self._raw_socket, data) :]

    async def _send_with_timeout(self, data: bytes) -> None:
        """Send the data, shielded from cancellation.

        Bytes of a cancelled request belong to the connection; over HTTP/2 they are part of the state of all
        its streams. Earlier writes in the queue have their own timeout.
        """
        with trio.CancelScope(shield=True):
            async with self.send_lock:
                lost = not self._peer_closed and not await self._send_within(memoryview(data))
        if lost:
            await self.protocol.handle(Closed())

    async def _send_within(self, data: memoryview) -> bool:
        try:
            with trio.CancelScope() as scope:
                self._write = scope
                for start in range(0, len(data), WRITE_SIZE):
                    scope.deadline = trio.current_time() + self.write_timeout
                    await self.stream.send_all(data[start : start + WRITE_SIZE])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        finally:
            self._write = None
        if scope.cancelled_caught:
            self._peer_closed = True
            await trio.aclose_forcefully(self.stream)
        return not scope.cancelled_caught

    async def _idle_timeout(self) -> None:
        with trio.CancelScope(shield=True):
            await self._initiate_server_close()

    async def _read_some(self) -> bytes:
        """Return the next bytes, or b"" at the end. No reference to them is kept during the next read."""
        if self._raw_socket is None:
            data = bytes(await self.stream.receive_some(READ_SIZE))
        else:
            more = recv_nowait(self._raw_socket, READ_SIZE) if self._pending_data else None
            data = await recv(self._raw_socket, READ_SIZE) if more is None else more
            self._pending_data = more is None and len(data) == READ_SIZE
        self._at_end = not data
        return data

    async def _read_data(self) -> None:
        """Read until the end. Stock times each read, which would count the client's silence during a
        response."""
        try:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError), self._reading:
                while not self._at_end:
                    data = await self._read_some()
                    if self._to_discard is None:
                        await self.protocol.handle(RawData(data))
                    elif not self._discard(len(data)):
                        break
                    del data  # the next read may take long
            await self.protocol.handle(Closed())
        finally:
            self._peer_closed = True
            self.idle_task.end()
            if self._write is not None:
                self._write.cancel()


def _enable_keepalive_probes(stream: Any, timeout: float) -> None:
    """Have the kernel close a connection whose peer vanished, for example after a network or power
    failure."""
    tcp = getattr(getattr(stream, "transport_stream", stream), "socket", None)
    if not isinstance(tcp, trio.socket.SocketType):
        return
    options = [(socket.SOL_SOCKET, "SO_KEEPALIVE", 1)]
    options += [
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", round(timeout * 1000)),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", PROBE_AFTER),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", PROBE_EVERY),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", PROBES),
    ]
    for level, name, value in options:
        with suppress(OSError, AttributeError):  # not TCP, or not Linux
            tcp.setsockopt(level, getattr(socket, name), value)


def _log_failure(error: BaseException) -> None:
    log.error("connection failed: %s", type(error).__name__, exc_info=error)
