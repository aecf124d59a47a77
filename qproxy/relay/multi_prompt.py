"""Several prompts in one request for completions: one response, combined from one per prompt.

The choices are numbered consecutively, the token counts summed. Whole responses are requested in parallel. A
stream has the responses in sequence, each opened when the one before has finished: so the client's pace
applies to all, and no upstream waits with a response that is not being read.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TypeAlias

from qproxy.relay.event_stream import EventStream
from qproxy.relay.fan_out import merge_records, run_bounded
from qproxy.telemetry import RelayRecord
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import (
    ChoiceFinished,
    EncryptedReasoning,
    Event,
    ExtraFields,
    ReasoningDelta,
    RefusalDelta,
    StreamDone,
    StreamFailed,
    TextDelta,
    Turn,
    Usage,
)
from qproxy.wire.token_estimate import prompt_size

MAX_CONCURRENT_PROMPTS = 4
"""Maximum concurrent whole responses of one request."""
OpenStream: TypeAlias = Callable[[Turn, RelayRecord, AsyncExitStack], Awaitable[EventStream]]


def split_prompts(turn: Turn) -> Iterator[Turn]:
    """Return one turn per prompt."""
    assert turn.completion is not None
    for prompt, message in zip(turn.completion.prompts, turn.messages, strict=True):
        part = replace(turn, messages=[message], completion=replace(turn.completion, prompts=(prompt,)))
        yield replace(part, token_estimate=turn.token_estimate.resized(prompt_size(part)))


class MultiPromptStream(EventStream):
    """The combined response."""

    def __init__(self, turn: Turn, record: RelayRecord, stack: AsyncExitStack, open: OpenStream) -> None:
        self._turns = list(split_prompts(turn))
        self._choices = turn.params.get("n", 1)
        """Choices per prompt."""
        self._record = record
        self._stack = stack
        self._open = open
        self._number = 0
        self._current: EventStream | None = None
        self._buffered = AsyncExitStack()
        """The exit stack of the current response."""
        self._index = RelayRecord()
        self._usage_so_far = Usage()
        """Usage of the responses before the current one."""
        self._pending: list[Event] = []

    def __repr__(self) -> str:
        return f"<MultiPromptStream at {self._number + 1} of {len(self._turns)}>"

    async def start(self, *, stream: bool) -> None:
        """Return when the response has started: a stream with its first event, a whole one with its last."""
        self._record.model = self._turns[0].model
        if stream:
            await self._start_next(0)
            return
        found: list[list[Event]] = [[] for _ in self._turns]

        async def one(number: int) -> None:
            part = RelayRecord()
            try:
                async with AsyncExitStack() as stack:
                    answer = await self._open(self._turns[number], part, stack)
                    found[number] = await answer.read_all()
            finally:
                merge_records(self._record, part)
                self._record.upstream_seconds = max(self._record.upstream_seconds, part.upstream_seconds)

        await run_bounded(one, len(self._turns), MAX_CONCURRENT_PROMPTS)
        for self._number, events in enumerate(found):
            self._pending += self._renumbered(events)
            self._usage_so_far = self._record.usage or self._usage_so_far

    async def _start_next(self, number: int) -> None:
        """Open the response to a prompt, after the previous one has finished."""
        await self._buffered.aclose()
        self._usage_so_far = self._record.usage or self._usage_so_far
        self._buffered = await self._stack.enter_async_context(AsyncExitStack())
        self._number, self._index, self._current = number, RelayRecord(), None
        try:
            self._current = await self._open(self._turns[number], self._index, self._buffered)
        finally:
            merge_records(self._record, self._index)

    def interrupt(self) -> None:
        if self._current is not None:
            self._current.interrupt()

    async def receive(self, until: float = math.inf) -> list[Event]:
        """Return events as `EventStream` does; between two responses `until` applies to the first event of
        the next."""
        if self._pending:
            events, self._pending = self._pending, []
            return events
        while self._current is not None:
            events = self._renumbered(await self._current.receive(until))
            if events:
                return events
            self._current = None
            if self._number + 1 < len(self._turns):
                try:
                    await self._start_next(self._number + 1)
                except QproxyError as error:
                    return [StreamFailed(error)]
        return []

    def _renumbered(self, events: Iterable[Event]) -> list[Event]:
        """Renumber the events of the current response for the combined one."""
        ours: list[Event] = []
        for event in events:
            if isinstance(event, Usage):
                event = self._record.usage = _sum(self._usage_so_far, event)
            elif isinstance(
                event,
                TextDelta | ReasoningDelta | EncryptedReasoning | RefusalDelta | ExtraFields | ChoiceFinished,
            ):
                event.choice += self._number * self._choices
            if not isinstance(event, StreamDone):  # the end of one is not the end of the combined response
                ours.append(event)
        return ours


def _sum(before: Usage, more: Usage) -> Usage:
    return Usage(
        before.prompt_tokens + more.prompt_tokens,
        before.completion_tokens + more.completion_tokens,
        before.total_tokens + more.total_tokens,
        more.prompt_details,
        more.completion_details,
        more.extra,
    )
