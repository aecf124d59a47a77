"""HTTP/2 with bounded buffers, in which an invalid frame ends a stream, never the server.

A full stream buffer blocks the producer until the client's flow-control window opens.
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
"""The number of streams that a client may reset in a period of seconds."""
RETIREMENT_TIMEOUT = 30.0
"""Seconds that an old connection has to become idle before GOAWAY is sent despite active streams."""
NOTICE_SECONDS = 5.0
"""Seconds from GOAWAY until streams are refused: streams already in transit are accepted."""
MAX_STREAM = 2**31 - 1
DATA, HEADERS, CONTINUATION = 0, 1, 9
PREFACE_SIZE, FRAME_HEAD = 24, 9
"""Bytes (RFC 9113 3.4, 4.1)."""
FRAMES = 32
"""Frames that are processed before other tasks run. A read of 64 KiB may hold 7,281 of them."""
FRAME_SIZE = 1024
"""Bytes of a non-DATA frame that count as another frame: a header, a setting or a table resize takes a few
each."""
log = logging.getLogger("qproxy.http_server")


class FlowControlTimeout(Exception):
    """Raised when the client did not open its flow-control window within the write timeout."""


class StreamBuffer(hypercorn.protocol.h2.StreamBuffer):
    """A stream buffer that blocks its producer at a closed window, and drains until END_STREAM is sent.

    Stock `pop` decides by the bytes taken, so a closed window (none taken) does not stop the producer. Stock
    `drain` returns before END_STREAM is sent, so a connection that closes then (during shutdown) loses it.
    Both wait without a timeout for a client that reads nothing.
    """

    def __init__(self, event_class: Any) -> None:
        super().__init__(event_class)
        self.ended = event_class()
        self._waiters = trio.CancelScope()

    async def drain(self) -> None:
        await self._wait_progress(self.ended if self._complete else self._is_empty)

    async def _wait_progress(self, event: Any) -> None:
        """Wait for an event while the client keeps reading. Raise FlowControlTimeout otherwise."""
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
"""Matches more table size updates than a header block may start with (RFC 7541 4.2)."""


class _Decoder(hpack.Decoder):
    """An HPACK decoder with a limit on table size updates: each costs microseconds, and hpack accepts any
    number."""

    def decode(self, data: bytes, raw: bool = False) -> Any:
        if _UPDATES.match(data):
            raise hpack.HPACKDecodingError("more than two table size updates in one header block")
        return super().decode(data, raw)


class Frames:
    """A splitter of received bytes at the ends of frames."""

    block = 0
    """Compressed bytes of the last header block so far."""

    def __init__(self) -> None:
        self._left = PREFACE_SIZE
        """Bytes left of the current frame, or of the preface."""
        self._head = b""

    def split(self, data: bytes) -> Iterator[bytes]:
        """Yield the data in slices of about `FRAMES` frames."""
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
        """Start a frame whose header is complete, and return its weight in frames."""
        self._left, kind = int.from_bytes(self._head[:3], "big"), self._head[3]
        self._head = b""
        if kind in (HEADERS, CONTINUATION):
            self.block = self._left + (self.block if kind == CONTINUATION else 0)
        return 1 if kind == DATA else 1 + self._left // FRAME_SIZE


class H2Protocol(hypercorn.protocol.h2.H2Protocol):
    """An HTTP/2 connection in which an invalid frame ends a stream, never the server."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection.decoder = _Decoder(max_header_list_size=self.config.h2_max_header_list_size)
        self._resets = 0
        self._resets_since = 0.0
        self._retires_at = retirement_time(TCPServer.max_age)
        self._refuses_at = math.inf
        """The time from which streams are refused, set once GOAWAY is sent (Trio's clock)."""
        self._last_stream = 0
        """The ID of the last accepted stream."""
        self._refuses = False
        self._frames = Frames()
        self._discarded = 0
        """Bytes of requests received after their responses, since the last reset for that."""

    def _is_flood(self) -> bool:
        """Count a reset, and return whether it exceeds `MAX_RESETS`."""
        now = trio.current_time()
        if now - self._resets_since > RESETS_SECONDS:
            self._resets, self._resets_since = 0, now
        self._resets += 1
        return self._resets > MAX_RESETS

    async def _handle_events(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                await self._discard(event)
            elif isinstance(event, h2.events.StreamReset) and self._is_flood():
                await self._end(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                return
            elif isinstance(event, h2.events.RequestReceived) and trio.current_time() >= self._refuses_at:
                await self._reject_stream(event.stream_id)
            elif not isinstance(event, h2.events.PriorityUpdated):
                await super()._handle_events([event])
                if isinstance(event, h2.events.RequestReceived | h2.events.StreamReset):
                    # Stock updates idleness only after responses, and counts each request as active.
                    await self.send(Updated(idle=self.idle))
                    await self._retire()

    async def _discard(self, event: h2.events.DataReceived) -> None:
        """Drop a part of a request whose response is complete, up to the connection's linger budget."""
        try:
            self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        except h2.exceptions.ProtocolError:
            return  # the stream is closed on both sides
        await self._flush()
        self._discarded += event.flow_controlled_length
        if self._discarded > TCPServer.linger_budget():
            self._discarded = 0
            await self._reset(event.stream_id, h2.errors.ErrorCodes.NO_ERROR)  # RFC 9113 8.1

    async def _retire(self) -> None:
        """Send GOAWAY on a connection that has reached its age (RFC 9113 6.8).

        It is sent while no stream is active if possible, since some clients abort active streams. The frame
        is serialized here because h2 would close the connection with its own GOAWAY.
        """
        late = trio.current_time() - self._retires_at
        if self._refuses_at == math.inf and late >= (0 if self.idle else RETIREMENT_TIMEOUT):
            self._refuses_at = trio.current_time() + NOTICE_SECONDS
            await self._send_goaway(MAX_STREAM)

    async def _reject_stream(self, stream_id: int) -> None:
        """Refuse a stream after GOAWAY, so that the client retries on another connection; the last one closes
        this."""
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
        """Close the connection with an error code."""
        self.connection.close_connection(code)
        await self._flush()
        await self.send(Closed())

    def _reject_too_large(self) -> bool:
        """Return whether the current frame is too long, which h2 checks only when all of it (16 MiB) has
        arrived."""
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
            # This runs in the app's task, which Quart-Trio cancels at the http.disconnect queued here.
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
            log.debug("stream %d is already closed", stream_id)

    async def _create_stream(self, request: Any) -> None:
        pseudo = dict(field for field in request.headers if field[0][:1] == b":")
        path, method = pseudo.get(b":path", b"\xff"), pseudo.get(b":method", b"\xff")
        websocket = method == b"CONNECT" and pseudo.get(b":protocol") == b"websocket"  # RFC 8441 4
        self._last_stream = request.stream_id
        if path.isascii() and method.isascii() and (websocket or method != b"CONNECT"):
            await super()._create_stream(request)
            self.keep_alive_requests = 0  # at its limit, stock closes the connection under its streams
        else:
            await self._reset(request.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
