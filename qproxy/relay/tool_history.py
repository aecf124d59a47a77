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

from qproxy.wire import json_codec as jsontext
from qproxy.wire.events import JSON, Turn
from qproxy.wire.tool_rounds import restored

Place: TypeAlias = str
Ids: TypeAlias = tuple[str, ...]


@dataclass(slots=True)
class _Kept:
    messages: Sequence[JSON]
    size: int
    until: float


class Memory:
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
        self._most = size
        self._size = 0
        self._kept: OrderedDict[tuple[Place, Ids], _Kept] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Memory of {len(self._kept)} answers, {self._size} bytes>"

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, key: tuple[Place, Ids], messages: Sequence[JSON]) -> None:
        """Remember messages, and forget others where there is no room."""
        self._drop(key)
        size = len(jsontext.dumps(list(messages)))
        self._kept[key] = _Kept(messages, size, self._clock() + self._seconds)
        self._size += size
        while self._kept and (len(self._kept) > self._entries or self._size > self._most):
            self._drop(next(iter(self._kept)))

    def recall(self, key: tuple[Place, Ids]) -> Sequence[JSON] | None:
        """What was kept, for as long again; None when it is lost."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.until <= self._clock():
            self._drop(key)
            return None
        kept.until = self._clock() + self._seconds
        self._kept.move_to_end(key)
        return kept.messages

    def restore(self, turn: Turn, place: Place) -> Sequence[JSON]:
        """The turn's messages, with what is remembered of its earlier answers."""
        if not self._kept:
            return turn.messages
        return restored(turn.messages, lambda ids: self.recall((place, ids)))

    def _drop(self, key: tuple[Place, Ids]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= kept.size


def place(turn: Turn, key: str) -> Place:
    """Where the turn's conversation is remembered: under its key and its first words of a user."""
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for message in turn.messages:
        if message.get("role") == "user":
            digest.update(b"\0" + jsontext.dumps(message.get("content")))
            break
    return digest.hexdigest()
