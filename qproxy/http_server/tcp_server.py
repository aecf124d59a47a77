"""One connection, whatever it speaks: its failures are its own, its writes have a limit.

The number of connections has a limit too, counted in the process and not by listener.

Two things are done more cheaply than in stock, because they are done for every piece and every request: a write asks
the kernel first, and only what it does not take waits (under a lock and a time limit); and one task for the whole
connection ends it when it is idle, where stock starts one and cancels it for every request.
"""

from __future__ import annotations

import logging
import math
import socket
from contextlib import suppress
from typing import Any

import hypercorn.trio.tcp_server
import trio
from hypercorn.events import Closed, RawData, Updated

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
"""What must leave within the write timeout: slower than that is not reading."""
PROBE_AFTER, PROBE_EVERY, PROBES = 30, 10, 3
"""Seconds of silence, seconds between two probes, and how many a vanished peer may leave unanswered."""
log = logging.getLogger("qproxy.http_server")


class TCPServer(hypercorn.trio.tcp_server.TCPServer):
    """One connection: its failures are its own, and its writes have a limit."""

    write_timeout = 30.0
    max_connections = 6000
    max_age = math.inf
    """Seconds after which a connection carries no further request, give or take a tenth."""
    connections = 0
    """Open in this process."""
    _write: trio.CancelScope | None = None
    _peer_closed = False
    """Nobody is there to write to."""
    _pending_data = False
    """The last read may have left something.  Others have their turn after the next one."""
    _at_end = False
    """Nothing more is to be read."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._raw_socket = raw_socket(self.stream)
        self.idle_task: KeepAliveTimer = KeepAliveTimer(self.context, self.config.keep_alive_timeout)  # type: ignore[assignment]

    async def run(self) -> None:
        """Serve the connection; whatever goes wrong is logged in a line and ends here."""
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
        """Say in HTTP/1.1 that there are too many (over TLS there is no saying it cheaply), and close."""
        gone = (trio.BrokenResourceError, trio.ClosedResourceError)
        with trio.move_on_after(REJECT_TIMEOUT), suppress(*gone):
            if not hasattr(self.stream, "do_handshake"):
                message = "The server has as many connections as it may have at once."
                body = json_codec.dumps(OPENAI.error_body(OverloadedError(message), ""))
                await self.stream.send_all(REJECT_RESPONSE % (len(body), body))
                await self.stream.send_eof()
                while await self.stream.receive_some(REJECT_READ_SIZE):
                    pass  # closing before it is read would reset it
        await trio.aclose_forcefully(self.stream)

    async def protocol_send(self, event: Any) -> None:
        """Write with a limit on progress; a client that does not read is gone."""
        if isinstance(event, RawData):
            rest = self._sent_immediately(event.data)
            if rest:
                await self._send_with_timeout(rest)
        elif isinstance(event, Updated):
            self.idle_task.set(event.idle)
        else:
            await super().protocol_send(event)

    def _sent_immediately(self, data: bytes) -> bytes:
        """What the kernel does not take at once."""
        if self._raw_socket is None or not data or self._peer_closed or self.send_lock.locked():
            return data
        return data[send_nowait(self._raw_socket, data) :]

    async def _send_with_timeout(self, data: bytes) -> None:
        """Shielded from the first moment: what a cancelled request has written is the connection's, and over HTTP/2 it
        is part of the state of all its streams.  Those before it in the line have their time limit."""
        with trio.CancelScope(shield=True):
            async with self.send_lock:
                lost = not self._peer_closed and not await self._send_within(memoryview(data))
        if lost:
            await self.protocol.handle(Closed())

    async def _send_within(self, cooldown: memoryview) -> bool:
        try:
            with trio.CancelScope() as scope:
                self._write = scope
                for start in range(0, len(cooldown), WRITE_SIZE):
                    scope.deadline = trio.current_time() + self.write_timeout
                    await self.stream.send_all(cooldown[start : start + WRITE_SIZE])
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
        """What comes next; b"" at the end.  Nobody here keeps it while the next is waited for."""
        if self._raw_socket is None:
            data = bytes(await self.stream.receive_some(READ_SIZE))
        else:
            more = recv_nowait(self._raw_socket, READ_SIZE) if self._pending_data else None
            data = await recv(self._raw_socket, READ_SIZE) if more is None else more
            self._pending_data = more is None and len(data) == READ_SIZE
        self._at_end = not data
        return data

    async def _read_data(self) -> None:
        """Read until the end.  Stock has a time limit around each read: it would count silence while we answer."""
        try:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while not self._at_end:
                    await self.protocol.handle(RawData(await self._read_some()))
            await self.protocol.handle(Closed())
        finally:
            self._peer_closed = True
            self.idle_task.end()
            if self._write is not None:
                self._write.cancel()


def _enable_keepalive_probes(stream: Any, timeout: float) -> None:
    """Let the kernel end a connection whose peer is gone without a word: a lost network, a machine switched off."""
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
    log.error("a connection failed: %s", type(error).__name__, exc_info=error)
