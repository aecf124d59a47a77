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

from qproxy.relay.event_stream import Pulled
from qproxy.server.http_response import Pieces
from qproxy.server.in_flight import Life
from qproxy.telemetry import Record, ToolRun
from qproxy.telemetry.body_log import Streamed
from qproxy.transport import Quiet
from qproxy.wire.endpoints import StreamEncoder
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import Event, Failed, Finish, ServerResult

log = logging.getLogger("qproxy.server")
COMMENT = b": keep-alive\n\n"
"""Server-sent events: a line that begins with a colon is skipped by every client."""


class Stream(Pieces):
    """The body of one streamed answer."""

    def __init__(
        self,
        answer: Pulled,
        encoder: StreamEncoder,
        record: Record,
        life: Life,
        *,
        keep_alive: float = math.inf,
        ended: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._answer = answer
        self._encoder = encoder
        self._record = record
        self._life = life
        self._keep_alive = keep_alive
        self._ended = ended
        """What is to be done when the answer is there, before its last bytes go out."""
        self._copy: Streamed | None = None
        life.wakes(answer.interrupt)

    def copies_to(self, copy: Streamed) -> None:
        """Tell of every piece that is sent."""
        self._copy = copy

    async def __anext__(self) -> bytes:
        while not self.over:
            try:
                data = await self._next()
            except Exception:
                log.exception("request %s failed after its answer had begun", self._record.id)
                data = self._fail(internal_error())
            if self._copy is not None:
                self._copy.add(data)
            if data:
                return data
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        error = self._life.over()
        if error is not None:
            return self._fail(error)
        comment_at = trio.current_time() + self._keep_alive
        try:
            events = await self._answer.receive(min(comment_at, self._life.deadline))
        except Quiet:
            return COMMENT if trio.current_time() >= comment_at else b""
        if not events:
            self.over = True
            self._record.answered = self._record.seconds
            self._record.outcome = "upstream_cut" if self._record.error else "ok"
            last = b"".join(self._encoder.close())
            if self._ended is not None:
                await self._ended()
            return last
        note(self._record, events)
        return b"".join(piece for event in events for piece in self._encoder.feed(event))

    def _fail(self, error: QproxyError) -> bytes:
        self.over = True
        self._record.fail(error, "failed")
        return self._encoder.failure(error)


def note(record: Record, events: list[Event]) -> None:
    """What the log should know of some events."""
    record.pieces += len(events)
    last: Any = events[-1]
    if isinstance(last, Failed):
        record.error = last.error.code or last.error.type
    for event in events:
        if isinstance(event, Finish):
            record.finish = event.reason
        elif isinstance(event, ServerResult):
            record.tools.append(ToolRun(event.name, event.ok, event.seconds))


def internal_error() -> QproxyError:
    """What a client is told of a fault of ours; the log has the rest."""
    return QproxyError("qproxy had an internal error; its log has the details.", code="internal_error")
