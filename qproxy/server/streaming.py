"""A streamed answer as it is sent: pulled at the client's pace.

One piece of bytes leaves for all events of one read.  There is no queue, no task and no generator: what is asked
for next is read next.  While the model says nothing a comment goes out every `keep_alive` seconds, so that nobody in
between takes the silence for the end; the pull that it interrupts loses nothing (`transport.patience`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from qproxy.relay.event_stream import EventStream
from qproxy.server.http_response import StreamingBody
from qproxy.server.in_flight import InFlightRequest
from qproxy.telemetry import RequestRecord, ToolRunRecord
from qproxy.telemetry.body_log import StreamLogger
from qproxy.transport import ReceiveTimeout
from qproxy.wire.endpoints import StreamEncoder
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import ChoiceFinished, Event, ServerToolResult, StreamFailed

log = logging.getLogger("qproxy.server")
KEEP_ALIVE_COMMENT = b": keep-alive\n\n"
"""Server-sent events: a line that begins with a colon is skipped by every client."""


class SSEBody(StreamingBody):
    """The body of one streamed answer."""

    def __init__(
        self,
        answer: EventStream,
        encoder: StreamEncoder,
        record: RequestRecord,
        in_flight: InFlightRequest,
        *,
        keep_alive: float = math.inf,
        ended: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._events = answer
        self._encoder = encoder
        self._record = record
        self._in_flight = in_flight
        self._keep_alive = keep_alive
        self._finished = ended
        """What is to be done when the answer is there, before its last bytes go out."""
        self._logger: StreamLogger | None = None
        in_flight.on_end(answer.interrupt)

    def log_to(self, copy: StreamLogger) -> None:
        """Tell of every piece that is sent."""
        self._logger = copy

    async def __anext__(self) -> bytes:
        while not self.over:
            try:
                data = await self._next()
            except Exception:
                log.exception("request %s failed after its answer had begun", self._record.id)
                data = self._fail(internal_error())
            if self._logger is not None:
                self._logger.add(data)
            if data:
                return data
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        error = self._in_flight.error()
        if error is not None:
            return self._fail(error)
        comment_at = trio.current_time() + self._keep_alive
        try:
            events = await self._events.receive(min(comment_at, self._in_flight.deadline))
        except ReceiveTimeout:
            return KEEP_ALIVE_COMMENT if trio.current_time() >= comment_at else b""
        if not events:
            self.over = True
            self._record.response_started = self._record.seconds
            self._record.outcome = "upstream_cut" if self._record.error else "ok"
            last = b"".join(self._encoder.close())
            if self._finished is not None:
                await self._finished()
            return last
        record_events(self._record, events)
        return b"".join(piece for event in events for piece in self._encoder.feed(event))

    def _fail(self, error: QproxyError) -> bytes:
        self.over = True
        self._record.fail(error, "failed")
        return self._encoder.error_event(error)


def record_events(record: RequestRecord, events: list[Event]) -> None:
    """What the log should know of some events."""
    record.chunks += len(events)
    last: Any = events[-1]
    if isinstance(last, StreamFailed):
        record.error = last.error.code or last.error.type
    for event in events:
        if isinstance(event, ChoiceFinished):
            record.finish_reason = event.reason
        elif isinstance(event, ServerToolResult):
            record.tools.append(ToolRunRecord(event.name, event.ok, event.seconds))


def internal_error() -> QproxyError:
    """What a client is told of a fault of ours; the log has the rest."""
    return QproxyError("qproxy had an internal error; its log has the details.", code="internal_error")
