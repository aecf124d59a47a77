"""The interface of conversations, which clients create, extend, and continue with responses.

A store maps (owner, id) to a `Conversation` and its items in order. With another owner nothing is found: one
key's conversations do not exist for another. The members are in `backends`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

JSON = Any


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation without its items."""

    id: str
    owner: str
    """The whole digest of the client's key; empty on servers without keys."""
    created: int
    """Unix seconds."""
    metadata: Mapping[str, str]


class ConversationNotFound(Exception):
    """The owner has no such conversation."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class ItemNotFound(Exception):
    """The conversation has no such item."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class ConversationStore(Protocol):
    """A store of conversations. Every method may raise ResponseStoreError, and every one that gets an id
    ConversationNotFound."""

    async def create(self, conversation: Conversation, items: Sequence[JSON]) -> None:
        """Save a new conversation; once this returns, every process that shares the store can find it."""
        ...

    async def get(self, owner: str, id: str) -> Conversation: ...

    async def update(self, owner: str, id: str, metadata: Mapping[str, str]) -> Conversation:
        """Replace the metadata, and return the conversation."""
        ...

    async def delete(self, owner: str, id: str) -> None:
        """Delete a conversation with its items."""
        ...

    async def append(self, owner: str, id: str, items: Sequence[JSON]) -> None:
        """Append items in one step, without those whose id the conversation has already. Raises RequestError
        for a conversation that would be too large."""
        ...

    async def items(self, owner: str, id: str) -> list[JSON]:
        """Return every item, from the first."""
        ...

    async def delete_item(self, owner: str, id: str, item: str) -> None:
        """Delete an item. Raises ItemNotFound."""
        ...

    async def delete_owner(self, owner: str) -> int:
        """Delete every conversation of an owner, and return their number."""
        ...

    async def aclose(self) -> None: ...
