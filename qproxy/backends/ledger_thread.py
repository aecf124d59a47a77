"""The thread of a usage ledger: how the server hands it rows and queries, and when it writes.

Nothing waits for the disk or the network: `record` puts a row into a queue. The thread writes what arrived
within `BATCH_SECONDS` of the first row in one transaction, so a killed process loses at most that. Queries
are in the same queue: when one is answered, every row recorded before it is written.

A member implements writing and connecting (`_write`, `_connect`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias, TypeVar

import trio

from qproxy.backends.ledger_queries import LedgerQueries
from qproxy.ledger.prices import Pricing
from qproxy.ledger.protocol import LedgerError
from qproxy.ledger.rows import LedgerRow, to_row
from qproxy.telemetry.records import RequestRecord

C = TypeVar("C")
T = TypeVar("T")
BATCH_SECONDS = 0.25
RETRY_SECONDS = 0.5
MAX_BATCH = 1000
MAX_WAITING = 20_000
"""Rows kept while they cannot be written."""
QUERY_TIMEOUT = 5.0
STOP_TIMEOUT = 3.0
log = logging.getLogger("qproxy.ledger")


class _Query(NamedTuple):
    run: Callable[[Any], Any]
    result: Callable[[Any, Exception | None], None]


class _Wake(NamedTuple):
    """Let the thread look what there is to write."""


class _Stop(NamedTuple):
    pass


class _Stopping(Exception):
    """The thread is to stop."""


_Item: TypeAlias = LedgerRow | _Query | _Wake | _Stop


class LedgerThread(LedgerQueries[C]):
    """A ledger whose rows are written, and whose queries are run, by a thread of its own."""

    def __init__(
        self,
        place: str,
        pricing: Pricing,
        *,
        wall_clock: Callable[[], float] = time.time,
        timeout: float = 0.0,
    ) -> None:
        """`place` is where the rows are, for messages; one call of the thread lasts for `timeout` at most."""
        self.place = place
        self._pricing = pricing
        self.written = self.lost = 0
        """Rows since the start."""
        self._wall_clock = wall_clock
        self._query_timeout, self._stop_timeout = QUERY_TIMEOUT + timeout, STOP_TIMEOUT + timeout
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._flush = threading.Event()
        """Set if a task waits for the queue."""
        self._thread: threading.Thread | None = None
        self._connection: C | None = None
        self._rows: list[LedgerRow] = []
        self._healthy, self._trouble = True, "it cannot be written"
        """Whether rows could be written the last time, and if not, why."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.place}: {self.written} rows written, {self.lost} lost>"

    # Called on the event loop

    def use_pricing(self, pricing: Pricing) -> None:
        """Compute the costs of further requests with these prices."""
        self._pricing = pricing

    def record(self, record: RequestRecord) -> None:
        """Record a finished request if it named a model, or was rejected before it could."""
        if record.relay.model or record.is_rejected:
            self._enqueue(to_row(record, self._wall_clock(), self._pricing))

    async def aclose(self) -> None:
        """Write what is left. A row recorded later starts the thread again."""
        if self._thread is not None:
            with trio.CancelScope(shield=True):  # `close` waits for the stop's timeout at most
                await trio.to_thread.run_sync(self.close)

    async def query(self, run: Callable[[C], T]) -> T:
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
        with trio.move_on_after(self._query_timeout):
            await done.wait()
        if not answers:
            raise LedgerError(f"{self.place}: no result within {self._query_timeout:g} s.")
        result, error = answers[0]
        if error is not None:
            raise LedgerError(f"{self.place}: {error}.")
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
            self._thread.join(self._stop_timeout)
            if self._thread.is_alive():
                log.error("usage ledger: the last rows were not written within %g s", self._stop_timeout)
                return
            self._thread = None
            if not self._queue.empty():  # recorded while it was ending
                self._start()

    def _wake(self) -> None:
        """Start the thread, which looks for rows of an earlier process."""
        self._enqueue(_Wake())

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
        self._end()

    def _next_batch(self) -> tuple[list[_Query], bool]:
        """Collect rows until it is time to write: after BATCH_SECONDS, or at once for a query or the stop.

        Only the first row wakes the thread: waking it for each would cost the event loop more than recording
        them.
        """
        pending: list[_Query] = []
        try:
            self._sort(self._queue.get(timeout=self._retry_after()), pending)
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
        elif not isinstance(item, _Wake):
            self._try_write(item)

    def _try_write(self, row: LedgerRow) -> None:
        if len(self._rows) < MAX_WAITING:
            self._rows.append(row)
        else:
            self.lost += 1

    def _run_query(self, query: _Query) -> None:
        try:
            if self._is_behind():
                raise LedgerError(self._trouble)
            query.result(query.run(self._connect()), None)
        except Exception as error:  # the waiting task gets the error, whatever it is
            query.result(None, error)

    def _retry_after(self) -> float | None:
        """Return the seconds until another attempt to write, None if nothing waits for one."""
        return RETRY_SECONDS if self._is_behind() else None

    def _end(self) -> None:
        """Close what the thread opened, at its end."""
        self._disconnect()

    def _is_behind(self) -> bool:
        """Return whether rows wait for another attempt to write them."""
        return bool(self._rows)

    @abstractmethod
    def _write(self) -> None:
        """Write the waiting rows; if that fails they stay."""

    @abstractmethod
    def _connect(self) -> C:
        """Return the connection, opened if it is not. Raises LedgerError."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Close the connection if there is one."""
