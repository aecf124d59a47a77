"""The opening of a WebSocket to an upstream, within the bounds that all heads have.

wsproto reads it by an h11 connection of its own, without bounds.  The same bytes are read here first: a head, or a line of
a chunk's size in the body of a refusal, is parsed there only after it was whole and within bounds here.
"""

from __future__ import annotations

import h11
import trio

from qproxy.wire.bounded_h11 import BoundedConnection

READ_SIZE = 64 * 1024
UPGRADE = h11.Request(
    method="GET", target="/", headers=[("host", "x"), ("connection", "upgrade"), ("upgrade", "websocket")]
)
"""What is answered, as far as it matters to h11."""


class BoundedHandshakeStream(trio.abc.Stream):
    """A stream that breaks when the response to a WebSocket's request is beyond the bounds of heads."""

    def __init__(self, stream: trio.abc.Stream, max_head: int) -> None:
        self.transport_stream = stream
        self._http: BoundedConnection | None = BoundedConnection(h11.CLIENT, max_head)
        """None once the WebSocket is open."""
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
