"""Stored chat completions in SQLite, in the file of the stored responses.

They are bounded like responses: by their age and by the size of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from qproxy.backends.local.sqlite_store import BoundedSqliteStore
from qproxy.server.completion_store import CompletionNotFound, CompletionQuery, StoredCompletion
from qproxy.system.sqlite import erasing, transaction
from qproxy.wire import json_codec

CREATE = """
CREATE TABLE IF NOT EXISTS chat_completions (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    model TEXT NOT NULL,
    saved REAL NOT NULL,
    metadata BLOB NOT NULL,
    body BLOB NOT NULL,
    messages BLOB NOT NULL,
    UNIQUE (owner, id)
);
"""
COLUMNS = "id, owner, model, metadata, body, messages"
EXCESS = """
DELETE FROM chat_completions WHERE saved < ? OR place IN (
    SELECT place FROM (
        SELECT place, sum(length(body) + length(messages)) OVER (ORDER BY place DESC) AS total
        FROM chat_completions
    ) WHERE total > ?
)
"""


class SqliteCompletions(BoundedSqliteStore):
    """The store."""

    tables: ClassVar[str] = CREATE

    def __repr__(self) -> str:
        return f"<SqliteCompletions {self._path or 'in memory'}>"

    async def save(self, completion: StoredCompletion) -> None:
        await self._run(lambda: self._save(completion))

    async def get(self, owner: str, id: str) -> StoredCompletion:
        return await self._run(lambda: self._get(owner, id))

    async def update(self, owner: str, id: str, metadata: Mapping[str, str]) -> StoredCompletion:
        return await self._run(lambda: self._update(owner, id, metadata))

    async def delete(self, owner: str, id: str) -> None:
        await self._run(lambda: self._delete(owner, id))

    async def page(self, owner: str, query: CompletionQuery) -> tuple[list[StoredCompletion], bool]:
        return await self._run(lambda: self._page(owner, query))

    async def delete_owner(self, owner: str) -> int:
        return await self._run(lambda: self._delete_owner(owner))

    def _save(self, completion: StoredCompletion) -> None:
        now, database = self._wall_clock(), self._open()
        body, messages = json_codec.dumps(completion.body), json_codec.dumps(list(completion.messages))
        metadata = json_codec.dumps(dict(completion.metadata))
        row = (completion.owner, completion.id, completion.model, now, metadata, body, messages)
        database.execute(
            "INSERT INTO chat_completions (owner, id, model, saved, metadata, body, messages) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        self._added += len(body) + len(messages)
        if self._is_trim_due(now):
            database.execute(EXCESS, (now - self._max_age, self._max_bytes))

    def _get(self, owner: str, id: str) -> StoredCompletion:
        row = (
            self._open()
            .execute(
                f"SELECT {COLUMNS} FROM chat_completions WHERE owner = ? AND id = ? AND saved >= ?",
                (owner, id, self._wall_clock() - self._max_age),
            )
            .fetchone()
        )
        if row is None:
            raise CompletionNotFound(id)
        return _completion(row)

    def _update(self, owner: str, id: str, metadata: Mapping[str, str]) -> StoredCompletion:
        self._get(owner, id)
        self._open().execute(
            "UPDATE chat_completions SET metadata = ? WHERE owner = ? AND id = ?",
            (json_codec.dumps(dict(metadata)), owner, id),
        )
        return self._get(owner, id)

    def _delete(self, owner: str, id: str) -> None:
        self._get(owner, id)
        self._open().execute("DELETE FROM chat_completions WHERE owner = ? AND id = ?", (owner, id))

    def _page(self, owner: str, query: CompletionQuery) -> tuple[list[StoredCompletion], bool]:
        """Return a page; the metadata of rows before it is read, their bodies are not."""
        database, oldest = self._open(), self._wall_clock() - self._max_age
        start = 0
        if query.after is not None:
            row = database.execute(
                "SELECT place FROM chat_completions WHERE owner = ? AND id = ?", (owner, query.after)
            ).fetchone()
            if row is None:
                raise CompletionNotFound(query.after)
            (start,) = row
        order, comparison = ("DESC", "<") if query.newest_first else ("ASC", ">")
        after = f"AND place {comparison} ?" if query.after is not None else "AND ? = 0"
        rows = database.execute(
            "SELECT place, model, metadata FROM chat_completions "
            f"WHERE owner = ? AND saved >= ? {after} ORDER BY place {order}",
            (owner, oldest, start),
        )
        places = []
        for place, model, metadata in rows:
            if _matches(query, model, json_codec.loads(metadata)):
                places.append(place)
                if len(places) > query.limit:
                    break
        rows.close()
        select = f"SELECT {COLUMNS} FROM chat_completions WHERE place = ?"
        found = [database.execute(select, (place,)).fetchone() for place in places[: query.limit]]
        return [_completion(row) for row in found if row is not None], len(places) > query.limit

    def _delete_owner(self, owner: str) -> int:
        database = self._open()
        with erasing(database), transaction(database):
            return database.execute("DELETE FROM chat_completions WHERE owner = ?", (owner,)).rowcount


def _matches(query: CompletionQuery, model: str, metadata: dict[str, str]) -> bool:
    wanted = query.metadata.items()
    return query.model in (None, model) and all(metadata.get(name) == value for name, value in wanted)


def _completion(row: tuple[Any, ...]) -> StoredCompletion:
    id, owner, model, metadata, body, messages = row
    values = (json_codec.loads(text) for text in (metadata, body, messages))
    return StoredCompletion(id, owner, model, *values)
