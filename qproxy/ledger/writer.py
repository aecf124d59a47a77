"""The thread that writes the ledger, and the way for the rest to hand it rows and questions.

Nothing waits for the disk: `finished` puts a row into a queue.  The thread writes what has come within `LINGER`
seconds of the first row in one transaction, so a killed process loses at most that.  Questions stand in the same
queue: by the time one is answered, every row from before it is in the file.

A file that cannot be written (a full disk, a lock that stays) is said once in the log; rows are kept for a while and
then counted as lost.  A row that the file does not take is written as far as it can be, and never keeps another one
out.  The requests themselves never hear of it.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import trio

from qproxy.ledger import schema
from qproxy.ledger.prices import Pricing
from qproxy.ledger.rows import LedgerRow, storable_row, to_hourly_row, to_row
from qproxy.ledger.schema import LedgerError
from qproxy.system.sqlite import transaction
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
"""How long the hours' sums are kept: a year and a month."""
DAY = 86400.0
log = logging.getLogger("qproxy.ledger")
_ALL_TIME = float("inf")


class _Query(NamedTuple):
    run: Callable[[sqlite3.Connection], Any]
    result: Callable[[Any, Exception | None], None]


class _Stop(NamedTuple):
    pass


class _Stopping(Exception):
    """The word to stop has come."""


_Item: TypeAlias = LedgerRow | _Query | _Stop


class UsageLedger:
    """The ledger of this process; others may write to the same file."""

    def __init__(
        self,
        path: Path,
        pricing: Pricing | None = None,
        *,
        keep_days: int = 90,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.pricing = pricing or Pricing()
        self.keep_days = keep_days
        self.written = self.lost = 0
        """Rows since the start."""
        self._wall_clock = wall_clock
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._flush = threading.Event()
        """Somebody waits for what stands in the queue."""
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._rows: list[LedgerRow] = []
        self._last_pruned = -_ALL_TIME
        self._healthy = True

    def __repr__(self) -> str:
        return f"<Ledger {self.path}: {self.written} rows written, {self.lost} lost>"

    # What the server calls

    def record(self, record: RequestRecord) -> None:
        """Keep a finished request, if it named a model."""
        if record.relay.model:
            self._enqueue(to_row(record, self._wall_clock(), self.pricing))

    async def query(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """What a question of the file gives, every row from before it included.  LedgerError when it has no answer."""
        token, done = trio.lowlevel.current_trio_token(), trio.Event()
        answers: list[tuple[Any, Exception | None]] = []

        def answer(*outcome: Any) -> None:
            answers.append(outcome)
            done.set()

        def from_thread(result: Any, error: Exception | None) -> None:
            with suppress(trio.RunFinishedError):  # nobody waits any more
                token.run_sync_soon(answer, result, error)

        self._enqueue(_Query(question, from_thread))
        self._flush.set()
        with trio.move_on_after(QUERY_TIMEOUT):
            await done.wait()
        if not answers:
            raise LedgerError(f"{self.path}: no answer within {QUERY_TIMEOUT:.0f} s.")
        result, error = answers[0]
        if error is not None:
            raise LedgerError(f"{self.path}: {error}.")
        return result  # type: ignore[no-any-return]

    async def run(self) -> None:
        """Wait for the end, and then write what is left."""
        try:
            await trio.sleep_forever()
        finally:
            if self._thread is not None:
                with trio.CancelScope(shield=True):  # `close` waits for STOP_TIMEOUT at most
                    await trio.to_thread.run_sync(self.close)

    def close(self) -> None:
        """Write what is left and end the thread; a row that comes later begins another one."""
        while self._thread is not None:
            self._queue.put(_Stop())
            self._flush.set()
            self._thread.join(STOP_TIMEOUT)
            if self._thread.is_alive():
                log.error("the ledger's file does not take its last rows in time")
                return
            self._thread = None
            if not self._queue.empty():  # what came while it was ending
                self._start()

    def _enqueue(self, item: _Item) -> None:
        self._queue.put(item)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._write_loop, name="qproxy-ledger", daemon=True)
        self._thread.start()

    # What the thread does

    def _write_loop(self) -> None:
        stopping = False
        while not stopping:
            questions, stopping = self._next_batch()
            try:
                self._write()
            except Exception:  # rows that no file would take: without them the next ones are written
                log.exception("%d rows of the ledger are lost", len(self._rows))
                self.lost += len(self._rows)
                self._rows = []
            for question in questions:
                self._run_query(question)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _next_batch(self) -> tuple[list[_Query], bool]:
        """Rows until it is time to write; a question, or the word to stop, makes it time at once.

        The first row wakes the thread, the others wait for it: waking it for each would cost the event loop more
        than they do.
        """
        questions: list[_Query] = []
        try:
            self._sort(self._queue.get(timeout=RETRY_SECONDS if self._rows else None), questions)
            if not questions:
                self._flush.wait(BATCH_SECONDS)
            while len(self._rows) < MAX_BATCH or not self._healthy:
                self._sort(self._queue.get_nowait(), questions)
        except queue.Empty:
            pass
        except _Stopping:
            return questions, True
        if self._queue.empty():
            self._flush.clear()
        return questions, False

    def _sort(self, item: _Item, questions: list[_Query]) -> None:
        if isinstance(item, _Stop):
            raise _Stopping
        if isinstance(item, _Query):
            questions.append(item)
        else:
            self._try_write(item)

    def _try_write(self, row: LedgerRow) -> None:
        if len(self._rows) < MAX_WAITING:
            self._rows.append(row)
        else:
            self.lost += 1

    def _write(self) -> None:
        """Write the rows that wait; when that fails they go on waiting."""
        if not self._rows:
            return
        try:
            if self._connection is None:
                self._connection = schema.open_for_writing(self.path)
            written = _insert(self._connection, self._rows)
        except (sqlite3.Error, LedgerError) as error:
            if self._healthy:
                log.error("the ledger cannot be written, and waits: %s", error)
            self._healthy = False
            return
        if not self._healthy:
            log.warning("the ledger is written again; %d rows were lost", self.lost)
        self._healthy = True
        self.written += written
        self.lost += len(self._rows) - written
        self._rows = []
        self._prune(self._connection)

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Forget what is older than the settings want to know."""
        if time.monotonic() - self._last_pruned < PRUNE_SECONDS:
            return
        self._last_pruned, now = time.monotonic(), self._wall_clock()
        try:
            if self.keep_days:
                connection.execute("DELETE FROM requests WHERE ended < ?", (now - self.keep_days * DAY,))
            connection.execute("DELETE FROM hours WHERE hour < ?", (now - HOURS_DAYS * DAY,))
        except sqlite3.Error as error:  # in an hour it is tried again
            log.warning("old rows of the ledger stay: %s", error)

    def _run_query(self, question: _Query) -> None:
        try:
            if self._rows:
                raise LedgerError("the ledger cannot be written")
            if self._connection is None:
                self._connection = schema.open_for_writing(self.path)
            question.result(question.run(self._connection), None)
        except Exception as error:  # whatever is wrong with a question, whoever asks must hear it
            question.result(None, error)


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


REFUSED_ROW = (
    ValueError,
    TypeError,
    OverflowError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)
"""What is raised because of a row's own values: UnicodeEncodeError, too large an integer, NULL, another type."""


def _insert(connection: sqlite3.Connection, rows: list[LedgerRow]) -> int:
    """Write rows and what they add to their hours, in one transaction; return how many the file has taken."""
    try:
        with transaction(connection):
            for row in rows:
                _insert_one(connection, row)
        return len(rows)
    except REFUSED_ROW as error:
        with transaction(connection):
            written = sum(_insert_somehow(connection, row) for row in rows)
        log.error(
            "a row of the ledger has values that SQLite does not take (%s); %d of %d rows are lost",
            type(error).__name__,
            len(rows) - written,
            len(rows),
        )
        return written


def _insert_one(connection: sqlite3.Connection, row: LedgerRow) -> None:
    """Write a row; one that is there already adds nothing."""
    if connection.execute(_INSERT, row).rowcount:
        hour = to_hourly_row(row)
        if hour is not None:
            connection.execute(_ADD_TO_HOUR, hour)


def _insert_somehow(connection: sqlite3.Connection, row: LedgerRow) -> bool:
    """Write a row as it is, else with storable values, so that no budget misses it; return whether it is written."""
    for attempt in (row, storable_row(row)):
        connection.execute("SAVEPOINT one_row")
        try:
            _insert_one(connection, attempt)
            return True
        except REFUSED_ROW:
            connection.execute("ROLLBACK TO one_row")
        finally:
            connection.execute("RELEASE one_row")
    return False
