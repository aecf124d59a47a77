"""A database of stored responses, conversations or runs: used in a thread, one call at a time, under a limit.

A write is one transaction, so a killed process leaves whole rows or none; in WAL mode a reader never waits
for a writer, and two writers wait for each other at most as long as the limit. The file contains prompts and
is readable by its owner only.

`PRAGMA user_version` is the version of the schema; a file of a newer one is left alone.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, TypeVar

import trio

from qproxy.server.response_store import ResponseStoreError
from qproxy.system.sqlite import open_database

T = TypeVar("T")
SCHEMA = 1
TRIM_SECONDS = 60.0
TRIM_SHARE = 100
"""The size is checked again after a hundredth of the limit was added."""


class SqliteStore:
    """One user of the file; in memory without a path. The file is opened on first use."""

    tables: ClassVar[str]
    """A script that creates the tables unless they exist."""

    def __init__(self, path: Path | None, *, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._lock = trio.CapacityLimiter(1)
        self._database: sqlite3.Connection | None = None
        self._failed_count = 0

    async def aclose(self) -> None:
        """Close the file until the next use; rows in memory are lost."""
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
            database.executescript(self.tables)  # waits for no writer if they exist
            if version < SCHEMA:
                database.execute(f"PRAGMA user_version = {SCHEMA}")
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


class BoundedSqliteStore(SqliteStore):
    """A store whose rows are discarded by their age and by the size of all."""

    def __init__(
        self,
        path: Path | None,
        *,
        max_age: float,
        max_bytes: int,
        timeout: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(path, timeout=timeout)
        self._max_age = max_age
        self._max_bytes = max_bytes
        self._wall_clock = wall_clock
        self._added = 0
        """Bytes that were added since the last check."""
        self._trim_at = 0.0

    def _is_trim_due(self, now: float) -> bool:
        """Return whether to discard rows now; then the next check is due later."""
        if now < self._trim_at and self._added * TRIM_SHARE <= self._max_bytes:
            return False
        self._added, self._trim_at = 0, now + TRIM_SECONDS
        return True
