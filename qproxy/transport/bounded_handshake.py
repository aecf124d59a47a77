"""The opening handshake of a WebSocket to an upstream, within the limits of all heads.

wsproto parses it with an h11 connection of its own, without limits. The same bytes are parsed here first:
wsproto gets a head, or the line of a chunk's size in the body of a rejection, only when it is complete and
within the limits.
"""

from __future__ import annotations

import h11
import trio

from qproxy.wire.bounded_h11 import BoundedConnection

READ_SIZE = 64 * 1024
UPGRADE = h11.Request(
    method="GET", target="/", headers=[("host", "x"), ("connection", "upgrade"), ("upgrade", "websocket")]
)
"""The request, as far as it matters to h11."""


class BoundedHandshakeStream(trio.abc.Stream):
    """A stream that breaks if the response to a WebSocket's request exceeds the limits of heads."""

    def __init__(self, stream: trio.abc.Stream, max_head: int) -> None:
        self.transport_stream = stream
        self._http: BoundedConnection | None = BoundedConnection(h11.CLIENT, max_head)
        """The parser; The parser; The parser; The parser; The parser; None once the WebSocket is open."""
        self._http.send(UPGRADE)
        self._http.send(h11.EndOfMessage())

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.transport_stream.receive_some(max_bytes or READ_SIZE)
        if self._http is not None:
            try:
                self._check(self._http, data)
            except h11.RemoteProtocolError as error:
                raise trio.BrokenResourceError(str(error)) from error
        return data

    def _check(self, http: BoundedConnection, data: bytes | bytearray) -> None:
        http.receive_data(data)
        while http.next_event() not in (h11.NEED_DATA, h11.PAUSED):
            if http.their_state is h11.CLOSED:
                return
        if http.their_state is h11.SWITCHED_PROTOCOL:
            self._http = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.transport_stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.transport_stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.transport_stream.aclose()
