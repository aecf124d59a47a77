"""An answer under way: pulled by whoever writes it to the client, at the client's pace.

Each `receive` reads once from the upstream and returns every event that became certain with it: no queue, no pump
task, no nursery and no cancel scope across a `yield`.  `EventStream` is what the server asks of an answer; `UpstreamEventStream` is one
upstream response.  Several of them are one answer in `multi_prompt.MultiPromptStream` (one to each prompt) and `tool_loop.ToolLoop` (with
the server's own tools between).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import trio

from qproxy.telemetry import RelayRecord
from qproxy.transport import UpstreamResponse
from qproxy.wire import sse
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.events import Event, SearchInfo, StreamDone, StreamFailed, Usage
from qproxy.wire.pipeline import Pipeline

MAX_WHOLE_BODY = 64 * 1024 * 1024


SLICE = 16 * 1024
"""Bytes of an answer that are worked on before other tasks get their turn; an event that is longer has a thread."""
MAX_EVENTS = 2000
"""Of one read, that are given at once: more than those of a read of common size."""
T = TypeVar("T")


async def apart(work: Callable[..., T], *arguments: Any) -> T:
    """What a long piece of work returns: done in a thread, so that other tasks go on."""
    return await trio.to_thread.run_sync(work, *arguments)


class EventStream(Protocol):
    """An answer under way, whatever it is made of: `receive()` until it returns nothing.

    A failure is the last event, a `StreamFailed`; nothing is raised but cancellation.
    """

    def interrupt(self) -> None: ...

    async def receive(self, until: float = math.inf) -> list[Event]: ...

    async def read_all(self) -> list[Event]: ...


def is_content(event: Event) -> bool:
    """Whether an event is part of an answer: after it has gone out, nothing is tried again."""
    return not isinstance(event, SearchInfo | Usage | StreamDone | StreamFailed)


class UpstreamEventStream:
    """What one upstream response says."""

    def __init__(
        self, record: RelayRecord, *, source: UpstreamResponse | None, front: Pipeline, back: Pipeline
    ) -> None:
        self._source = source
        self._decoder = front
        self._normalizer = back
        self._record = record
        self._pending: list[Event] = []
        self._finished = False
        self._bytes = 0
        self._usage: Usage | None = None
        self._event_count = 0

    def __repr__(self) -> str:
        return f"<Answer of {self._record.account} {'over' if self._finished else 'under way'}>"

    def interrupt(self) -> None:
        """Make the `receive` that is waiting, if there is one, raise Quiet."""
        if self._source is not None:
            self._source.interrupt()

    async def receive(self, until: float = math.inf) -> list[Event]:
        """Every event that became certain with one read of the upstream; empty at the end.

        Raises `transport.ReceiveTimeout` at `until` (Trio's clock) when there is none yet: nothing is lost, ask again.
        """
        while not self._pending and not self._finished:
            self._pending = await self._read(until)
        if len(self._pending) <= MAX_EVENTS:
            events, self._pending = self._pending, []
        else:
            events = self._pending[:MAX_EVENTS]
            del self._pending[:MAX_EVENTS]
            await trio.lowlevel.checkpoint()
        return events

    def tokens_used(self, prompt: int) -> int:
        """How many it took: as the server says, else about so many as there are events, and the prompt's."""
        return self._usage.total_tokens if self._usage else prompt + self._event_count

    async def read_all(self) -> list[Event]:
        """The rest of the answer, up to a size that nobody's answer has."""
        events: list[Event] = []
        while piece := await self.receive():
            events.extend(piece)
            if self._bytes > MAX_WHOLE_BODY:
                message = f"The model's server sent an answer of more than {MAX_WHOLE_BODY} bytes."
                return [*events, StreamFailed(UpstreamError(message, code="upstream_invalid_response"))]
        return events

    async def wait_started(self) -> None:
        """Return when the first event of the answer is there; raise the error when it never comes."""
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
                )  # once: the end is all that came
        self._pending = [*events, *self._pending]

    def feed(self, events: Iterable[Event], *, last: bool = False) -> None:
        """Events that are there already: a whole answer."""
        self._pending = self._observe(self._normalizer.feed_many(list(events)))
        if last and not self._finished:
            self._pending += self._close()

    def _is_empty_body(self) -> UpstreamError:
        """An answer without an answer, and what it consisted of, for whoever looks for the cause."""
        came = f"{self._bytes} bytes without an event of an answer" if self._bytes else "an empty body"
        return UpstreamError(f"The model's server answered with status 200 and {came}.", retry=RetryHint.ONCE)

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
            return self._taken(data)  # what nearly every read is
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
        """What some work returns: with a long event before it, in a thread."""
        return await apart(work, *arguments) if self._held() > SLICE else work(*arguments)

    def _held(self) -> int:
        """Characters that wait in front for the end of their event."""
        first = self._decoder.stages[0] if self._decoder.stages else None
        return first.held if isinstance(first, sse.Decoder) else 0

    def _taken(self, data: bytes) -> list[Event]:
        """What becomes certain with some bytes."""
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
            self._event_count += 1
            if isinstance(event, Usage):
                self._record.usage = self._usage = event
            elif isinstance(event, StreamFailed):
                self._finished = True
                break
        return seen
