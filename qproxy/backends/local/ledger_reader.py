"""Queries of the ledger file: the methods, and a reader for commands, which needs no server.

A running ledger answers them in its writing thread (`ledger`), where a page's query has a time limit; a
reader has the file to itself and takes its time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from qproxy.backends.local import ledger_queries as queries
from qproxy.backends.local import ledger_schema as schema
from qproxy.ledger.protocol import LedgerError
from qproxy.ledger.usage import GroupBy, History, RequestRow, UsageRow, WindowUsage

T = TypeVar("T")


class LedgerQueries:
    """The queries of a ledger, for a class that can run them."""

    async def usage_by(self, by: GroupBy, windows: Sequence[str], now: float) -> Mapping[str, list[UsageRow]]:
        return await self._page(partial(queries.usage_windows, by=by, windows=windows, now=now))

    async def key_usage(self, key: str, windows: Collection[str], now: float) -> Mapping[str, WindowUsage]:
        return await self.query(partial(queries.key_usage, key=key, windows=windows, now=now))

    async def history(self, since: float, until: float, count: int) -> History:
        return await self._page(partial(queries.history, since=since, until=until, count=count))

    async def recent_requests(
        self,
        limit: int,
        *,
        before: tuple[float, str] | None = None,
        only: Mapping[str, str] | None = None,
    ) -> Sequence[RequestRow]:
        return await self._page(partial(queries.recent_requests, limit=limit, before=before, only=only))

    async def request(self, id: str) -> RequestRow | None:
        return await self._page(partial(queries.request_by_id, id=id))

    async def query(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query. Raises LedgerError."""
        raise NotImplementedError

    async def _page(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query that a page needs."""
        return await self.query(query)


class SqliteLedgerReader(LedgerQueries):
    """The ledger file as it is. Queries block: a command has nothing else to do."""

    def __init__(self, path: Path) -> None:
        """Raises LedgerError if there is no ledger."""
        self._path = path
        self._connection = schema.open_for_reading(path)

    def __repr__(self) -> str:
        return f"<SqliteLedgerReader {self._path}>"

    async def aclose(self) -> None:
        self._connection.close()

    async def query(self, run: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return run(self._connection)
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: {error}.") from None
