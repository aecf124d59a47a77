"""Runs of responses and their events in SQLite, in the file of the stored responses.

Other processes of the machine see events when they read again: nothing notifies them. A lease is a time of
the machine's wall clock.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from qproxy.backends.local.sqlite_store import BoundedSqliteStore
from qproxy.server.response_runs import RecordedStream, RunEvents, RunNotFound, RunSignal, RunState
from qproxy.system.sqlite import erasing, transaction

CREATE = """
CREATE TABLE IF NOT EXISTS runs (
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    lease REAL NOT NULL,
    ended REAL,
    cancelled INTEGER NOT NULL DEFAULT 0,
    next INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (owner, id)
);
CREATE TABLE IF NOT EXISTS run_events (
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    first INTEGER NOT NULL,
    size INTEGER NOT NULL,
    events BLOB NOT NULL,
    PRIMARY KEY (owner, id, first)
);
"""
OLD = "SELECT owner, id FROM runs WHERE coalesce(ended, lease) < ?"
EXCESS = """
SELECT owner, id FROM (
    SELECT owner, id, ended, sum(size) OVER (ORDER BY coalesce(ended, lease) DESC, rowid DESC) AS total
    FROM runs
) WHERE total > ? AND ended IS NOT NULL
"""
EVENT_SECONDS = 3600.0
"""For which events are stored after the end of a response."""
MAX_RUN_BYTES = 16 * 1024 * 1024
"""Bytes of stored events of one response."""
BATCH_BYTES = 256 * 1024
"""Bytes of events in a row, and those that one read returns, at least."""
Key = tuple[str, str]


class SqliteResponseRuns(BoundedSqliteStore):
    """The store."""

    tables: ClassVar[str] = CREATE

    def __init__(
        self,
        path: Path | None,
        *,
        max_bytes: int,
        timeout: float,
        max_run_bytes: int = MAX_RUN_BYTES,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            path, max_age=EVENT_SECONDS, max_bytes=max_bytes, timeout=timeout, wall_clock=wall_clock
        )
        self._max_run_bytes = max_run_bytes

    def __repr__(self) -> str:
        return f"<SqliteResponseRuns {self._path or 'in memory'}>"

    async def start(self, owner: str, id: str, events: Sequence[bytes], lease: float) -> None:
        await self._run(lambda: self._start((owner, id), events, lease))

    async def append(
        self, owner: str, id: str, first: int, events: Sequence[bytes], lease: float
    ) -> RunSignal:
        return await self._run(lambda: self._append((owner, id), first, events, lease))

    async def finish(self, owner: str, id: str) -> bool:
        return await self._run(lambda: self._finish((owner, id)))

    async def request_cancel(self, owner: str, id: str) -> bool:
        return await self._run(lambda: self._request_cancel((owner, id)))

    async def end_lost(self, owner: str, id: str) -> bool:
        return await self._run(lambda: self._end_lost((owner, id)))

    async def save_streams(self, streams: Sequence[RecordedStream]) -> None:
        await self._run(lambda: self._save_streams(streams))

    async def read(self, owner: str, id: str, after: int) -> RunEvents:
        return await self._run(lambda: self._read((owner, id), after))

    async def delete(self, owner: str, id: str) -> None:
        await self._run(lambda: self._delete((owner, id)))

    async def delete_owner(self, owner: str) -> int:
        return await self._run(lambda: self._delete_owner(owner))

    def _start(self, key: Key, events: Sequence[bytes], lease: float) -> None:
        now, database = self._wall_clock(), self._open()
        with transaction(database):
            database.execute("INSERT INTO runs (owner, id, lease) VALUES (?, ?, ?)", (*key, now + lease))
            self._insert(database, key, 0, events)
        self._trim(database, now)

    def _append(self, key: Key, first: int, events: Sequence[bytes], lease: float) -> RunSignal:
        now, database = self._wall_clock(), self._open()
        row = self._row(key)
        if row is None or row.ended is not None:
            return RunSignal.STOP
        if events or row.lease - now < lease / 2:  # not every renewal is worth a write
            with transaction(database):
                renewed = database.execute(
                    "UPDATE runs SET lease = ? WHERE owner = ? AND id = ? AND ended IS NULL RETURNING next",
                    (now + lease, *key),
                ).fetchone()
                if renewed is None:
                    return RunSignal.STOP
                (stored,) = renewed
                self._insert(database, key, max(first, stored), events[max(stored - first, 0) :])
        return RunSignal.CANCEL if row.cancelled else RunSignal.CONTINUE

    def _insert(self, database: sqlite3.Connection, key: Key, first: int, events: Sequence[bytes]) -> None:
        """Insert events in rows of a limited size, and delete the oldest rows beyond the limit."""
        for number, batch in _batches(first, events):
            data = zlib.compress(b"".join(batch), 1)
            database.execute("INSERT INTO run_events VALUES (?, ?, ?, ?, ?)", (*key, number, len(data), data))
            (size,) = database.execute(
                "UPDATE runs SET next = ?, size = size + ? WHERE owner = ? AND id = ? RETURNING size",
                (number + len(batch), len(data), *key),
            ).fetchone()
            self._added += len(data)
            while size > self._max_run_bytes:
                size -= self._remove_oldest(database, key)

    def _remove_oldest(self, database: sqlite3.Connection, key: Key) -> int:
        """Delete the oldest row of events, and return its size."""
        removed: int
        (removed,) = database.execute(
            "DELETE FROM run_events WHERE owner = ?1 AND id = ?2 AND first = "
            "(SELECT min(first) FROM run_events WHERE owner = ?1 AND id = ?2) RETURNING size",
            key,
        ).fetchone()
        database.execute("UPDATE runs SET size = size - ? WHERE owner = ? AND id = ?", (removed, *key))
        return removed

    def _finish(self, key: Key) -> bool:
        return bool(
            self._open()
            .execute(
                "UPDATE runs SET ended = ? WHERE owner = ? AND id = ? AND ended IS NULL",
                (self._wall_clock(), *key),
            )
            .rowcount
        )

    def _request_cancel(self, key: Key) -> bool:
        return bool(
            self._open()
            .execute(
                "UPDATE runs SET cancelled = 1 WHERE owner = ? AND id = ? AND ended IS NULL AND lease >= ?",
                (*key, self._wall_clock()),
            )
            .rowcount
        )

    def _end_lost(self, key: Key) -> bool:
        now = self._wall_clock()
        self._open().execute(
            "UPDATE runs SET ended = ? WHERE owner = ? AND id = ? AND ended IS NULL AND lease < ?",
            (now, *key, now),
        )
        row = self._row(key)
        return row is None or row.ended is not None

    def _save_streams(self, streams: Sequence[RecordedStream]) -> None:
        now, database = self._wall_clock(), self._open()
        with transaction(database):
            for stream in streams:
                key = (stream.owner, stream.id)
                _remove(database, key)
                database.execute(
                    "INSERT INTO runs (owner, id, lease, ended) VALUES (?, ?, ?, ?)", (*key, now, now)
                )
                self._insert(database, key, 0, stream.events)
        self._trim(database, now)

    def _read(self, key: Key, after: int) -> RunEvents:
        row = self._row(key)  # before the events: nothing follows those of a run that has ended
        if row is None:
            raise RunNotFound(key[1])
        start = after + 1
        events: list[bytes] = []
        first, size = max(start, 0), 0
        for number, data in self._open().execute(
            "SELECT first, events FROM run_events WHERE owner = ?1 AND id = ?2 AND first >= "
            "(SELECT coalesce(max(first), 0) FROM run_events WHERE owner = ?1 AND id = ?2 AND first <= ?3) "
            "ORDER BY first",
            (*key, start),
        ):
            text = zlib.decompress(data)
            batch = [event + b"\n\n" for event in text.split(b"\n\n")[:-1]][max(start - number, 0) :]
            first = first if events or not batch else max(number, start)
            events += batch
            size += len(text)
            if size >= BATCH_BYTES:
                break
        return RunEvents(row.state(self._wall_clock()), first, events, row.next)

    def _delete(self, key: Key) -> None:
        with transaction(self._open()):
            _remove(self._open(), key)

    def _delete_owner(self, owner: str) -> int:
        database = self._open()
        with erasing(database), transaction(database):
            database.execute("DELETE FROM run_events WHERE owner = ?", (owner,))
            return database.execute("DELETE FROM runs WHERE owner = ?", (owner,)).rowcount

    def _row(self, key: Key) -> _Row | None:
        found = (
            self._open()
            .execute("SELECT lease, ended, cancelled, next FROM runs WHERE owner = ? AND id = ?", key)
            .fetchone()
        )
        return None if found is None else _Row(*found)

    def _trim(self, database: sqlite3.Connection, now: float) -> None:
        """Delete the runs that ended, or were lost, too long ago, and ended ones beyond the size limit."""
        if not self._is_trim_due(now):
            return
        with transaction(database):
            for key in database.execute(OLD, (now - self._max_age,)).fetchall():
                _remove(database, key)
            for key in database.execute(EXCESS, (self._max_bytes,)).fetchall():
                _remove(database, key)


class _Row:
    """A row of the table of runs."""

    def __init__(self, lease: float, ended: float | None, cancelled: int, next: int) -> None:
        self.lease = lease
        self.ended = ended
        self.cancelled = bool(cancelled)
        self.next = next

    def state(self, now: float) -> RunState:
        if self.ended is not None:
            return RunState.ENDED
        return RunState.LOST if self.lease < now else RunState.ACTIVE


def _batches(first: int, events: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
    """Yield the events in batches of a limited size, each with the number of its first event."""
    start = size = 0
    for index, event in enumerate(events):
        size += len(event)
        if size >= BATCH_BYTES:
            yield first + start, events[start : index + 1]
            start, size = index + 1, 0
    if start < len(events):
        yield first + start, events[start:]


def _remove(database: sqlite3.Connection, key: Key) -> None:
    database.execute("DELETE FROM run_events WHERE owner = ? AND id = ?", key)
    database.execute("DELETE FROM runs WHERE owner = ? AND id = ?", key)
