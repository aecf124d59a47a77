"""In-memory fakes of the stores of conversations and of response runs; several processes may hold the same
one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from qproxy.server.conversation_store import Conversation, ConversationNotFound, ItemNotFound
from qproxy.server.response_runs import RecordedStream, RunEvents, RunNotFound, RunSignal, RunState

Clock = Callable[[], float]


class WallClock:
    """A wall clock that goes with Trio's, and that a test may set forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now + trio.current_time()


class FakeConversations:
    """Conversations in a dictionary, without expiry."""

    def __init__(self) -> None:
        self._conversations: dict[tuple[str, str], tuple[Conversation, dict[str, Any]]] = {}

    async def create(self, conversation: Conversation, items: Sequence[Any]) -> None:
        self._conversations[conversation.owner, conversation.id] = (conversation, {})
        await self.append(conversation.owner, conversation.id, items)

    async def get(self, owner: str, id: str) -> Conversation:
        return (await self._find(owner, id))[0]

    async def update(self, owner: str, id: str, metadata: Mapping[str, str]) -> Conversation:
        conversation, items = await self._find(owner, id)
        conversation = replace(conversation, metadata=metadata)
        self._conversations[owner, id] = (conversation, items)
        return conversation

    async def delete(self, owner: str, id: str) -> None:
        await self._find(owner, id)
        del self._conversations[owner, id]

    async def append(self, owner: str, id: str, items: Sequence[Any]) -> None:
        _, known = await self._find(owner, id)
        for item in items:
            known.setdefault(item["id"], item)

    async def items(self, owner: str, id: str) -> list[Any]:
        return list((await self._find(owner, id))[1].values())

    async def delete_item(self, owner: str, id: str, item: str) -> None:
        if (await self._find(owner, id))[1].pop(item, None) is None:
            raise ItemNotFound(item)

    async def delete_owner(self, owner: str) -> int:
        await trio.lowlevel.checkpoint()
        gone = [key for key in self._conversations if key[0] == owner]
        for key in gone:
            del self._conversations[key]
        return len(gone)

    async def aclose(self) -> None:
        pass

    async def _find(self, owner: str, id: str) -> tuple[Conversation, dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        if (owner, id) not in self._conversations:
            raise ConversationNotFound(id)
        return self._conversations[owner, id]


@dataclass
class Run:
    """A run in memory."""

    lease: float
    events: list[bytes] = field(default_factory=list)
    cancelled: bool = False
    ended: bool = False


class FakeResponseRuns:
    """Runs in a dictionary, without expiry and limits."""

    def __init__(self, wall_clock: Clock = time.time) -> None:
        self._runs: dict[tuple[str, str], Run] = {}
        self._wall_clock = wall_clock

    async def start(self, owner: str, id: str, events: Sequence[bytes], lease: float) -> None:
        await trio.lowlevel.checkpoint()
        self._runs[owner, id] = Run(self._wall_clock() + lease, list(events))

    async def append(
        self, owner: str, id: str, first: int, events: Sequence[bytes], lease: float
    ) -> RunSignal:
        run = await self._find(owner, id)
        if run is None or run.ended:
            return RunSignal.STOP
        run.lease = self._wall_clock() + lease
        run.events += events[len(run.events) - first :]
        return RunSignal.CANCEL if run.cancelled else RunSignal.CONTINUE

    async def finish(self, owner: str, id: str) -> bool:
        run = await self._find(owner, id)
        if run is None or run.ended:
            return False
        run.ended = True
        return True

    async def request_cancel(self, owner: str, id: str) -> bool:
        run = await self._find(owner, id)
        if run is None or self._state(run) is not RunState.ACTIVE:
            return False
        run.cancelled = True
        return True

    async def end_lost(self, owner: str, id: str) -> bool:
        run = await self._find(owner, id)
        if run is not None and self._state(run) is RunState.LOST:
            run.ended = True
        return run is None or run.ended

    async def save_streams(self, streams: Sequence[RecordedStream]) -> None:
        await trio.lowlevel.checkpoint()
        for stream in streams:
            self._runs[stream.owner, stream.id] = Run(0.0, list(stream.events), ended=True)

    async def read(self, owner: str, id: str, after: int) -> RunEvents:
        run = await self._find(owner, id)
        if run is None:
            raise RunNotFound(id)
        start = max(after + 1, 0)
        return RunEvents(self._state(run), start, run.events[start:], len(run.events))

    async def delete(self, owner: str, id: str) -> None:
        await trio.lowlevel.checkpoint()
        self._runs.pop((owner, id), None)

    async def delete_owner(self, owner: str) -> int:
        await trio.lowlevel.checkpoint()
        gone = [key for key in self._runs if key[0] == owner]
        for key in gone:
            del self._runs[key]
        return len(gone)

    async def aclose(self) -> None:
        pass

    def _state(self, run: Run) -> RunState:
        if run.ended:
            return RunState.ENDED
        return RunState.LOST if run.lease < self._wall_clock() else RunState.ACTIVE

    async def _find(self, owner: str, id: str) -> Run | None:
        await trio.lowlevel.checkpoint()
        return self._runs.get((owner, id))
