"""Uploads in SQLite, beside the files of their owners.

Those that have ended are kept for a day, for repeated calls.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from qproxy.backends.local.sqlite_store import SqliteStore
from qproxy.server.upload_store import StoredUpload, UploadNotFound
from qproxy.wire import json_codec
from qproxy.wire.errors import RequestError

CREATE = """
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    status TEXT NOT NULL,
    expires INTEGER NOT NULL,
    file_expires_after INTEGER,
    body BLOB NOT NULL,
    file BLOB
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS uploads_by_owner ON uploads (owner);
"""
KEPT_SECONDS = 86400
MAX_UPLOADS = 1000
"""Uploads of one owner at a time."""


class SqliteUploads(SqliteStore):
    """The store."""

    tables: ClassVar[str] = CREATE

    def __init__(
        self,
        path: Path | None,
        *,
        max_bytes: int,
        timeout: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(path, timeout=timeout)
        self._max_bytes = max_bytes
        self._wall_clock = wall_clock

    def __repr__(self) -> str:
        return f"<SqliteUploads {self._path or 'in memory'}>"

    async def create(self, owner: str, upload: StoredUpload) -> None:
        described = upload.object
        if described["bytes"] > self._max_bytes:
            message = f"An upload may have at most {self._max_bytes:,} bytes (files_max_bytes)."
            raise RequestError(message, status=413, param="bytes", code="request_too_large")

        def insert() -> None:
            now = int(self._wall_clock())
            self._execute("DELETE FROM uploads WHERE expires < ?", now - KEPT_SECONDS)
            pending = "SELECT count(*) FROM uploads WHERE owner = ? AND status = 'pending' AND expires > ?"
            if self._execute(pending, owner, now).fetchone()[0] >= MAX_UPLOADS:
                message = f"There are {MAX_UPLOADS:,} pending uploads: complete or cancel some first."
                raise RequestError(message, status=429, code="too_many_uploads")
            self._execute(
                "INSERT INTO uploads (id, owner, status, expires, file_expires_after, body) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                described["id"], owner, described["status"], described["expires_at"],
                upload.file_expires_after, json_codec.dumps(described),
            )  # fmt: skip

        await self._run(insert)

    async def get(self, owner: str, id: str) -> StoredUpload:
        select = (
            "SELECT status, expires, file_expires_after, body, file FROM uploads WHERE owner = ? AND id = ?"
        )
        row = await self._run(lambda: self._execute(select, owner, id).fetchone())
        if row is None:
            raise UploadNotFound(id)
        status, expires, file_expires_after, body, file = row
        if status == "pending" and expires <= self._wall_clock():
            status = "expired"
        described = json_codec.loads(body) | {"status": status}
        return StoredUpload(
            described if file is None else {**described, "file": json_codec.loads(file)}, file_expires_after
        )

    async def finish(self, owner: str, id: str, status: str, file: dict[str, Any] | None = None) -> bool:
        change = (
            "UPDATE uploads SET status = ?, file = ? WHERE owner = ? AND id = ? AND status = 'pending' "
            "AND expires > ?"
        )
        body, now = None if file is None else json_codec.dumps(file), int(self._wall_clock())
        return await self._run(lambda: bool(self._execute(change, status, body, owner, id, now).rowcount))

    async def delete_owner(self, owner: str) -> int:
        return await self._run(lambda: self._execute("DELETE FROM uploads WHERE owner = ?", owner).rowcount)

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._open().execute(statement, values)
