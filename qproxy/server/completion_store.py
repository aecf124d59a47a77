"""The interface of stored chat completions, which clients ask for with `store`.

A store maps (owner, id) to a completion and the messages of its request. With another owner nothing is found:
one key's completions do not exist for another. The members are in `backends`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

JSON = Any


@dataclass(frozen=True, slots=True)
class StoredCompletion:
    """A completion and the messages that it answers."""

    id: str
    owner: str
    """The whole digest of the client's key; empty on servers without keys."""
    model: str
    metadata: Mapping[str, str]
    body: JSON
    """The `chat.completion` object."""
    messages: Sequence[JSON]

    def to_json(self) -> dict[str, JSON]:
        """Return the object that clients get."""
        return {**self.body, "metadata": dict(self.metadata)}


@dataclass(frozen=True, slots=True)
class CompletionQuery:
    """A page of a list, and the completions that it is of."""

    limit: int = 20
    after: str | None = None
    newest_first: bool = False
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class CompletionNotFound(Exception):
    """The owner has no such completion."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class CompletionStore(Protocol):
    """A store of chat completions. Every method may raise ResponseStoreError, and every one that gets an id
    CompletionNotFound."""

    async def save(self, completion: StoredCompletion) -> None: ...

    async def get(self, owner: str, id: str) -> StoredCompletion: ...

    async def update(self, owner: str, id: str, metadata: Mapping[str, str]) -> StoredCompletion:
        """Replace the metadata, and return the completion."""
        ...

    async def delete(self, owner: str, id: str) -> None: ...

    async def page(self, owner: str, query: CompletionQuery) -> tuple[list[StoredCompletion], bool]:
        """Return a page in the order of creation, and whether another one follows."""
        ...

    async def delete_owner(self, owner: str) -> int:
        """Delete every completion of an owner, and return their number."""
        ...

    async def aclose(self) -> None: ...
