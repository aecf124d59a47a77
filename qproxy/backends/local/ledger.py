"""The usage ledger in an SQLite file: what its thread (`backends.ledger_thread`) does with rows and queries.

A file that cannot be written (a full disk, a lock that stays) is logged once; rows are kept for a while and
then counted as lost. A row that the file rejects is written as far as possible and never keeps another one
out. Requests are never affected.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from qproxy.backends.ledger_thread import LedgerThread, log
from qproxy.backends.local import ledger_queries as queries
from qproxy.backends.local import ledger_schema as schema
from qproxy.backends.local.ledger_queries import query_timeout
from qproxy.ledger.prices import Pricing
from qproxy.ledger.protocol import LedgerError
from qproxy.ledger.rows import LedgerRow, storable_row, to_hourly_row, to_row
from qproxy.ledger.units import sums
from qproxy.system.sqlite import erasing, transaction
from qproxy.telemetry.records import RequestRecord

T = TypeVar("T")
PRUNE_SECONDS = 3600.0
HOURS_DAYS = 400
"""Days for which the sums of hours are kept: a year and a month."""
DAY = 86400.0
_ALL_TIME = float("inf")


class SqliteUsageLedger(LedgerThread[sqlite3.Connection]):
    """The ledger of this process; others may write to the same file."""

    functions = queries

    def __init__(
        self,
        path: Path,
        pricing: Pricing,
        *,
        keep_days: int,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(str(path), pricing, wall_clock=wall_clock)
        self.path = path
        self.keep_days = keep_days
        self._last_pruned = -_ALL_TIME

    async def delete_key(self, key: str) -> int:
        return await self.query(partial(_delete_key, key=key))

    async def _page(self, query: Callable[[sqlite3.Connection], T]) -> T:
        def run(connection: sqlite3.Connection) -> T:
            with query_timeout(connection):
                return query(connection)

        return await self.query(run)

    # Called in the thread

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = schema.open_for_writing(self.path)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _write(self) -> None:
        if not self._rows:
            return
        try:
            written = insert_rows(self._connect(), self._rows)
        except (sqlite3.Error, LedgerError) as error:
            if self._healthy:
                log.error("cannot write usage ledger, retrying: %s", error)
            self._healthy = False
            return
        if not self._healthy:
            log.warning("usage ledger recovered; %d rows lost", self.lost)
        self._healthy = True
        self.written += written
        self.lost += len(self._rows) - written
        self._rows = []
        self._prune(self._connect())

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Delete rows older than the retention, once an hour."""
        if time.monotonic() - self._last_pruned < PRUNE_SECONDS:
            return
        self._last_pruned, now = time.monotonic(), self._wall_clock()
        try:
            if self.keep_days:
                connection.execute("DELETE FROM requests WHERE ended < ?", (now - self.keep_days * DAY,))
            connection.execute("DELETE FROM hours WHERE hour < ?", (now - HOURS_DAYS * DAY,))
        except sqlite3.Error as error:  # retried in an hour
            log.warning("cannot prune usage ledger: %s", error)


def _delete_key(connection: sqlite3.Connection, key: str) -> int:
    with erasing(connection), transaction(connection):
        connection.execute("DELETE FROM hours WHERE key = ?", (key,))
        return connection.execute("DELETE FROM requests WHERE key = ?", (key,)).rowcount


_ROW = tuple(to_row(RequestRecord("", "", ""), 0.0, Pricing()))
_INSERT = (
    f"INSERT INTO requests ({', '.join(_ROW)}) VALUES ({', '.join(f':{name}' for name in _ROW)})"
    " ON CONFLICT (id) DO NOTHING"
)
_ADD_TO_HOUR = f"""
    INSERT INTO hours VALUES
        (:hour, :key, :account, :model, 1, :failed, :prompt_tokens, :completion_tokens, :cost, :unpriced,
        {sums(":{unit}")}, :saved)
    ON CONFLICT DO UPDATE SET {sums("{unit} = {unit} + excluded.{unit}")},
        saved = saved + excluded.saved, requests = requests + 1, failed = failed + excluded.failed,
        cost = cost + excluded.cost, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        unpriced = unpriced + excluded.unpriced,
        completion_tokens = completion_tokens + excluded.completion_tokens
"""


REJECTED_ROW = (
    ValueError,
    TypeError,
    OverflowError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)
"""Errors caused by a row's own values: UnicodeEncodeError, an integer too large, NULL, a wrong type."""


def insert_rows(connection: sqlite3.Connection, rows: list[LedgerRow]) -> int:
    """Write rows and add them to their hours, in one transaction; return how many were written."""
    try:
        with transaction(connection):
            for row in rows:
                _insert_one(connection, row)
        return len(rows)
    except REJECTED_ROW as error:
        with transaction(connection):
            written = sum(_insert_or_skip(connection, row) for row in rows)
        log.error(
            "usage ledger: SQLite rejected a row (%s); %d of %d rows lost",
            type(error).__name__,
            len(rows) - written,
            len(rows),
        )
        return written


def _insert_one(connection: sqlite3.Connection, row: LedgerRow) -> None:
    """Write a row; one that exists already adds nothing."""
    if connection.execute(_INSERT, row).rowcount:
        hour = to_hourly_row(row)
        if hour is not None:
            connection.execute(_ADD_TO_HOUR, hour)


def _insert_or_skip(connection: sqlite3.Connection, row: LedgerRow) -> bool:
    """Write a row as it is, or with storable values, so that no budget misses it; return whether it was
    written."""
    for attempt in (row, storable_row(row)):
        connection.execute("SAVEPOINT one_row")
        try:
            _insert_one(connection, attempt)
            return True
        except REJECTED_ROW:
            connection.execute("ROLLBACK TO one_row")
        finally:
            connection.execute("RELEASE one_row")
    return False
