"""Conversations in SQLite, in the file of the stored responses.

Conversations are bounded like responses: by the time since their last use and by their size.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from qproxy.backends.local.sqlite_store import BoundedSqliteStore
from qproxy.server.conversation_store import JSON, Conversation, ConversationNotFound, ItemNotFound
from qproxy.system.sqlite import erasing, transaction
from qproxy.wire import json_codec
from qproxy.wire.errors import RequestError

CREATE = """
CREATE TABLE IF NOT EXISTS conversations (
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    created INTEGER NOT NULL,
    metadata BLOB NOT NULL,
    used REAL NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (owner, id)
);
CREATE TABLE IF NOT EXISTS conversation_items (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    conversation TEXT NOT NULL,
    id TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (owner, conversation, id)
);
"""
EXPIRED = "SELECT owner, id FROM conversations WHERE used < ?"
EXCESS = """
SELECT owner, id FROM (
    SELECT owner, id, sum(size) OVER (ORDER BY used DESC, rowid DESC) AS total FROM conversations
) WHERE total > ?
"""
TOUCH_SECONDS = 3600.0
"""Accuracy of the time of the last use: not every use is worth a write."""
MAX_CONVERSATION_BYTES = 64 * 1024 * 1024


class SqliteConversations(BoundedSqliteStore):
    """The store."""

    tables: ClassVar[str] = CREATE

    def __init__(
        self,
        path: Path | None,
        *,
        max_age: float,
        max_bytes: int,
        timeout: float,
        max_conversation: int = MAX_CONVERSATION_BYTES,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(path, max_age=max_age, max_bytes=max_bytes, timeout=timeout, wall_clock=wall_clock)
        self._max_conversation = min(max_conversation, max_bytes)

    def __repr__(self) -> str:
        return f"<SqliteConversations {self._path or 'in memory'}>"

    async def create(self, conversation: Conversation, items: Sequence[JSON]) -> None:
        await self._run(lambda: self._create(conversation, items))

    async def get(self, owner: str, id: str) -> Conversation:
        return await self._run(lambda: self._get(owner, id))

    async def update(self, owner: str, id: str, metadata: Mapping[str, str]) -> Conversation:
        return await self._run(lambda: self._update(owner, id, metadata))

    async def delete(self, owner: str, id: str) -> None:
        await self._run(lambda: self._delete(owner, id))

    async def append(self, owner: str, id: str, items: Sequence[JSON]) -> None:
        await self._run(lambda: self._append(owner, id, items))

    async def items(self, owner: str, id: str) -> list[JSON]:
        return await self._run(lambda: self._items(owner, id))

    async def delete_item(self, owner: str, id: str, item: str) -> None:
        await self._run(lambda: self._delete_item(owner, id, item))

    async def delete_owner(self, owner: str) -> int:
        return await self._run(lambda: self._delete_owner(owner))

    def _create(self, conversation: Conversation, items: Sequence[JSON]) -> None:
        now, database = self._wall_clock(), self._open()
        values = (conversation.owner, conversation.id)
        with transaction(database):
            database.execute(
                "INSERT INTO conversations (owner, id, created, metadata, used, size) "
                "VALUES (?, ?, ?, ?, ?, 0)",
                (*values, conversation.created, json_codec.dumps(dict(conversation.metadata)), now),
            )
            self._insert(database, *values, items)
        self._trim(database, now)

    def _insert(self, database: sqlite3.Connection, owner: str, id: str, items: Sequence[JSON]) -> None:
        """Insert items, and count their bytes and the conversation's use."""
        added = 0
        for item in items:
            body = json_codec.dumps(item)
            inserted = database.execute(
                "INSERT OR IGNORE INTO conversation_items (owner, conversation, id, body) "
                "VALUES (?, ?, ?, ?)",
                (owner, id, item["id"], body),
            )
            added += len(body) * inserted.rowcount
        self._added += added
        (size,) = database.execute(
            "UPDATE conversations SET used = ?, size = size + ? WHERE owner = ? AND id = ? RETURNING size",
            (self._wall_clock(), added, owner, id),
        ).fetchone()
        if size > self._max_conversation:
            message = (
                f"The conversation would be larger than {self._max_conversation} bytes: start another one."
            )
            raise RequestError(message, param="items", code="conversation_too_large")

    def _trim(self, database: sqlite3.Connection, now: float) -> None:
        """Discard conversations unused for too long, and the least recently used ones beyond the size
        limit."""
        if not self._is_trim_due(now):
            return
        with transaction(database):
            _remove(database, database.execute(EXPIRED, (now - self._max_age,)).fetchall())
            _remove(database, database.execute(EXCESS, (self._max_bytes,)).fetchall())

    def _row(self, owner: str, id: str) -> tuple[int, bytes, float]:
        row: tuple[int, bytes, float] | None = (
            self._open()
            .execute(
                "SELECT created, metadata, used FROM conversations WHERE owner = ? AND id = ? AND used >= ?",
                (owner, id, self._wall_clock() - self._max_age),
            )
            .fetchone()
        )
        if row is None:
            raise ConversationNotFound(id)
        return row

    def _get(self, owner: str, id: str) -> Conversation:
        created, metadata, _ = self._row(owner, id)
        return Conversation(id, owner, created, json_codec.loads(metadata))

    def _update(self, owner: str, id: str, metadata: Mapping[str, str]) -> Conversation:
        self._row(owner, id)
        self._open().execute(
            "UPDATE conversations SET metadata = ?, used = ? WHERE owner = ? AND id = ?",
            (json_codec.dumps(dict(metadata)), self._wall_clock(), owner, id),
        )
        return self._get(owner, id)

    def _delete(self, owner: str, id: str) -> None:
        self._row(owner, id)
        with transaction(self._open()):
            _remove(self._open(), [(owner, id)])

    def _append(self, owner: str, id: str, items: Sequence[JSON]) -> None:
        database = self._open()
        with transaction(database):
            self._row(owner, id)
            self._insert(database, owner, id, items)
        self._trim(database, self._wall_clock())

    def _items(self, owner: str, id: str) -> list[JSON]:
        _, _, used = self._row(owner, id)
        rows = self._open().execute(
            "SELECT body FROM conversation_items WHERE owner = ? AND conversation = ? ORDER BY place",
            (owner, id),
        )
        items = [json_codec.loads(body) for (body,) in rows]
        now = self._wall_clock()
        if used < now - TOUCH_SECONDS:
            self._open().execute(
                "UPDATE conversations SET used = ? WHERE owner = ? AND id = ?", (now, owner, id)
            )
        return items

    def _delete_item(self, owner: str, id: str, item: str) -> None:
        database = self._open()
        with transaction(database):
            self._row(owner, id)
            deleted = database.execute(
                "DELETE FROM conversation_items WHERE owner = ? AND conversation = ? AND id = ? "
                "RETURNING length(body)",
                (owner, id, item),
            ).fetchone()
            if deleted is None:
                raise ItemNotFound(item)
            database.execute(
                "UPDATE conversations SET size = size - ? WHERE owner = ? AND id = ?", (*deleted, owner, id)
            )

    def _delete_owner(self, owner: str) -> int:
        database = self._open()
        with erasing(database), transaction(database):
            database.execute("DELETE FROM conversation_items WHERE owner = ?", (owner,))
            return database.execute("DELETE FROM conversations WHERE owner = ?", (owner,)).rowcount


def _remove(database: sqlite3.Connection, keys: Iterable[tuple[str, str]]) -> None:
    """Delete conversations, by owner and id, with their items."""
    for key in keys:
        database.execute("DELETE FROM conversation_items WHERE owner = ? AND conversation = ?", key)
        database.execute("DELETE FROM conversations WHERE owner = ? AND id = ?", key)
