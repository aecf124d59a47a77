"""The interface of stored uploads: files that arrive in parts.

An upload belongs to its client's API key. Its parts are files of an owner of their own, `parts_owner`, so
they count as stored files, and are deleted with their key's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """An upload."""

    object: dict[str, Any]
    """The upload object of the API."""
    file_expires_after: int | None
    """`expires_after` of the file to be made, in seconds."""


class UploadNotFound(Exception):
    """The owner has no such upload."""


class UploadStore(Protocol):
    """A store of uploads. Every method may raise ResponseStoreError."""

    async def create(self, owner: str, upload: StoredUpload) -> None:
        """Store a pending upload. Raises RequestError if it is too large, or one too many."""
        ...

    async def get(self, owner: str, id: str) -> StoredUpload:
        """Return an upload; a pending one is `expired` after its time. Raises UploadNotFound."""
        ...

    async def finish(self, owner: str, id: str, status: str, file: dict[str, Any] | None = None) -> bool:
        """Give a pending upload its final status; return whether it was pending."""
        ...

    async def delete_owner(self, owner: str) -> int:
        """Delete every upload of an owner, and return their number."""
        ...

    async def aclose(self) -> None: ...


def parts_owner(owner: str, upload: str) -> str:
    """Return the owner of an upload's parts."""
    return f"{owner}/{upload}"
