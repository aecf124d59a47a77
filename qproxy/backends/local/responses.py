"""Stored responses in SQLite: one file for all processes of a machine, or memory for one process.

The database is used in a thread, one call at a time, under a time limit. A write is one transaction, so a
killed process leaves whole responses or none; in WAL mode a reader never waits for a writer, and two writers
wait for each other at most as long as the limit.

Responses are bounded by the time since their last use and by their size. Continuing a conversation uses all
of it, so a conversation in use is not discarded from its beginning. The file contains prompts and is readable
by its owner only.

`PRAGMA user_version` is the version of the schema; a file of a newer one is left alone.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trio

from qproxy.server.response_store import ResponseNotFound, ResponseStoreError, StoredResponse, StoreStatistics
from qproxy.system.sqlite import erasing, open_database
from qproxy.wire import json_codec
from qproxy.wire.errors import RequestError

T = TypeVar("T")
SCHEMA = 1
CREATE = f"""
BEGIN IMMEDIATE;
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
PRAGMA user_version = {SCHEMA};
COMMIT;
"""
DISCARD = """
DELETE FROM responses WHERE rowid IN (
    SELECT rowid FROM (SELECT rowid, sum(size) OVER (ORDER BY used DESC, rowid DESC) AS total FROM responses)
    WHERE total > ?
)
"""
TOUCH_SECONDS = 3600.0
"""Accuracy of the time of the last use: not every use is worth a write."""
TRIM_SECONDS = 60.0
TRIM_SHARE = 100
"""The size is checked again after a hundredth of the limit was added."""
MAX_CHAIN_BYTES = 64 * 1024 * 1024


class SqliteResponseStore:
    """The store; in memory without a path. The file is opened on first use."""

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
        self._path = path
        self._max_age = max_age
        self._max_bytes = max_bytes
        self._max_chain = max_chain
        self._timeout = timeout
        self._wall_clock = wall_clock
        self._lock = trio.CapacityLimiter(1)
        self._database: sqlite3.Connection | None = None
        self._saved_count = self._failed_count = self._discarded_count = 0
        self._added = 0
        self._trim_at = 0.0

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

    async def aclose(self) -> None:
        """Close the file until the next use; responses in memory are lost."""
        if self._database is not None:
            with suppress(ResponseStoreError):  # a blocked thread closes it in the end
                await self._run(self._close)

    async def _run(self, use: Callable[[], T]) -> T:
        """Use the database in a thread. A cancelled caller leaves the thread to finish by itself."""
        if self._path is None:  # memory never waits
            await trio.lowlevel.checkpoint()
            return self._with_connection(use)
        try:
            with trio.fail_after(self._timeout):
                return await trio.to_thread.run_sync(
                    self._with_connection, use, abandon_on_cancel=True, limiter=self._lock
                )
        except trio.TooSlowError:
            self._failed_count += 1
            raise ResponseStoreError(
                f"The response store took more than {self._timeout:g} s (store_timeout)."
            ) from None

    def _with_connection(self, use: Callable[[], T]) -> T:
        try:
            return use()
        except (
            sqlite3.Error,
            OSError,
            ValueError,
            LookupError,
            TypeError,
        ) as error:  # the last three: a damaged row
            self._failed_count += 1
            if self._path is not None:  # the file may have been replaced
                self._close()
            raise ResponseStoreError(f"The response store cannot be used ({error}).") from None

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = database = open_database(self._path, patience=self._timeout / 2)
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                raise sqlite3.DatabaseError(f"{self._path} was written by a newer qproxy")
            if version < SCHEMA:
                database.executescript(CREATE)
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

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
        if now >= self._trim_at or self._added * TRIM_SHARE > self._max_bytes:
            self._trim(database, now)

    def _trim(self, database: sqlite3.Connection, now: float) -> None:
        """Discard responses unused for too long, and then the least recently used ones beyond the size
        limit."""
        self._added, self._trim_at = 0, now + TRIM_SECONDS
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
        size, wanted, now = 0, id, self._wall_clock()
        while wanted:
            previous, used, body = self._row(owner, wanted)
            stale += [wanted] if used < now - TOUCH_SECONDS else []
            size += len(body)
            if size > self._max_chain:
                message = f"The conversation is larger than {self._max_chain // 1024**2} MiB."
                raise RequestError(message, param="previous_response_id", code="context_length_exceeded")
            found.append(_response_of_row(owner, wanted, previous, body))
            wanted = previous or ""
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
