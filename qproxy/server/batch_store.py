"""The interface of stored batches, and of the results of their lines.

A batch belongs to its client's API key; it is run by one process at a time, which holds a lease that it
renews. A result is stored once its line has finished, so another process continues with the other lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Batch = dict[str, Any]
"""The batch object of the API."""


@dataclass(frozen=True, slots=True)
class ClaimedBatch:
    """A batch that this process may run."""

    owner: str
    batch: Batch


class BatchNotFound(Exception):
    """The owner has no such batch."""


class BatchStore(Protocol):
    """A store of batches. Every method may raise ResponseStoreError."""

    shared: bool
    """Whether batches outlive this process, and others may run them."""

    async def create(self, owner: str, batch: Batch) -> None: ...

    async def get(self, owner: str, id: str) -> Batch:
        """Return a batch with the counts of its lines. Raises BatchNotFound."""
        ...

    async def list_batches(self, owner: str) -> list[Batch]:
        """Return an owner's batches, the oldest first."""
        ...

    async def cancel(self, owner: str, id: str) -> Batch:
        """Let the batch be cancelled by its process, unless it has ended. Raises BatchNotFound."""
        ...

    async def delete_owner(self, owner: str) -> int:
        """Delete every batch of an owner, and return their number."""
        ...

    async def claim(self, holder: str, lease: float) -> ClaimedBatch | None:
        """Lease a batch that has not ended and that no process runs."""
        ...

    async def renew(self, holder: str, id: str, lease: float) -> str:
        """Renew the lease; return the batch's status, "" if another process has it or it was deleted."""
        ...

    async def save(self, holder: str, batch: Batch) -> bool:
        """Save a batch's state; once it has ended its lines are deleted. Return whether the lease holds."""
        ...

    async def add_result(self, holder: str, id: str, line: int, *, ok: bool, result: bytes) -> bool:
        """Store the result of a line. Return whether the lease holds."""
        ...

    async def finished_lines(self, id: str) -> set[int]: ...

    async def results(self, id: str, *, ok: bool, after: int) -> list[tuple[int, bytes]]:
        """Return some results after a line, in the order of the lines."""
        ...

    async def release(self, holder: str, id: str) -> None:
        """End the lease."""
        ...

    async def aclose(self) -> None: ...
