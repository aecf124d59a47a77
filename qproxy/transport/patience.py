"""Waiting for bytes in a way that can be given up without losing any.

A deadline around a whole read is not enough for that: over TLS it may strike after bytes were decrypted, while the
answer to a key update is sent, and they would be gone.  So the deadline stands where bytes are still the kernel's,
below TLS: there a read has either happened or it has not.  What gives up is an exception of its own, and TLS and
h11 above are left as they were.
"""

from __future__ import annotations

import math

import trio


class Quiet(Exception):
    """Nothing came while one was ready to wait.  Nothing is lost: ask again."""


class Patient(trio.abc.Stream):
    """A stream whose reads last until `until`, or until `interrupt` is called."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.transport_stream = stream
        self.until = math.inf
        """Trio's clock."""
        self._reading: trio.CancelScope | None = None
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._drained = True
        """The last read took all that was there, so that the next one will have to wait."""

    def __repr__(self) -> str:
        return f"<Patient {self.transport_stream!r}>"

    @property
    def socket(self) -> trio.socket.SocketType | None:
        """What the pool polls an idle connection by."""
        return getattr(self.transport_stream, "socket", None)

    def interrupt(self) -> None:
        """Make the read that is waiting, if there is one, give up."""
        if self._reading is not None:
            self._reading.cancel()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        with trio.CancelScope(deadline=self.until) as self._reading:
            try:
                # After a read that took all, asking the kernel before waiting would be in vain.
                if self._drained and self._socket is not None and self._socket.fileno() >= 0:
                    await trio.lowlevel.wait_readable(self._socket)
                data = await self.transport_stream.receive_some(max_bytes)
                self._drained = max_bytes is not None and len(data) < max_bytes
                return data
            finally:
                self._reading = None
        raise Quiet

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.transport_stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.transport_stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.transport_stream.aclose()
