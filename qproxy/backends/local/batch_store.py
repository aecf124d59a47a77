"""Batches in SQLite, beside the files of their owners.

The result of each line is a row until the batch has ended and its files are written.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from qproxy.backends.local.sqlite_store import SqliteStore
from qproxy.server.batch_store import Batch, BatchNotFound, ClaimedBatch
from qproxy.wire import json_codec
from qproxy.wire.batches import FINAL

CREATE = """
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    active INTEGER NOT NULL,
    cancelling INTEGER,
    holder TEXT NOT NULL DEFAULT '',
    leased REAL NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS batches_by_owner ON batches (owner, number);
CREATE INDEX IF NOT EXISTS active_batches ON batches (number) WHERE active;
CREATE TABLE IF NOT EXISTS batch_results (
    batch TEXT NOT NULL,
    line INTEGER NOT NULL,
    ok INTEGER NOT NULL,
    result BLOB NOT NULL,
    PRIMARY KEY (batch, line)
) WITHOUT ROWID;
"""
RESULTS = 50
"""Results that are read at a time."""


class SqliteBatches(SqliteStore):
    """The store."""

    tables: ClassVar[str] = CREATE

    def __init__(
        self,
        path: Path | None,
        *,
        max_age: float,
        timeout: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(path, timeout=timeout)
        self.shared = path is not None
        self._max_age = max_age
        self._wall_clock = wall_clock

    def __repr__(self) -> str:
        return f"<SqliteBatches {self._path or 'in memory'}>"

    async def create(self, owner: str, batch: Batch) -> None:
        def insert() -> None:
            now = self._wall_clock()
            self._execute("DELETE FROM batches WHERE NOT active AND created < ?", now - self._max_age)
            self._execute(
                "INSERT INTO batches (id, owner, active, created, body) VALUES (?, ?, 1, ?, ?)",
                batch["id"], owner, now, json_codec.dumps(batch),
            )  # fmt: skip

        await self._run(insert)

    async def get(self, owner: str, id: str) -> Batch:
        found = await self._run(lambda: self._select("owner = ? AND id = ?", owner, id))
        if not found:
            raise BatchNotFound(id)
        return found[0]

    async def list_batches(self, owner: str) -> list[Batch]:
        return await self._run(lambda: self._select("owner = ?", owner))

    async def cancel(self, owner: str, id: str) -> Batch:
        change = (
            "UPDATE batches SET cancelling = ? WHERE owner = ? AND id = ? AND active AND cancelling IS NULL"
        )
        await self._run(lambda: self._execute(change, int(self._wall_clock()), owner, id))
        return await self.get(owner, id)

    async def delete_owner(self, owner: str) -> int:
        def delete() -> int:
            of_owner = "DELETE FROM batch_results WHERE batch IN (SELECT id FROM batches WHERE owner = ?)"
            self._execute(of_owner, owner)
            return self._execute("DELETE FROM batches WHERE owner = ?", owner).rowcount

        return await self._run(delete)

    async def claim(self, holder: str, lease: float) -> ClaimedBatch | None:
        def claim() -> ClaimedBatch | None:
            now = self._wall_clock()
            row = self._execute(
                "UPDATE batches SET holder = ?, leased = ? WHERE number = (SELECT number FROM batches WHERE "
                "active AND leased <= ? ORDER BY number LIMIT 1) RETURNING owner, id",
                holder, now + lease, now,
            ).fetchone()  # fmt: skip
            if row is None:
                return None
            return ClaimedBatch(row[0], self._select("id = ?", row[1])[0])

        return await self._run(claim)

    async def renew(self, holder: str, id: str, lease: float) -> str:
        def renew() -> str:
            held = self._execute(
                "UPDATE batches SET leased = ? WHERE id = ? AND holder = ? AND active",
                self._wall_clock() + lease, id, holder,
            ).rowcount  # fmt: skip
            return str(self._select("id = ?", id)[0]["status"]) if held else ""

        return await self._run(renew)

    async def save(self, holder: str, batch: Batch) -> bool:
        def save() -> bool:
            active = batch["status"] not in FINAL
            held = self._execute(
                "UPDATE batches SET body = ?, active = ? WHERE id = ? AND holder = ?",
                json_codec.dumps(batch), active, batch["id"], holder,
            ).rowcount  # fmt: skip
            if held and not active:
                self._execute("DELETE FROM batch_results WHERE batch = ?", batch["id"])
            return bool(held)

        return await self._run(save)

    async def add_result(self, holder: str, id: str, line: int, *, ok: bool, result: bytes) -> bool:
        insert = (
            "INSERT OR IGNORE INTO batch_results (batch, line, ok, result) SELECT id, ?, ?, ? FROM batches "
            "WHERE id = ? AND holder = ?"
        )
        return await self._run(lambda: bool(self._execute(insert, line, ok, result, id, holder).rowcount))

    async def finished_lines(self, id: str) -> set[int]:
        select = "SELECT line FROM batch_results WHERE batch = ?"
        return await self._run(lambda: {line for (line,) in self._execute(select, id)})

    async def results(self, id: str, *, ok: bool, after: int) -> list[tuple[int, bytes]]:
        select = (
            "SELECT line, result FROM batch_results WHERE batch = ? AND ok = ? AND line > ? ORDER BY line "
            f"LIMIT {RESULTS}"
        )
        return await self._run(lambda: self._execute(select, id, ok, after).fetchall())

    async def release(self, holder: str, id: str) -> None:
        change = "UPDATE batches SET leased = 0, holder = '' WHERE id = ? AND holder = ?"
        await self._run(lambda: self._execute(change, id, holder))

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._open().execute(statement, values)

    def _select(self, condition: str, *values: str) -> list[Batch]:
        rows = self._execute(
            f"SELECT id, active, cancelling, body FROM batches WHERE {condition} ORDER BY number", *values
        ).fetchall()
        return [self._batch(*row) for row in rows]

    def _batch(self, id: str, active: int, cancelling: int | None, body: bytes) -> Batch:
        batch: Batch = json_codec.loads(body)
        if not active:
            return batch
        if cancelling is not None:
            batch |= {"status": "cancelling", "cancelling_at": cancelling}
        failed, completed = self._execute(
            "SELECT total(NOT ok), total(ok) FROM batch_results WHERE batch = ?", id
        ).fetchone()
        batch["request_counts"] |= {"completed": int(completed), "failed": int(failed)}
        return batch
