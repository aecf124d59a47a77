"""A response in progress, pulled at the client's pace by the code that sends it to the client.

Each `receive` reads once from the upstream and returns every complete event: no queue, no pump task, no
nursery and no cancel scope across a `yield`. `EventStream` is the interface for the server;
`UpstreamEventStream` is one upstream response. `multi_prompt.MultiPromptStream` (one per prompt) and
`tool_loop.ToolLoop` (with the server's own tools in between) combine several.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

import trio

from qproxy.telemetry import RelayRecord, ResponseTokens
from qproxy.transport import UpstreamResponse
from qproxy.wire import sse
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.events import Event, ExtraFields, SearchInfo, StreamDone, StreamFailed, Usage
from qproxy.wire.pipeline import Pipeline

MAX_WHOLE_BODY = 64 * 1024 * 1024


SLICE = 16 * 1024
"""Bytes of a response that are processed between checkpoints; a longer event is processed in a thread."""
MAX_EVENTS = 2000
"""Maximum events returned at once: more than those of a usual read."""
T = TypeVar("T")


async def apart(work: Callable[..., T], *arguments: Any) -> T:
    """Return the result of long work, done in a thread so that other tasks continue."""
    return await trio.to_thread.run_sync(work, *arguments)


class EventStream(Protocol):
    """A response in progress: call `receive()` until it returns nothing.

    A failure is the last event, a `StreamFailed`; only cancellation is raised.
    """

    def interrupt(self) -> None: ...

    async def receive(self, until: float = math.inf) -> list[Event]: ...

    async def read_all(self) -> list[Event]:
        """Return the remaining events."""
        events: list[Event] = []
        while piece := await self.receive():
            events += piece
        return events


def is_content(event: Event) -> bool:
    """Return whether an event is content: after it was sent, no attempt follows."""
    if isinstance(event, ExtraFields):
        return event.level == "delta"
    return not isinstance(event, SearchInfo | Usage | StreamDone | StreamFailed)


class UpstreamEventStream:
    """The events of one upstream response."""

    def __init__(
        self,
        record: RelayRecord,
        tokens: ResponseTokens,
        *,
        source: UpstreamResponse | None,
        front: Pipeline,
        back: Pipeline,
    ) -> None:
        """`tokens` counts those of this response as it arrives."""
        self._source = source
        self._decoder = front
        self._normalizer = back
        self._record = record
        self._pending: list[Event] = []
        self._finished = False
        self._bytes = 0
        self.tokens = tokens
        self.on_finished: Callable[[], Awaitable[None]] | None = None
        """Called once, before the last events are returned."""

    def __repr__(self) -> str:
        return f"<UpstreamEventStream of {self._record.account} {'finished' if self._finished else 'active'}>"

    def interrupt(self) -> None:
        """Make the waiting `receive`, if any, raise ReceiveTimeout."""
        if self._source is not None:
            self._source.interrupt()

    async def receive(self, until: float = math.inf) -> list[Event]:
        """Return the events completed by one read of the upstream; empty at the end.

        Raises `transport.ReceiveTimeout` at `until` (Trio's clock): nothing is lost, and `receive` may be
        called again.
        """
        while not self._pending and not self._finished:
            self._pending = await self._read(until)
        if self._finished and self.on_finished is not None:
            on_finished, self.on_finished = self.on_finished, None
            await on_finished()
        if len(self._pending) <= MAX_EVENTS:
            events, self._pending = self._pending, []
        else:
            events = self._pending[:MAX_EVENTS]
            del self._pending[:MAX_EVENTS]
            await trio.lowlevel.checkpoint()
        return events

    async def read_all(self) -> list[Event]:
        """Return the remaining events, of at most MAX_WHOLE_BODY bytes."""
        events: list[Event] = []
        while piece := await self.receive():
            events.extend(piece)
            if self._bytes > MAX_WHOLE_BODY:
                message = f"The upstream sent a response of more than {MAX_WHOLE_BODY} bytes."
                return [*events, StreamFailed(UpstreamError(message, code="upstream_invalid_response"))]
        return events

    async def wait_started(self) -> None:
        """Return when the first event is there. Raises the error of a stream that fails before."""
        events: list[Event] = []
        while not any(is_content(event) for event in events):
            piece = await self.receive()
            if not piece:
                raise self._is_empty_body()
            events += piece
            if isinstance(piece[-1], StreamFailed) and not any(is_content(event) for event in events):
                error = piece[-1].error
                raise (
                    self._is_empty_body() if error.retry is RetryHint.ONCE else error
                )  # once: nothing but the end was received
        self._pending = [*events, *self._pending]

    def prepend(self, event: Event) -> None:
        """Return an event before those that have arrived."""
        self._pending.insert(0, event)

    def feed(self, events: Iterable[Event], *, last: bool = False) -> None:
        """Add the events of a whole response."""
        self._pending = self._observe(self._normalizer.feed_many(list(events)))
        if last and not self._finished:
            self._pending += self._close()

    def _is_empty_body(self) -> UpstreamError:
        """Return the error for a response without content, with a description of what was received."""
        came = f"{self._bytes} bytes without content" if self._bytes else "an empty body"
        return UpstreamError(f"The upstream returned 200 with {came}.", retry=RetryHint.ONCE)

    async def _read(self, until: float) -> list[Event]:
        assert self._source is not None
        before = trio.current_time()
        try:
            data = await self._source.receive(until)
            self._bytes += len(data)
        except UpstreamError as error:
            return await self._worked(self._failed, error)
        finally:
            self._record.upstream_seconds += trio.current_time() - before
        if not data:
            return await self._worked(self._close)
        if len(data) <= SLICE and self._held() <= SLICE:
            return self._taken(data)  # nearly every read
        events = []
        for start in range(0, len(data), SLICE):
            if start:
                await trio.lowlevel.checkpoint()
            piece = data[start : start + SLICE]
            events += await self._worked(self._taken, piece)
            if self._finished:
                break
        return events

    async def _worked(self, work: Callable[..., list[Event]], *arguments: Any) -> list[Event]:
        """Return the result of some work, in a thread if a long event precedes it."""
        return await apart(work, *arguments) if self._held() > SLICE else work(*arguments)

    def _held(self) -> int:
        """Characters buffered until their event is complete."""
        first = self._decoder.stages[0] if self._decoder.stages else None
        return first.held if isinstance(first, sse.Decoder) else 0

    def _taken(self, data: bytes) -> list[Event]:
        """Return the events completed by some bytes."""
        return self._observe(self._normalizer.feed_many(self._decoder.feed(data)))

    def _failed(self, error: UpstreamError) -> list[Event]:
        self._finished = True
        return self._observe(self._normalizer.feed_many([*self._decoder.close(), StreamFailed(error)]))

    def _close(self) -> list[Event]:
        self._finished = True
        events = self._normalizer.feed_many(self._decoder.close())
        return self._observe([*events, *self._normalizer.close()])

    def _observe(self, events: Iterable[Event]) -> list[Event]:
        seen = []
        for event in events:
            seen.append(event)
            if isinstance(event, Usage):
                self._record.usage = event
            elif isinstance(event, StreamFailed):
                self._finished = True
                break
        self.tokens.add(seen)
        return seen
