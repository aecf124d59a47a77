"""Several prompts in one request for completions: one answer, made of one to each.

The choices are numbered on, the counts of tokens added up.  Whole answers are got side by side.  A stream has the
answers one after the other, each opened when the one before is over: the client's pace is then the pace of all, and
no model's server is kept waiting with an answer that nobody reads yet.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TypeAlias

from qproxy.relay.event_stream import Pulled
from qproxy.relay.fan_out import absorb, side_by_side
from qproxy.telemetry import Story
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import Done, Event, Failed, Finish, Reasoning, Refusal, Text, Turn, Usage

AT_ONCE = 4
"""Whole answers that one request has under way."""
Open: TypeAlias = Callable[[Turn, Story, AsyncExitStack], Awaitable[Pulled]]


def split(turn: Turn) -> Iterator[Turn]:
    """A turn for each prompt."""
    assert turn.completion is not None
    for prompt, message in zip(turn.completion.prompts, turn.messages, strict=True):
        yield replace(turn, messages=[message], completion=replace(turn.completion, prompts=(prompt,)))


class Series:
    """The one answer."""

    def __init__(self, turn: Turn, story: Story, stack: AsyncExitStack, open: Open) -> None:
        self._turns = list(split(turn))
        self._choices = turn.params.get("n", 1)
        """Of each prompt."""
        self._story = story
        self._stack = stack
        self._open = open
        self._number = 0
        self._current: Pulled | None = None
        self._held = AsyncExitStack()
        """What the current answer holds open."""
        self._part = Story()
        self._before = Usage()
        """What the answers before the current one have used."""
        self._pending: list[Event] = []

    def __repr__(self) -> str:
        return f"<Series at {self._number + 1} of {len(self._turns)}>"

    async def begin(self, *, stream: bool) -> None:
        """Return when the answer has begun: a stream with its first event, a whole one with its last."""
        self._story.model = self._turns[0].model
        if stream:
            await self._begin(0)
            return
        found: list[list[Event]] = [[] for _ in self._turns]

        async def one(number: int) -> None:
            part = Story()
            try:
                async with AsyncExitStack() as stack:
                    answer = await self._open(self._turns[number], part, stack)
                    found[number] = await answer.all()
            finally:
                absorb(self._story, part)
                self._story.upstream_seconds = max(self._story.upstream_seconds, part.upstream_seconds)

        await side_by_side(one, len(self._turns), AT_ONCE)
        for self._number, events in enumerate(found):
            self._pending += self._ours(events)
            self._before = self._story.usage or self._before

    async def _begin(self, number: int) -> None:
        """Open the answer to a prompt; the one before is over."""
        await self._held.aclose()
        self._before = self._story.usage or self._before
        self._held = await self._stack.enter_async_context(AsyncExitStack())
        self._number, self._part, self._current = number, Story(), None
        try:
            self._current = await self._open(self._turns[number], self._part, self._held)
        finally:
            absorb(self._story, self._part)

    def interrupt(self) -> None:
        if self._current is not None:
            self._current.interrupt()

    async def receive(self, until: float = math.inf) -> list[Event]:
        """As `Pulled` says.  Between two answers `until` waits for the first event of the next."""
        if self._pending:
            events, self._pending = self._pending, []
            return events
        while self._current is not None:
            events = self._ours(await self._current.receive(until))
            if events:
                return events
            self._current = None
            if self._number + 1 < len(self._turns):
                try:
                    await self._begin(self._number + 1)
                except QproxyError as error:
                    return [Failed(error)]
        return []

    async def all(self) -> list[Event]:
        """The rest of the answer."""
        events: list[Event] = []
        while piece := await self.receive():
            events += piece
        return events

    def _ours(self, events: Iterable[Event]) -> list[Event]:
        """The events of the current answer as those of the whole one."""
        ours: list[Event] = []
        for event in events:
            if isinstance(event, Usage):
                event = self._story.usage = _sum(self._before, event)
            elif isinstance(event, Text | Reasoning | Refusal | Finish):
                event.choice += self._number * self._choices
            if not isinstance(event, Done):  # the end of one is not the end of all
                ours.append(event)
        return ours


def _sum(before: Usage, more: Usage) -> Usage:
    return Usage(
        before.prompt_tokens + more.prompt_tokens,
        before.completion_tokens + more.completion_tokens,
        before.total_tokens + more.total_tokens,
        more.prompt_details,
        more.completion_details,
    )
