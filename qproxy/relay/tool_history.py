"""What clients do not send back: the hidden rounds of answers that ended with calls for the client.

Bounded in number, in bytes and in time, and nothing depends on it: after a loss the model sees the conversation as
the client does, and goes on.  A place is the client's key and the conversation's first words, so that no client can
come upon what another one's tools have said, whatever ids it makes up.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from qproxy.wire import json_codec
from qproxy.wire.events import JSON, Turn
from qproxy.wire.tool_rounds import restore_history

ConversationKey: TypeAlias = str
CallIds: TypeAlias = tuple[str, ...]


@dataclass(slots=True)
class _CachedMessages:
    messages: Sequence[JSON]
    size: int
    expires: float


class ToolRoundCache:
    """Messages by place and call ids; what was not used for the longest time goes first."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        seconds: float = 3600.0,
        entries: int = 10_000,
        size: int = 64 * 1024 * 1024,
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._entries = entries
        self._max_bytes = size
        self._size = 0
        self._cached: OrderedDict[tuple[ConversationKey, CallIds], _CachedMessages] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Memory of {len(self._cached)} answers, {self._size} bytes>"

    def __len__(self) -> int:
        return len(self._cached)

    def put(self, key: tuple[ConversationKey, CallIds], messages: Sequence[JSON]) -> None:
        """Remember messages, and forget others where there is no room."""
        self._drop(key)
        size = len(json_codec.dumps(list(messages)))
        self._cached[key] = _CachedMessages(messages, size, self._clock() + self._seconds)
        self._size += size
        while self._cached and (len(self._cached) > self._entries or self._size > self._max_bytes):
            self._drop(next(iter(self._cached)))

    def get(self, key: tuple[ConversationKey, CallIds]) -> Sequence[JSON] | None:
        """What was kept, for as long again; None when it is lost."""
        kept = self._cached.get(key)
        if kept is None:
            return None
        if kept.expires <= self._clock():
            self._drop(key)
            return None
        kept.expires = self._clock() + self._seconds
        self._cached.move_to_end(key)
        return kept.messages

    def restore(self, turn: Turn, place: ConversationKey) -> Sequence[JSON]:
        """The turn's messages, with what is remembered of its earlier answers."""
        if not self._cached:
            return turn.messages
        return restore_history(turn.messages, lambda ids: self.get((place, ids)))

    def _drop(self, key: tuple[ConversationKey, CallIds]) -> None:
        kept = self._cached.pop(key, None)
        if kept is not None:
            self._size -= kept.size


def conversation_key(turn: Turn, key: str) -> ConversationKey:
    """Where the turn's conversation is remembered: under its key and its first words of a user."""
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for message in turn.messages:
        if message.get("role") == "user":
            digest.update(b"\0" + json_codec.dumps(message.get("content")))
            break
    return digest.hexdigest()
