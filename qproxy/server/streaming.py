"""A streamed response body, pulled at the client's pace.

All events of one read are sent as one chunk. There is no queue, no task and no generator: each pull reads the
next events. While the upstream is silent, the API's keep-alive is sent every `keep_alive_interval` seconds so
that no proxy closes the connection; the interrupted read loses nothing (`transport.interruptible`).
"""

from __future__ import annotations

import logging
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


class SSEBody(StreamingBody):
    """The body of one streamed response."""

    def __init__(
        self,
        answer: EventStream,
        encoder: StreamEncoder,
        record: RequestRecord,
        in_flight: InFlightRequest,
        *,
        keep_alive: bytes,
        keep_alive_interval: float,
        on_finished: Callable[[], Awaitable[None]],
    ) -> None:
        """`keep_alive` is sent to fill silence; `on_finished` runs after the last event, before its bytes are
        sent."""
        self._events = answer
        self._encoder = encoder
        self._record = record
        self._in_flight = in_flight
        self._keep_alive = keep_alive
        self._keep_alive_interval = keep_alive_interval
        self._on_finished = on_finished
        self._logger: StreamLogger | None = None
        in_flight.on_end(answer.interrupt)

    def log_to(self, logger: StreamLogger) -> None:
        """Copy every chunk that is sent to a logger."""
        self._logger = logger

    async def __anext__(self) -> bytes:
        while not self.finished:
            try:
                data = await self._next()
            except Exception:
                log.exception("request %s failed after its response had started", self._record.id)
                data = self._fail(internal_error(self._record.id))
            if self._logger is not None:
                self._logger.add(data)
            if data:
                return data
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        error = self._in_flight.error()
        if error is not None:
            return self._fail(error)
        keep_alive_at = trio.current_time() + self._keep_alive_interval
        try:
            events = await self._events.receive(min(keep_alive_at, self._in_flight.deadline))
        except ReceiveTimeout:
            return self._keep_alive if trio.current_time() >= keep_alive_at else b""
        if not events:
            self.finished = True
            self._record.response_started = self._record.seconds
            self._record.outcome = "upstream_truncated" if self._record.error else "ok"
            last = b"".join(self._encoder.close())
            await self._on_finished()
            return last
        record_events(self._record, events)
        return b"".join(piece for event in events for piece in self._encoder.feed(event))

    def _fail(self, error: QproxyError) -> bytes:
        self.finished = True
        self._record.fail(error, "internal_error")
        return self._encoder.error_event(error)


def record_events(record: RequestRecord, events: list[Event]) -> None:
    """Note in a request's record what its log line needs of some events."""
    record.chunks += len(events)
    last: Any = events[-1]
    if isinstance(last, StreamFailed):
        record.note_error(last.error)
    for event in events:
        if isinstance(event, ChoiceFinished):
            record.finish_reason = event.reason
        elif isinstance(event, ServerToolResult):
            record.tools.append(ToolRunRecord(event.name, event.ok, event.seconds))


def internal_error(request_id: str) -> QproxyError:
    """Return the error for an unexpected exception; only the log has its details."""
    return QproxyError(
        f"Internal server error (request {request_id}); see the qproxy log.", code="internal_error"
    )
