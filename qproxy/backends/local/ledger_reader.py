"""A reader of the ledger file for commands, which needs no server.

A running ledger answers queries in its writing thread (`ledger`), where a page's query has a time limit; a
reader has the file to itself and takes its time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qproxy.backends.ledger_queries import LedgerQueries
from qproxy.backends.local import ledger_queries as queries
from qproxy.backends.local import ledger_schema as schema
from qproxy.ledger.protocol import LedgerError

T = TypeVar("T")


class SqliteLedgerReader(LedgerQueries[sqlite3.Connection]):
    """The ledger file as it is. Queries block: a command has nothing else to do."""

    functions = queries

    def __init__(self, path: Path, connection: sqlite3.Connection | None = None) -> None:
        """Open the file unless a connection is given. Raises LedgerError if there is no ledger."""
        self._path = path
        self._connection = schema.open_for_reading(path) if connection is None else connection

    def __repr__(self) -> str:
        return f"<SqliteLedgerReader {self._path}>"

    async def aclose(self) -> None:
        self._connection.close()

    async def query(self, run: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return run(self._connection)
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: {error}.") from None
