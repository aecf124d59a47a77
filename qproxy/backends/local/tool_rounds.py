"""The hidden tool rounds of one process, in memory: bounded in number, in bytes and in time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from qproxy.relay.tool_rounds import CallIds, ConversationKey
from qproxy.wire import json_codec
from qproxy.wire.events import JSON


@dataclass(slots=True)
class _Round:
    messages: Sequence[JSON]
    size: int
    expires: float


class MemoryToolRounds:
    """The store; the least recently used round is dropped first."""

    def __init__(
        self,
        *,
        seconds: float,
        max_entries: int = 10_000,
        max_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """`seconds` is how long a round is kept after its last use."""
        self._clock = clock
        self._seconds = seconds
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._size = 0
        self._rounds: OrderedDict[tuple[ConversationKey, CallIds], _Round] = OrderedDict()

    def __repr__(self) -> str:
        return f"<MemoryToolRounds {len(self)} rounds, {self._size} bytes>"

    def __len__(self) -> int:
        return len(self._rounds)

    @property
    def is_empty(self) -> bool:
        return not self._rounds

    async def save(self, key: ConversationKey, ids: CallIds, messages: Sequence[JSON]) -> None:
        self._drop((key, ids))
        size = len(json_codec.dumps(list(messages)))
        self._rounds[key, ids] = _Round(messages, size, self._clock() + self._seconds)
        self._size += size
        while self._rounds and (len(self) > self._max_entries or self._size > self._max_bytes):
            self._drop(next(iter(self._rounds)))

    async def load(self, key: ConversationKey, ids: Sequence[CallIds]) -> Mapping[CallIds, Sequence[JSON]]:
        found = ((each, self._get((key, each))) for each in ids)
        return {each: messages for each, messages in found if messages is not None}

    def _get(self, place: tuple[ConversationKey, CallIds]) -> Sequence[JSON] | None:
        """Return a round, and keep it for as long again."""
        known = self._rounds.get(place)
        if known is None:
            return None
        if known.expires <= self._clock():
            self._drop(place)
            return None
        known.expires = self._clock() + self._seconds
        self._rounds.move_to_end(place)
        return known.messages

    def _drop(self, place: tuple[ConversationKey, CallIds]) -> None:
        known = self._rounds.pop(place, None)
        if known is not None:
            self._size -= known.size
