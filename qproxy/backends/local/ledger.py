"""The usage ledger in an SQLite file: the thread that writes it, and how the server hands it rows and
queries.

Nothing waits for the disk: `record` puts a row into a queue. The thread writes what arrived within
`BATCH_SECONDS` of the first row in one transaction, so a killed process loses at most that. Queries are in
the same queue: when one is answered, every row recorded before it is in the file.

A file that cannot be written (a full disk, a lock that stays) is logged once; rows are kept for a while and
then counted as lost. A row that the file rejects is written as far as possible and never keeps another one
out. Requests are never affected.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import trio

from qproxy.backends.local import ledger_schema as schema
from qproxy.backends.local.ledger_queries import query_timeout
from qproxy.backends.local.ledger_reader import LedgerQueries
from qproxy.ledger.prices import Pricing
from qproxy.ledger.protocol import LedgerError
from qproxy.ledger.rows import LedgerRow, storable_row, to_hourly_row, to_row
from qproxy.system.sqlite import erasing, transaction
from qproxy.telemetry.records import RequestRecord

T = TypeVar("T")
BATCH_SECONDS = 0.25
RETRY_SECONDS = 0.5
MAX_BATCH = 1000
MAX_WAITING = 20_000
"""Rows kept while the file cannot be written."""
QUERY_TIMEOUT = 5.0
STOP_TIMEOUT = 3.0
PRUNE_SECONDS = 3600.0
HOURS_DAYS = 400
"""Days for which the sums of hours are kept: a year and a month."""
DAY = 86400.0
log = logging.getLogger("qproxy.ledger")
_ALL_TIME = float("inf")


class _Query(NamedTuple):
    run: Callable[[sqlite3.Connection], Any]
    result: Callable[[Any, Exception | None], None]


class _Stop(NamedTuple):
    pass


class _Stopping(Exception):
    """The thread is to stop."""


_Item: TypeAlias = LedgerRow | _Query | _Stop


class SqliteUsageLedger(LedgerQueries):
    """The ledger of this process; others may write to the same file."""

    def __init__(
        self,
        path: Path,
        pricing: Pricing,
        *,
        keep_days: int,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._pricing = pricing
        self.keep_days = keep_days
        self.written = self.lost = 0
        """Rows since the start."""
        self._wall_clock = wall_clock
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._flush = threading.Event()
        """Set if a task waits for the queue."""
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._rows: list[LedgerRow] = []
        self._last_pruned = -_ALL_TIME
        self._healthy = True

    def __repr__(self) -> str:
        return f"<SqliteUsageLedger {self.path}: {self.written} rows written, {self.lost} lost>"

    # Called on the event loop

    def use_pricing(self, pricing: Pricing) -> None:
        """Compute the costs of further requests with these prices."""
        self._pricing = pricing

    def record(self, record: RequestRecord) -> None:
        """Record a finished request if it named a model, or was rejected before it could."""
        if record.relay.model or record.is_rejected:
            self._enqueue(to_row(record, self._wall_clock(), self._pricing))

    async def delete_key(self, key: str) -> int:
        return await self.query(partial(_delete_key, key=key))

    async def aclose(self) -> None:
        """Write what is left. A row recorded later starts the thread again."""
        if self._thread is not None:
            with trio.CancelScope(shield=True):  # `close` waits for STOP_TIMEOUT at most
                await trio.to_thread.run_sync(self.close)

    async def _page(self, query: Callable[[sqlite3.Connection], T]) -> T:
        def run(connection: sqlite3.Connection) -> T:
            with query_timeout(connection):
                return query(connection)

        return await self.query(run)

    async def query(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query in the thread, after writing every row recorded before it. Raises LedgerError."""
        token, done = trio.lowlevel.current_trio_token(), trio.Event()
        answers: list[tuple[Any, Exception | None]] = []

        def answer(*outcome: Any) -> None:
            answers.append(outcome)
            done.set()

        def from_thread(result: Any, error: Exception | None) -> None:
            with suppress(trio.RunFinishedError):  # no task waits any more
                token.run_sync_soon(answer, result, error)

        self._enqueue(_Query(run, from_thread))
        self._flush.set()
        with trio.move_on_after(QUERY_TIMEOUT):
            await done.wait()
        if not answers:
            raise LedgerError(f"{self.path}: no result within {QUERY_TIMEOUT:.0f} s.")
        result, error = answers[0]
        if error is not None:
            raise LedgerError(f"{self.path}: {error}.")
        return result  # type: ignore[no-any-return]

    async def run(self) -> None:
        """Wait until cancelled, then write what is left."""
        try:
            await trio.sleep_forever()
        finally:
            await self.aclose()

    def close(self) -> None:
        """Write what is left and end the thread; a row recorded later starts another one."""
        while self._thread is not None:
            self._queue.put(_Stop())
            self._flush.set()
            self._thread.join(STOP_TIMEOUT)
            if self._thread.is_alive():
                log.error("usage ledger: the last rows were not written within %g s", STOP_TIMEOUT)
                return
            self._thread = None
            if not self._queue.empty():  # recorded while it was ending
                self._start()

    def _enqueue(self, item: _Item) -> None:
        self._queue.put(item)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._write_loop, name="qproxy-ledger", daemon=True)
        self._thread.start()

    # Called in the thread

    def _write_loop(self) -> None:
        stopping = False
        while not stopping:
            pending, stopping = self._next_batch()
            try:
                self._write()
            except Exception:  # rows that no file accepts: drop them, so that the next ones are written
                log.exception("usage ledger: %d rows lost", len(self._rows))
                self.lost += len(self._rows)
                self._rows = []
            for query in pending:
                self._run_query(query)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _next_batch(self) -> tuple[list[_Query], bool]:
        """Collect rows until it is time to write: after BATCH_SECONDS, or at once for a query or the stop.

        Only the first row wakes the thread: waking it for each would cost the event loop more than recording
        them.
        """
        pending: list[_Query] = []
        try:
            self._sort(self._queue.get(timeout=RETRY_SECONDS if self._rows else None), pending)
            if not pending:
                self._flush.wait(BATCH_SECONDS)
            while len(self._rows) < MAX_BATCH or not self._healthy:
                self._sort(self._queue.get_nowait(), pending)
        except queue.Empty:
            pass
        except _Stopping:
            return pending, True
        if self._queue.empty():
            self._flush.clear()
        return pending, False

    def _sort(self, item: _Item, pending: list[_Query]) -> None:
        if isinstance(item, _Stop):
            raise _Stopping
        if isinstance(item, _Query):
            pending.append(item)
        else:
            self._try_write(item)

    def _try_write(self, row: LedgerRow) -> None:
        if len(self._rows) < MAX_WAITING:
            self._rows.append(row)
        else:
            self.lost += 1

    def _write(self) -> None:
        """Write the waiting rows; if that fails they stay."""
        if not self._rows:
            return
        try:
            if self._connection is None:
                self._connection = schema.open_for_writing(self.path)
            written = _insert(self._connection, self._rows)
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
        self._prune(self._connection)

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

    def _run_query(self, query: _Query) -> None:
        try:
            if self._rows:
                raise LedgerError("the ledger file cannot be written")
            if self._connection is None:
                self._connection = schema.open_for_writing(self.path)
            query.result(query.run(self._connection), None)
        except Exception as error:  # the waiting task gets the error, whatever it is
            query.result(None, error)


def _delete_key(connection: sqlite3.Connection, key: str) -> int:
    with erasing(connection), transaction(connection):
        connection.execute("DELETE FROM hours WHERE key = ?", (key,))
        return connection.execute("DELETE FROM requests WHERE key = ?", (key,)).rowcount


_ROW = tuple(to_row(RequestRecord("", "", ""), 0.0, Pricing()))
_INSERT = (
    f"INSERT INTO requests ({', '.join(_ROW)}) VALUES ({', '.join(f':{name}' for name in _ROW)})"
    " ON CONFLICT (id) DO NOTHING"
)
_ADD_TO_HOUR = """
    INSERT INTO hours VALUES
        (:hour, :key, :account, :model, 1, :failed, :prompt_tokens, :completion_tokens, :cost, :unpriced)
    ON CONFLICT DO UPDATE SET
        requests = requests + 1, failed = failed + excluded.failed, cost = cost + excluded.cost,
        prompt_tokens = prompt_tokens + excluded.prompt_tokens, unpriced = unpriced + excluded.unpriced,
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


def _insert(connection: sqlite3.Connection, rows: list[LedgerRow]) -> int:
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
