"""Stored files: their content in a directory, one private file each, and their descriptions in SQLite.

Content is written under a temporary name, flushed and renamed before its row exists, and a row is deleted
before its content: what a killed process leaves is a file without a row, which is deleted a day later.
Without a directory, files are in a temporary one for the life of the process.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import trio

from qproxy.backends.local.files import FILES_DATABASE
from qproxy.backends.local.sqlite_store import SqliteStore
from qproxy.server.file_store import FileNotFound, StoredFile
from qproxy.server.response_store import ResponseStoreError
from qproxy.wire.errors import RequestError

CREATE = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    size INTEGER NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER
);
CREATE INDEX IF NOT EXISTS files_by_owner ON files (owner, number);
"""
COLUMNS = "id, owner, filename, purpose, size, created, expires"
ALIVE = "coalesce(expires, created + ?) > ?"
PREFIX = "file-"
PIECE = 256 * 1024
ORPHAN_SECONDS = 86400.0
CLEAN_SECONDS = 3600.0


class DirectoryFileStore(SqliteStore):
    """The store."""

    tables: ClassVar[str] = CREATE

    def __init__(
        self,
        directory: Path | None,
        *,
        max_age: float,
        max_bytes: int,
        timeout: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(None if directory is None else directory / FILES_DATABASE, timeout=timeout)
        self._directory = directory
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._max_age = int(max_age)
        self._max_bytes = max_bytes
        self._wall_clock = wall_clock
        self._clean_at = 0.0

    def __repr__(self) -> str:
        return f"<DirectoryFileStore {self._directory or 'temporary'}>"

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
        id_ = PREFIX + secrets.token_hex(16)
        room = self._max_bytes - await self._run(self._clean) + sum(file.size for file in replaces)
        partial = self._folder() / f".{id_}"
        try:
            size = await self._write(partial, content, room)
            created = int(self._wall_clock())
            expires = None if expires_after is None else created + expires_after
            file = StoredFile(id_, owner, filename, purpose, size, created, expires)
            await self._run(lambda: self._publish(partial, file, replaces))
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        return file

    async def get(self, owner: str, id: str) -> StoredFile:
        found = await self._run(lambda: self._select("owner = ? AND id = ?", (owner, id)))
        if not found:
            raise FileNotFound(id)
        return found[0]

    async def list_files(self, owner: str, purpose: str | None = None) -> list[StoredFile]:
        if purpose is None:
            return await self._run(lambda: self._select("owner = ?", (owner,)))
        return await self._run(lambda: self._select("owner = ? AND purpose = ?", (owner, purpose)))

    async def read(self, file: StoredFile) -> AsyncGenerator[bytes, None]:
        try:
            content = await trio.to_thread.run_sync((self._folder() / file.id).open, "rb")
        except FileNotFoundError:
            raise FileNotFound(file.id) from None
        except OSError as error:
            raise _unusable(error) from None
        try:
            while piece := await trio.to_thread.run_sync(content.read, PIECE):
                yield piece
        except OSError as error:
            raise _unusable(error) from None
        finally:
            content.close()

    async def delete(self, owner: str, id: str) -> None:
        file = await self.get(owner, id)
        await self._run(lambda: self._remove([file]))

    async def delete_owner(self, owner: str) -> int:
        below = "(owner = ? OR substr(owner, 1, length(?) + 1) = ? || '/')"
        files = await self._run(lambda: self._select(below, (owner, owner, owner)))
        await self._run(lambda: self._remove(files))
        return len(files)

    async def aclose(self) -> None:
        await super().aclose()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _folder(self) -> Path:
        if self._directory is not None:
            return self._directory
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="qproxy-files-")
        return Path(self._temporary.name)

    async def _write(self, path: Path, content: AsyncIterable[bytes], room: int) -> int:
        """Write a new private file, and return its size."""
        size = 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                async for piece in content:
                    size += len(piece)
                    if size > room:
                        raise _full(self._max_bytes)
                    await trio.to_thread.run_sync(file.write, piece)
                await trio.to_thread.run_sync(file.flush)
                await trio.to_thread.run_sync(os.fsync, file.fileno())
        except OSError as error:
            raise _unusable(error) from None
        return size

    def _publish(self, partial: Path, file: StoredFile, replaces: Sequence[StoredFile]) -> None:
        database = self._open()
        (total,) = database.execute("SELECT total(size) FROM files").fetchone()
        replaced = sum(old.size for old in replaces)
        if total + file.size - replaced > self._max_bytes:  # another upload was faster
            raise _full(self._max_bytes)
        partial.rename(partial.with_name(file.id))
        database.execute(
            f"INSERT INTO files ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (file.id, file.owner, file.filename, file.purpose, file.size, file.created, file.expires),
        )
        self._remove(replaces)

    def _select(self, condition: str, values: tuple[str, ...]) -> list[StoredFile]:
        rows = self._open().execute(
            f"SELECT {COLUMNS} FROM files WHERE {condition} AND {ALIVE} ORDER BY number",
            (*values, self._max_age, int(self._wall_clock())),
        )
        return [StoredFile(*row) for row in rows]

    def _remove(self, files: Sequence[StoredFile]) -> None:
        for file in files:
            self._open().execute("DELETE FROM files WHERE id = ?", (file.id,))
            (self._folder() / file.id).unlink(missing_ok=True)

    def _clean(self) -> int:
        """Delete expired files and, now and then, content without a row; return the bytes that are left."""
        now, database = self._wall_clock(), self._open()
        expired = database.execute(
            f"SELECT {COLUMNS} FROM files WHERE NOT {ALIVE}", (self._max_age, int(now))
        ).fetchall()
        self._remove([StoredFile(*row) for row in expired])
        if now >= self._clean_at:
            self._clean_at = now + CLEAN_SECONDS
            self._remove_orphans(now)
        (total,) = database.execute("SELECT total(size) FROM files").fetchone()
        return int(total)

    def _remove_orphans(self, now: float) -> None:
        known = {id_ for (id_,) in self._open().execute("SELECT id FROM files")}
        for path in self._folder().iterdir():
            if path.name.lstrip(".").startswith(PREFIX) and path.name not in known:
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < now - ORPHAN_SECONDS:
                        path.unlink()


def _full(max_bytes: int) -> RequestError:
    message = f"The stored files would be larger than {max_bytes:,} bytes (files_max_bytes). Delete some."
    return RequestError(message, status=413, code="request_too_large")


def _unusable(error: OSError) -> ResponseStoreError:
    return ResponseStoreError(f"The file store cannot be used ({error.strerror}).")
