"""Reads of a stream that can be interrupted without losing bytes.

A deadline around a whole read is not enough: over TLS it may expire after bytes were decrypted, while the
response to a key update is sent, and they would be lost. So the deadline applies below TLS, where the bytes
are still in the kernel: a read there has either happened or not. A timeout is an exception of its own, and
TLS and h11 above stay intact.
"""

from __future__ import annotations

import math

import trio

from qproxy.system.sockets import raw_socket, recv, recv_nowait, send_nowait


class ReceiveTimeout(Exception):
    """No bytes were received by the deadline. Nothing is lost: read again."""


class InterruptibleStream(trio.abc.Stream):
    """A stream whose reads last until `deadline`, or until `interrupt` is called."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.transport_stream = stream
        self.deadline = math.inf
        """The deadline of reads (Trio's clock)."""
        self._reading: trio.CancelScope | None = None
        self._raw_socket = raw_socket(stream)
        self._buffered = False
        """Whether the last read may have left bytes."""

    def __repr__(self) -> str:
        return f"<InterruptibleStream {self.transport_stream!r}>"

    @property
    def socket(self) -> trio.socket.SocketType | None:
        """Return the file descriptor by which the pool polls an idle connection."""
        return getattr(self.transport_stream, "socket", None)

    def interrupt(self) -> None:
        """Make the waiting read, if any, raise ReceiveTimeout."""
        if self._reading is not None:
            self._reading.cancel()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        with trio.CancelScope(deadline=self.deadline) as self._reading:
            try:
                if self._raw_socket is None or max_bytes is None:
                    return await self.transport_stream.receive_some(max_bytes)
                return await self._read(self._raw_socket, max_bytes)
            finally:
                self._reading = None
        raise ReceiveTimeout

    async def _read(self, socket: trio.socket.SocketType, size: int) -> bytes:
        data = None
        if self._buffered:
            await trio.lowlevel.checkpoint()
            data = recv_nowait(socket, size)
        if data is None:
            data = await recv(socket, size)
        self._buffered = len(data) == size
        return data

    def send_nowait(self, *pieces: bytes) -> int:
        """Send without waiting, and return the number of bytes sent; 0 is no error yet."""
        return 0 if self._raw_socket is None else send_nowait(self._raw_socket, *pieces)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.transport_stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.transport_stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.transport_stream.aclose()
