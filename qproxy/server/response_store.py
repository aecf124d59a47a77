"""The interface of stored responses, which clients may continue or read again.

A store maps (owner, id) to a `StoredResponse`, bounded by age and size, and can follow a conversation back to
its beginning. With another owner nothing is found: one key's responses do not exist for another. The members
are in `backends`.

A store may fail; the response that it should save must not fail with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from qproxy.wire.errors import QproxyError, RetryHint

JSON = Any


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response and the input of its request."""

    id: str
    owner: str
    """The whole digest of the client's key; empty on servers without keys."""
    previous_id: str | None
    """The response that it continues."""
    response: JSON
    """The response object."""
    items: list[JSON]
    """The request's own input, canonical."""

    def conversation(self) -> list[JSON]:
        """Return the items that a response continuing this one begins with."""
        return [*self.items, *self.response["output"]]


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Counts of a store since the start."""

    saved: int
    failed: int
    """Operations that failed."""
    discarded: int
    """Responses that were deleted because of their age or the size limit."""


class ResponseNotFound(Exception):
    """The owner has no such response."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class ResponseStoreError(QproxyError):
    """The store is unavailable."""

    status = 503
    code: str | None = "store_unavailable"
    retry = RetryHint.SOON


class ResponseStore(Protocol):
    """A store of responses.  Every method may raise ResponseStoreError."""

    async def save(self, stored: StoredResponse) -> None:
        """Save a response; once this returns, every process that shares the store can find it."""
        ...

    async def get(self, owner: str, id: str) -> StoredResponse:
        """Return a response.  Raises ResponseNotFound."""
        ...

    async def conversation(self, owner: str, id: str) -> list[StoredResponse]:
        """Return the conversation that ends with a response, from its beginning. Raises ResponseNotFound for
        a gap."""
        ...

    async def delete(self, owner: str, id: str) -> None:
        """Delete a response.  Raises ResponseNotFound."""
        ...

    async def delete_owner(self, owner: str) -> int:
        """Delete every response of an owner, and return their number."""
        ...

    def statistics(self) -> StoreStatistics: ...

    async def aclose(self) -> None: ...
