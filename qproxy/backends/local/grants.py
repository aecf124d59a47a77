"""Grants in SQLite: one file for all processes of a machine, or memory for one process.

The database is used in a thread, one call at a time, under a time limit. Expired grants are deleted when one
is added, and beyond `MAX_ROWS` of a kind those that expire first are dropped: every row takes a correct
secret.

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

from qproxy.access.grants import GrantStoreError
from qproxy.system.sqlite import open_database, transaction

T = TypeVar("T")
SCHEMA = 1
CREATE = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS grants (
    kind TEXT NOT NULL,
    digest BLOB NOT NULL,
    epoch TEXT NOT NULL,
    ends REAL NOT NULL,
    PRIMARY KEY (kind, digest)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_end ON grants (kind, ends);
PRAGMA user_version = {SCHEMA};
COMMIT;
"""
TRIM = """
DELETE FROM grants WHERE kind = :kind AND digest IN (
    SELECT digest FROM grants WHERE kind = :kind ORDER BY ends DESC LIMIT -1 OFFSET :limit
)
"""
MAX_ROWS = 10_000
"""Grants of one kind."""
TIMEOUT = 5.0


class SqliteGrants:
    """The store; in memory without a path. The file is opened on first use."""

    def __init__(self, path: Path | None, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall_clock = wall_clock
        self._limiter = trio.CapacityLimiter(1)
        self._database: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"<SqliteGrants {self._path or 'in memory'}>"

    async def add(self, kind: str, digest: bytes, ends: float, *, epoch: str = "") -> None:
        await self._run(lambda: self._add(kind, digest, ends, epoch))

    async def has(self, kind: str, digest: bytes) -> bool:
        query = "SELECT 1 FROM grants WHERE kind = ? AND digest = ? AND ends > ?"
        found = await self._run(
            lambda: self._open().execute(query, (kind, digest, self._wall_clock())).fetchone()
        )
        return found is not None

    async def revoke(self, kind: str, digest: bytes) -> None:
        await self._execute("DELETE FROM grants WHERE kind = ? AND digest = ?", kind, digest)

    async def retain(self, kind: str, epoch: str) -> None:
        await self._execute("DELETE FROM grants WHERE kind = ? AND epoch != ?", kind, epoch)

    async def aclose(self) -> None:
        """Close the file until the next use; grants in memory stay."""
        if self._database is not None and self._path is not None:
            with suppress(GrantStoreError):
                await self._run(self._close)

    async def _execute(self, statement: str, *values: object) -> None:
        await self._run(lambda: self._open().execute(statement, values))

    async def _run(self, use: Callable[[], T]) -> T:
        """Use the database in a thread. A cancelled caller leaves the thread to finish by itself."""
        if self._path is None:  # memory never waits
            await trio.lowlevel.checkpoint()
            return self._map_errors(use)
        try:
            with trio.fail_after(TIMEOUT):
                return await trio.to_thread.run_sync(
                    self._map_errors, use, abandon_on_cancel=True, limiter=self._limiter
                )
        except trio.TooSlowError:
            raise GrantStoreError(f"The access file took more than {TIMEOUT:g} seconds.") from None

    def _map_errors(self, use: Callable[[], T]) -> T:
        try:
            return use()
        except (sqlite3.Error, OSError) as error:
            if self._path is not None:  # the file may have been replaced
                self._close()
            raise GrantStoreError(f"The access file cannot be used (setting access_file): {error}.") from None

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = database = open_database(self._path, patience=TIMEOUT / 2)
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

    def _add(self, kind: str, digest: bytes, ends: float, epoch: str) -> None:
        database = self._open()
        with transaction(database):
            database.execute("DELETE FROM grants WHERE ends <= ?", (self._wall_clock(),))
            database.execute("INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?)", (kind, digest, epoch, ends))
            database.execute(TRIM, {"kind": kind, "limit": MAX_ROWS})
