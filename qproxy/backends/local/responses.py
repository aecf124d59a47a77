"""Stored responses in SQLite: one file for all processes of a machine, or memory for one process.

Responses are bounded by the time since their last use and by their size. Continuing a conversation uses all
of it, so a conversation in use is not discarded from its beginning.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from qproxy.backends.local.sqlite_store import BoundedSqliteStore
from qproxy.server.response_store import ResponseNotFound, StoredResponse, StoreStatistics
from qproxy.system.sqlite import erasing
from qproxy.wire import json_codec
from qproxy.wire.errors import RequestError

CREATE = """
CREATE TABLE IF NOT EXISTS responses (
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    previous TEXT,
    used REAL NOT NULL,
    size INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (owner, id)
);
CREATE INDEX IF NOT EXISTS by_use ON responses (used, size);
"""
DISCARD = """
DELETE FROM responses WHERE rowid IN (
    SELECT rowid FROM (SELECT rowid, sum(size) OVER (ORDER BY used DESC, rowid DESC) AS total FROM responses)
    WHERE total > ?
)
"""
TOUCH_SECONDS = 3600.0
"""Accuracy of the time of the last use: not every use is worth a write."""
MAX_CHAIN_BYTES = 64 * 1024 * 1024


class SqliteResponseStore(BoundedSqliteStore):
    """The store."""

    tables: ClassVar[str] = CREATE

    def __init__(
        self,
        path: Path | None,
        *,
        max_age: float,
        max_bytes: int,
        timeout: float,
        max_chain: int = MAX_CHAIN_BYTES,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(path, max_age=max_age, max_bytes=max_bytes, timeout=timeout, wall_clock=wall_clock)
        self._max_chain = max_chain
        self._saved_count = self._discarded_count = 0

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path or 'in memory'}, {self._saved_count} kept>"

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(self._saved_count, self._failed_count, self._discarded_count)

    async def save(self, stored: StoredResponse) -> None:
        await self._run(lambda: self._save(stored))

    async def get(self, owner: str, id: str) -> StoredResponse:
        return await self._run(lambda: self._get(owner, id))

    async def conversation(self, owner: str, id: str) -> list[StoredResponse]:
        return await self._run(lambda: self._conversation(owner, id))

    async def delete(self, owner: str, id: str) -> None:
        await self._run(lambda: self._delete(owner, id))

    async def delete_owner(self, owner: str) -> int:
        return await self._run(lambda: self._delete_owner(owner))

    def _save(self, stored: StoredResponse) -> None:
        body = json_codec.dumps({"response": stored.response, "items": stored.items})
        if len(body) > self._max_bytes:
            raise OSError("the response is larger than responses_max_bytes")
        now, database = self._wall_clock(), self._open()
        database.execute(
            "INSERT OR REPLACE INTO responses (owner, id, previous, used, size, body) VALUES (?, ?, ?, ?, ?, "
            "?)",
            (stored.owner, stored.id, stored.previous_id, now, len(body), body),
        )
        self._saved_count += 1
        self._added += len(body)
        if self._is_trim_due(now):
            self._trim(database, now)

    def _trim(self, database: sqlite3.Connection, now: float) -> None:
        """Discard responses unused for too long, and then the least recently used ones beyond the size
        limit."""
        old = database.execute("DELETE FROM responses WHERE used < ?", (now - self._max_age,))
        self._discarded_count += old.rowcount
        (total,) = database.execute("SELECT total(size) FROM responses").fetchone()
        if total > self._max_bytes:
            self._discarded_count += database.execute(DISCARD, (self._max_bytes,)).rowcount

    def _row(self, owner: str, id: str) -> tuple[str | None, float, bytes]:
        row: tuple[str | None, float, bytes] | None = (
            self._open()
            .execute(
                "SELECT previous, used, body FROM responses WHERE owner = ? AND id = ? AND used >= ?",
                (owner, id, self._wall_clock() - self._max_age),
            )
            .fetchone()
        )
        if row is None:
            raise ResponseNotFound(id)
        return row

    def _get(self, owner: str, id: str) -> StoredResponse:
        previous, _, body = self._row(owner, id)
        return _response_of_row(owner, id, previous, body)

    def _conversation(self, owner: str, id: str) -> list[StoredResponse]:
        found: list[StoredResponse] = []
        stale: list[str] = []
        size, now = 0, self._wall_clock()
        wanted: str | None = id
        while wanted is not None:
            previous, used, body = self._row(owner, wanted)
            stale += [wanted] if used < now - TOUCH_SECONDS else []
            size += len(body)
            if size > self._max_chain:
                message = f"The conversation is larger than {self._max_chain // 1024**2} MiB."
                raise RequestError(message, param="previous_response_id", code="context_length_exceeded")
            found.append(_response_of_row(owner, wanted, previous, body))
            wanted = previous or None
        self._touch(owner, stale, now)
        return found[::-1]

    def _touch(self, owner: str, ids: list[str], now: float) -> None:
        """Update the time of the last use; skipped if a writer holds the lock, since readers wait for no
        writer."""
        with suppress(sqlite3.OperationalError):
            for id_ in ids:
                self._open().execute(
                    "UPDATE responses SET used = ? WHERE owner = ? AND id = ?", (now, owner, id_)
                )

    def _delete(self, owner: str, id: str) -> None:
        if not self._open().execute("DELETE FROM responses WHERE owner = ? AND id = ?", (owner, id)).rowcount:
            raise ResponseNotFound(id)

    def _delete_owner(self, owner: str) -> int:
        database = self._open()
        with erasing(database):
            return database.execute("DELETE FROM responses WHERE owner = ?", (owner,)).rowcount


def _response_of_row(owner: str, id: str, previous: str | None, body: bytes) -> StoredResponse:
    content = json_codec.loads(body)
    return StoredResponse(id, owner, previous, content["response"], content["items"])
