"""Responses that clients may come back to: what a store of them is.

    sqlite     one file for all processes of a machine, or memory for one process

A store is a map from (owner, id) to a `Stored`, bounded by age and size, that can follow a conversation back to its
beginning.  Whoever asks with another owner finds nothing: one key's responses do not exist for another.  A further
member (one that several machines share) has the methods of `Store` and joins where the parts are put together.

A store may fail; the answer that it should keep must not fail with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from qproxy.wire.errors import QproxyError, RetryHint

JSON = Any


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response and what it answered."""

    id: str
    owner: str
    """The whole digest of the client's key; empty where no keys are demanded."""
    previous_id: str | None
    """The response that it continues."""
    response: JSON
    """The response object."""
    items: list[JSON]
    """The request's own input, canonical."""

    def conversation(self) -> list[JSON]:
        """What a response that continues this one begins with."""
        return [*self.items, *self.response["output"]]


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """What a store has done since the start."""

    saved: int
    failed: int
    """Uses that failed, of whatever kind."""
    discarded: int
    """Responses that were too old or one too many."""


class ResponseNotFound(Exception):
    """There is no such response for this owner."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class ResponseStoreError(QproxyError):
    """The store cannot be used now."""

    status = 503
    code: str | None = "store_unavailable"
    retry = RetryHint.SOON


class ResponseStore(Protocol):
    """Where responses are kept.  Every method may raise StoreError."""

    async def save(self, stored: StoredResponse) -> None:
        """Keep a response; it can be found as soon as this returns, by every process that shares the store."""
        ...

    async def get(self, owner: str, id: str) -> StoredResponse:
        """The response; Missing when there is none."""
        ...

    async def conversation(self, owner: str, id: str) -> list[StoredResponse]:
        """The conversation that ends with this response, from its beginning; Missing when a part of it is gone."""
        ...

    async def delete(self, owner: str, id: str) -> None:
        """Delete the response; Missing when there is none."""
        ...

    def statistics(self) -> StoreStatistics: ...

    async def aclose(self) -> None: ...
