"""HTTP/2 whose odd frames end a stream, never the server, and whose buffers have a bound.

The stream buffers belong to the sender: what a client's flow-control window does not take is not made.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from typing import Any

import h2.errors
import h2.events
import h2.exceptions
import hpack
import hypercorn.protocol.h2
import trio
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import StreamClosed
from hyperframe.frame import GoAwayFrame

from qproxy.http_server.keep_alive import retirement_time
from qproxy.http_server.tcp_server import TCPServer

MAX_RESETS, RESETS_SECONDS = 200, 10.0
"""Streams that a client may reset in a time, before it is a flood."""
RETIREMENT_TIMEOUT = 30.0
"""Seconds for an old connection to be idle, before its client is told in the middle of its streams."""
NOTICE_SECONDS = 5.0
"""From that on until streams are refused: those that were under way to us are taken."""
MAX_STREAM = 2**31 - 1
DATA, HEADERS, CONTINUATION = 0, 1, 9
PREFACE_SIZE, FRAME_HEAD = 24, 9
"""Bytes (RFC 9113 3.4, 4.1)."""
FRAMES = 32
"""That are worked on at once; then other tasks have their turn.  A read of 64 KiB may be 7,281 of them."""
FRAME_SIZE = 1024
"""Bytes of a frame that is not DATA which count as one more: a field, a setting and a change of size take a few each."""
log = logging.getLogger("qproxy.http_server")


class FlowControlTimeout(Exception):
    """The client has opened its flow-control window for nothing during the whole write timeout."""


class StreamBuffer(hypercorn.protocol.h2.StreamBuffer):
    """Stock `pop` judges by what it took, so a closed window (nothing taken) lets the producer run on.

    Stock `drain` returns before END_STREAM is sent, so a connection that closes then (it does while the server
    stops) loses it.  Both wait without a limit for a client that takes nothing.
    """

    def __init__(self, event_class: Any) -> None:
        super().__init__(event_class)
        self.ended = event_class()
        self._waiters = trio.CancelScope()

    async def drain(self) -> None:
        await self._wait_progress(self.ended if self._complete else self._is_empty)

    async def _wait_progress(self, event: Any) -> None:
        """Wait for an event for as long as the client takes something now and then."""
        with trio.CancelScope(deadline=trio.current_time() + TCPServer.write_timeout) as self._waiters:
            await event.wait()
            return
        raise FlowControlTimeout

    async def close(self) -> None:
        await super().close()
        await self.ended.set()

    async def push(self, data: bytes) -> None:
        if self._complete:
            raise hypercorn.protocol.h2.BufferCompleteError()
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= hypercorn.protocol.h2.BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._wait_progress(self._paused)

    async def pop(self, max_length: int) -> bytes:
        length = min(len(self.buffer), max_length)
        data = bytes(self.buffer[:length])
        del self.buffer[:length]
        if data:
            self._waiters.deadline = trio.current_time() + TCPServer.write_timeout
        if len(self.buffer) < hypercorn.protocol.h2.BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


_UPDATES = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]{0,10}+[\x00-\x7f]){3}")
"""More changes of the table's size than a block may begin with (RFC 7541 4.2)."""


class _Decoder(hpack.Decoder):
    """Each change of the table's size costs microseconds, and hpack takes any number of them."""

    def decode(self, data: bytes, raw: bool = False) -> Any:
        if _UPDATES.match(data):
            raise hpack.HPACKDecodingError("three changes of the table's size in one block")
        return super().decode(data, raw)


class Frames:
    """Where the frames end in what a client sends."""

    block = 0
    """Bytes of the last block of fields so far, as it is compressed."""

    def __init__(self) -> None:
        self._left = PREFACE_SIZE
        """Bytes to come of the frame that has begun, or of the preface."""
        self._head = b""

    def split(self, data: bytes) -> Iterator[bytes]:
        """Yield the data in pieces of some `FRAMES`."""
        start = at = weight = 0
        while at < len(data):
            if self._left:
                size = min(self._left, len(data) - at)
                self._left -= size
            else:
                size = min(FRAME_HEAD - len(self._head), len(data) - at)
                self._head += data[at : at + size]
                if len(self._head) == FRAME_HEAD:
                    weight += self._begin()
            at += size
            if weight >= FRAMES and not self._left:
                yield data[start:at]
                start, weight = at, 0
        if start < len(data) or not data:
            yield data[start:]

    def _begin(self) -> int:
        """The head of a frame is whole: what the frame counts."""
        self._left, kind = int.from_bytes(self._head[:3], "big"), self._head[3]
        self._head = b""
        if kind in (HEADERS, CONTINUATION):
            self.block = self._left + (self.block if kind == CONTINUATION else 0)
        return 1 if kind == DATA else 1 + self._left // FRAME_SIZE


class H2Protocol(hypercorn.protocol.h2.H2Protocol):
    """HTTP/2 whose odd frames end a stream, never the server."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection.decoder = _Decoder(max_header_list_size=self.config.h2_max_header_list_size)
        self._resets = 0
        self._resets_since = 0.0
        self._retires_at = retirement_time(TCPServer.max_age)
        self._refuses_at = math.inf
        """When streams are no longer taken, once the client has been told."""
        self._last_stream = 0
        """The last one that was taken."""
        self._refuses = False
        self._frames = Frames()

    def _is_flood(self) -> bool:
        """Whether this reset is one too many."""
        now = trio.current_time()
        if now - self._resets_since > RESETS_SECONDS:
            self._resets, self._resets_since = 0, now
        self._resets += 1
        return self._resets > MAX_RESETS

    async def _handle_events(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                try:
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                except h2.exceptions.ProtocolError:
                    continue  # the stream is closed on both sides: there is nobody to tell
                await self._flush()
            elif isinstance(event, h2.events.StreamReset) and self._is_flood():
                await self._end(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                return
            elif isinstance(event, h2.events.RequestReceived) and trio.current_time() >= self._refuses_at:
                await self._reject_stream(event.stream_id)
            elif not isinstance(event, h2.events.PriorityUpdated):
                await super()._handle_events([event])
                if isinstance(event, h2.events.RequestReceived | h2.events.StreamReset):
                    # Stock says so of answers only, and takes each request for one that is under way.
                    await self.send(Updated(idle=self.idle))
                    await self._retire()

    async def _retire(self) -> None:
        """Tell a client whose connection is old enough that the next one is due (RFC 9113 6.8).

        It is told while nothing is under way, if such a moment comes, as some clients give up what is.  h2 would end
        the connection with its own GOAWAY: this one changes nothing but what the client knows.
        """
        late = trio.current_time() - self._retires_at
        if self._refuses_at == math.inf and late >= (0 if self.idle else RETIREMENT_TIMEOUT):
            self._refuses_at = trio.current_time() + NOTICE_SECONDS
            await self._send_goaway(MAX_STREAM)

    async def _reject_stream(self, stream_id: int) -> None:
        """Take no stream of a client that knows: it may ask again elsewhere, and the last stream ends the connection."""
        if not self._refuses:
            self._refuses = True
            await self._send_goaway(self._last_stream)
        await self._reset(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
        await self._close_if_rejecting()

    async def _send_goaway(self, last_stream: int) -> None:
        await self.send(RawData(data=GoAwayFrame(last_stream_id=last_stream).serialize()))

    async def _close_if_rejecting(self) -> None:
        if self._refuses and self.idle:
            await self.send(Closed())

    async def handle(self, event: Any) -> None:
        if not isinstance(event, RawData):
            await super().handle(event)
            return
        for number, piece in enumerate(self._frames.split(event.data)):
            if number:
                await trio.lowlevel.checkpoint()
            if not self.closed:
                await self._read(piece)

    async def _read(self, data: bytes) -> None:
        if self._frames.block > self.config.h2_max_header_list_size:  # hpack's time grows with its square
            await self._end(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            return
        await super().handle(RawData(data))
        if not self.closed and self._reject_too_large():
            await self._end(h2.errors.ErrorCodes.FRAME_SIZE_ERROR)

    async def _end(self, code: h2.errors.ErrorCodes) -> None:
        """End the connection, and say why."""
        self.connection.close_connection(code)
        await self._flush()
        await self.send(Closed())

    def _reject_too_large(self) -> bool:
        """Whether the frame that has begun is longer than allowed: h2 says so when all of it, up to 16 MiB, is there."""
        preface = bytes(getattr(self.connection.incoming_buffer, "_data", b"")[:3])
        return len(preface) == 3 and int.from_bytes(preface, "big") > self.connection.max_inbound_frame_size

    async def stream_send(self, event: Any) -> None:
        try:
            await self._stream_send(event)
        except FlowControlTimeout:
            await self._reset(event.stream_id, h2.errors.ErrorCodes.CANCEL)
            if event.stream_id in self.stream_buffers:
                await self.stream_buffers[event.stream_id].close()
            await self._close_stream(event.stream_id)
            await self.send(Updated(idle=self.idle))

    async def _stream_send(self, event: Any) -> None:
        if isinstance(event, StreamClosed):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer._complete:
                await self._reset(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
                await buffer.close()
            # This runs in the app's task, which Quart-Trio cancels at the http.disconnect that is queued here.
            with trio.CancelScope(shield=True):
                await super().stream_send(event)
                await self._retire()
                await self._close_if_rejecting()
        else:
            await super().stream_send(event)

    async def _send_data(self, stream_id: int) -> None:
        buffer: Any = self.stream_buffers.get(stream_id)
        await super()._send_data(stream_id)
        if buffer is not None and stream_id not in self.stream_buffers:
            await buffer.ended.set()

    async def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        try:
            self.connection.reset_stream(stream_id, code)
            await self._flush()
        except h2.exceptions.ProtocolError:
            log.debug("stream %d is closed already", stream_id)

    async def _create_stream(self, request: Any) -> None:
        pseudo = dict(field for field in request.headers if field[0][:1] == b":")
        path, method = pseudo.get(b":path", b"\xff"), pseudo.get(b":method", b"\xff")
        websocket = method == b"CONNECT" and pseudo.get(b":protocol") == b"websocket"  # RFC 8441 4
        self._last_stream = request.stream_id
        if path.isascii() and method.isascii() and (websocket or method != b"CONNECT"):
            await super()._create_stream(request)
            self.keep_alive_requests = 0  # stock closes the connection under its streams after so many
        else:
            await self._reset(request.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
