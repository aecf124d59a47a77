"""The usage ledger in PostgreSQL: what its thread does with rows and queries.

Rows that the database does not take go to a local file, and from there to the database when it is back, in
batches; so neither its outage nor a process's end during one loses or doubles a row. Meanwhile queries fail
at once, and a new connection is tried after pauses that grow. Requests are never affected.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import psycopg

from qproxy.backends.ledger_thread import LedgerThread, log
from qproxy.backends.postgres import queries, schema
from qproxy.backends.postgres.batches import write_batch
from qproxy.backends.postgres.connection import Connection, PostgresAddress, transaction
from qproxy.ledger.prices import Pricing
from qproxy.ledger.protocol import LedgerError
from qproxy.ledger.rows import LedgerRow

T = TypeVar("T")
FIRST_PAUSE, MAX_PAUSE = 0.5, 10.0
"""Seconds between two attempts to connect."""
DRAIN_SECONDS = 1.0
"""For which spooled rows are sent before the thread looks at new ones and queries."""
SLICE = 1000
"""Rows that one statement moves or deletes."""
PAGE_TIMEOUT = 1.5
PRUNE_SECONDS = 3600.0
DAY = 86400.0
HOURS_DAYS = 400
"""Days for which the sums of hours are kept."""


class Spool(Protocol):
    """A place where rows wait for the database. Methods raise LedgerError."""

    def count(self) -> int: ...

    def add(self, rows: Sequence[LedgerRow]) -> int: ...

    def first(self, limit: int) -> list[LedgerRow]: ...

    def remove(self, rows: Sequence[LedgerRow]) -> None: ...

    def delete_key(self, key: str) -> int: ...

    def close(self) -> None: ...


class PostgresUsageLedger(LedgerThread[Connection]):
    """The ledger of all processes that have this address."""

    functions = queries

    def __init__(
        self,
        address: PostgresAddress,
        pricing: Pricing,
        *,
        keep_days: int,
        spool: Spool,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(str(address), pricing, wall_clock=wall_clock, timeout=address.timeout)
        self._address = address
        self._keep_days = keep_days
        self._spool = spool
        self._is_spooled = True
        """Whether the spool may have rows: of an earlier process, at the start."""
        self._is_spool_healthy = True
        self._pause, self._next_attempt = FIRST_PAUSE, 0.0
        self._next_prune = 0.0

    # Called on the event loop

    async def run(self) -> None:
        """Send what an earlier process left, and run."""
        self._wake()
        await super().run()

    async def delete_key(self, key: str) -> int:
        deleted, last = 0, SLICE
        while last == SLICE:
            last = await self.query(partial(self._delete_slice, key))
            deleted += last
        return deleted

    async def query(self, run: Callable[[Connection], T]) -> T:
        return await super().query(partial(self._run_limited, run, self._address.timeout))

    async def _page(self, query: Callable[[Connection], T]) -> T:
        return await super().query(partial(self._run_limited, query, PAGE_TIMEOUT))

    # Called in the thread

    def _run_limited(self, run: Callable[[Connection], T], seconds: float, connection: Connection) -> T:
        """Run a query; once more if the connection turns out to be dead."""
        try:
            return self._run_once(run, seconds, connection)
        except psycopg.Error as error:
            if not connection.closed:
                raise LedgerError(self._address.reason(error)) from None
        self._disconnect()
        try:
            return self._run_once(run, seconds, self._connect())
        except psycopg.Error as error:
            raise LedgerError(self._address.reason(error)) from None

    def _run_once(self, run: Callable[[Connection], T], seconds: float, connection: Connection) -> T:
        try:
            with transaction(connection, seconds):
                return run(connection)
        except psycopg.errors.QueryCanceled:
            raise LedgerError(f"the query took more than {seconds:g} s: choose a shorter period") from None

    def _delete_slice(self, key: str, connection: Connection) -> int:
        self._spool.delete_key(key)
        connection.execute("DELETE FROM hours WHERE key = %s", [key])
        found = "SELECT id, ended FROM requests WHERE key = %s LIMIT %s"
        return connection.execute(
            f"DELETE FROM requests WHERE (id, ended) IN ({found})", [key, SLICE]
        ).rowcount

    def _retry_after(self) -> float | None:
        if not self._is_behind():
            return None
        return max(0.0, min(self._next_attempt - time.monotonic(), FIRST_PAUSE))

    def _is_behind(self) -> bool:
        return bool(self._rows) or self._is_spooled

    def _write(self) -> None:
        """Write the waiting rows to the database, else to the spool; then send what the spool has."""
        if not self._is_behind():
            return
        try:
            connection = self._connect()
            if self._rows:
                self._count(len(self._rows), write_batch(connection, self._rows, self._address.timeout))
                self._rows = []
            self._drain(connection)
            self._prune(connection)
        except (psycopg.Error, LedgerError, OSError) as error:
            self._fail(error)
            self._spool_rows()

    def _connect(self) -> Connection:
        if self._connection is None or self._connection.closed:
            if time.monotonic() < self._next_attempt:
                raise LedgerError(self._trouble)
            self._connection = self._open()
        return self._connection

    def _open(self) -> Connection:
        try:
            connection = self._address.connect()
            try:
                schema.migrate(connection)
            except BaseException:
                connection.close()
                raise
        except (psycopg.Error, LedgerError) as error:
            self._fail(error)
            raise LedgerError(self._address.reason(error)) from None
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _end(self) -> None:
        super()._end()
        self._spool.close()

    def _fail(self, error: Exception) -> None:
        """Begin a pause before the next attempt, unless one lasts already."""
        self._disconnect()
        if time.monotonic() < self._next_attempt:
            return
        self._trouble = self._address.reason(error)
        if self._healthy:
            log.error("usage ledger: requests go to the spool: %s", self._trouble)
        self._healthy = False
        self._next_attempt = time.monotonic() + self._pause * random.uniform(0.5, 1.0)
        self._pause = min(2 * self._pause, MAX_PAUSE)

    def _spool_rows(self) -> None:
        if not self._rows:
            return
        try:
            kept = self._spool.add(self._rows)
        except LedgerError as error:  # the rows stay here, as many as MAX_WAITING
            if self._is_spool_healthy:
                log.error("usage ledger: the spool cannot be written: %s", error)
            self._is_spool_healthy = False
            return
        self._is_spool_healthy = True
        self.lost += len(self._rows) - kept
        self._rows, self._is_spooled = [], True

    def _drain(self, connection: Connection) -> None:
        """Send spooled rows for a while; a batch is forgotten after its commit."""
        until = time.monotonic() + DRAIN_SECONDS
        try:
            while self._is_spooled and time.monotonic() < until:
                rows = self._spool.first(SLICE) if self._spool.count() else []
                if rows:
                    self._count(len(rows), write_batch(connection, rows, self._address.timeout))
                    self._spool.remove(rows)
                self._is_spooled = bool(rows)
        except LedgerError as error:  # tried again at the next start, and when rows are spooled
            log.error("usage ledger: the spool cannot be read: %s", error)
            self._is_spooled = False
        if not self._healthy and not self._is_spooled:
            log.warning("usage ledger recovered; %d rows lost", self.lost)
            self._healthy, self._pause = True, FIRST_PAUSE

    def _count(self, total: int, written: int) -> None:
        self.written += written
        self.lost += total - written
        if written < total:
            log.error("usage ledger: the database rejected rows; %d of %d lost", total - written, total)

    def _prune(self, connection: Connection) -> None:
        """Drop months and delete rows older than the retention, once an hour; one process at a time."""
        if time.monotonic() < self._next_prune:
            return
        now, seconds = self._wall_clock(), self._address.timeout
        self._next_prune = time.monotonic() + PRUNE_SECONDS
        try:
            with transaction(connection, seconds):
                if self._prune_slice(connection, now) == SLICE:
                    self._next_prune = 0.0
        except psycopg.errors.QueryCanceled as error:  # retried in an hour
            log.warning("cannot prune usage ledger: %s", self._address.reason(error))

    def _prune_slice(self, connection: Connection, now: float) -> int:
        """Return how many rows were deleted; SLICE if there may be more."""
        row = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", [schema.LOCK]).fetchone()
        if row != (True,):
            return 0
        connection.execute("DELETE FROM hours WHERE hour < %s", [now - HOURS_DAYS * DAY])
        if not self._keep_days:
            return 0
        oldest = now - self._keep_days * DAY
        for month in schema.partitions(connection):
            if month.next().start <= oldest:
                schema.drop_partition(connection, month)
        found = "SELECT id, ended FROM requests WHERE ended < %s LIMIT %s"
        return connection.execute(
            f"DELETE FROM requests WHERE (id, ended) IN ({found})", [oldest, SLICE]
        ).rowcount
