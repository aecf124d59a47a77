"""The interface of stored files, which clients upload and batches write.

A file belongs to its client's API key, by the full digest; for another owner it does not exist. Files are
bounded by their age, or a time that the client sets, and together by their size: beyond it an upload is
rejected, because a file that a client relies on is not discarded for another one. The members are in
`backends`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The description of a file."""

    id: str
    owner: str
    """The whole digest of the client's key; empty on servers without keys."""
    filename: str
    purpose: str
    size: int
    created: int
    """Unix time."""
    expires: int | None = None
    """Unix time; None for a file with the age of the settings."""


class FileNotFound(Exception):
    """The owner has no such file."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class FileStore(Protocol):
    """A store of files. Every method may raise ResponseStoreError."""

    async def create(
        self,
        owner: str,
        filename: str,
        purpose: str,
        content: AsyncIterable[bytes],
        *,
        expires_after: int | None = None,
        replaces: Sequence[StoredFile] = (),
    ) -> StoredFile:
        """Store a file, whole or not at all, and delete those that it replaces, whose room it may take.
        Raises RequestError if the store has no room."""
        ...

    async def get(self, owner: str, id: str) -> StoredFile:
        """Return a file's description. Raises FileNotFound."""
        ...

    async def list_files(self, owner: str, purpose: str | None = None) -> list[StoredFile]:
        """Return an owner's files, the oldest first."""
        ...

    def read(self, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """Yield a file's content. Raises FileNotFound if it was deleted."""
        ...

    async def delete(self, owner: str, id: str) -> None:
        """Delete a file. Raises FileNotFound."""
        ...

    async def delete_owner(self, owner: str) -> int:
        """Delete every file of an owner, and of owners below it (`OWNER/...`); return their number."""
        ...

    async def aclose(self) -> None: ...
