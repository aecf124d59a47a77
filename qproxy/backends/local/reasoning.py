"""The ciphertexts of reasoning of one process, in memory: bounded in bytes and in time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import trio

from qproxy.relay.reasoning_store import ReasoningKey

ENTRY_BYTES = 500
"""Bytes of an entry beside its ciphertext."""


class MemoryReasoning:
    """The store; the least recently used ciphertext is dropped first."""

    def __init__(
        self,
        *,
        seconds: float,
        max_bytes: int,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """`seconds` is how long a ciphertext is kept after its last use."""
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._size = 0
        self._entries: OrderedDict[ReasoningKey, tuple[float, str]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<MemoryReasoning {len(self._entries)} ciphertexts, {self._size} bytes>"

    @property
    def is_empty(self) -> bool:
        return not self._entries

    async def save(self, key: ReasoningKey, ciphertext: str) -> None:
        self._drop(key)
        self._entries[key] = self._clock() + self._seconds, ciphertext
        self._size += len(ciphertext) + ENTRY_BYTES
        while self._entries and (self._size > self._max_bytes or self._is_expired(next(iter(self._entries)))):
            self._drop(next(iter(self._entries)))

    async def load(self, keys: Sequence[ReasoningKey]) -> Mapping[ReasoningKey, str]:
        known: dict[ReasoningKey, str] = {}
        for key in keys:
            if key in self._entries and not self._is_expired(key):
                known[key] = self._entries[key][1]
                self._entries[key] = self._clock() + self._seconds, known[key]
                self._entries.move_to_end(key)
        return known

    def _is_expired(self, key: ReasoningKey) -> bool:
        return self._entries[key][0] <= self._clock()

    def _drop(self, key: ReasoningKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= len(entry[1]) + ENTRY_BYTES
