"""Rows of a ledger that is elsewhere, in a file like the ledger's own until they can be sent.

The file has the tables of `ledger_schema`: `qproxy usage --merge` reads it, and a ledger file copied to its
place is sent. Several processes may share it; a row that two of them send is one row there, by its id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from qproxy.backends.local import ledger_schema as schema
from qproxy.backends.local.ledger import insert_rows
from qproxy.ledger.protocol import LedgerError
from qproxy.ledger.rows import LedgerRow
from qproxy.system.sqlite import erasing, transaction

MAX_SPOOLED = 1_000_000
"""Rows in the file, about 500 MB: a day at twelve requests a second."""


class LedgerSpool:
    """A file of rows, or memory without one, used by one thread."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"<LedgerSpool {self.path}>"

    def exists(self) -> bool:
        """Return whether there may be rows, without creating the file."""
        return self._connection is not None or (self.path is not None and self.path.exists())

    def count(self) -> int:
        """Return the number of rows. Raises LedgerError."""
        if not self.exists():
            return 0
        try:
            return int(self._open().execute("SELECT count(*) FROM requests").fetchone()[0])
        except sqlite3.Error as error:
            raise self._error(error) from None

    def add(self, rows: Sequence[LedgerRow]) -> int:
        """Keep rows; return how many the file accepted. Raises LedgerError."""
        if self.count() + len(rows) > MAX_SPOOLED:
            raise LedgerError(f"{self.path}: {MAX_SPOOLED:,} requests wait for the database already.")
        try:
            return insert_rows(self._open(), list(rows))
        except sqlite3.Error as error:
            raise self._error(error) from None

    def first(self, limit: int) -> list[LedgerRow]:
        """Return the rows that came first. Raises LedgerError."""
        try:
            cursor = self._open().execute("SELECT * FROM requests ORDER BY rowid LIMIT ?", (limit,))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]
        except sqlite3.Error as error:
            raise self._error(error) from None

    def remove(self, rows: Sequence[LedgerRow]) -> None:
        """Delete rows that have arrived. Raises LedgerError."""
        try:
            with transaction(self._open()):
                self._open().executemany("DELETE FROM requests WHERE id = ?", [(row["id"],) for row in rows])
                self._open().execute("DELETE FROM hours WHERE NOT EXISTS (SELECT 1 FROM requests)")
        except sqlite3.Error as error:
            raise self._error(error) from None

    def delete_key(self, key: str) -> int:
        """Delete the rows of a key; return how many. Raises LedgerError."""
        if not self.exists():
            return 0
        try:
            with erasing(self._open()), transaction(self._open()):
                self._open().execute("DELETE FROM hours WHERE key = ?", (key,))
                return self._open().execute("DELETE FROM requests WHERE key = ?", (key,)).rowcount
        except sqlite3.Error as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Close the file if it is open."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = schema.open_for_writing(self.path)
        return self._connection

    def _error(self, error: sqlite3.Error) -> LedgerError:
        return LedgerError(f"{self.path}: {error}.")
