"""Questions to the ledger about what happened, for people who look: sums along time, speeds, single requests.

Each takes an open connection, as those of `usage` do.  A long history is asked by whoever looks at a page, and the
thread that answers also writes: so whoever asks does it within `bounded`, which gives up after a while, and speeds are
read from a sample where there are many requests.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qproxy.ledger.schema import LedgerError

SLOT_SECONDS = 1.5
"""For all that one page asks at once: rows wait meanwhile."""
SAMPLE = 20_000
SLOT_SIZES = 20_000
"""Of SQLite's machine between two looks at the clock."""
COLUMNS = ("key", "account", "model", "outcome")
"""By which requests may be looked for."""


@dataclass(frozen=True, slots=True)
class TimeSlot:
    """What ended within one piece of time."""

    start: float
    requests: int = 0
    failed: int = 0
    """Without a whole answer, for another reason than that the client left."""
    disconnected: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def ok(self) -> int:
        return self.requests - self.failed - self.disconnected


@dataclass(frozen=True, slots=True)
class LatencySlot:
    """How fast the good answers of one piece of time were, in milliseconds; None where there were none."""

    start: float
    first_byte: tuple[float, float] | None = None
    """Median and 95th percentile of the time to an answer's first event."""
    total: tuple[float, float] | None = None


@contextmanager
def query_timeout(connection: sqlite3.Connection, seconds: float = SLOT_SECONDS) -> Iterator[None]:
    """Give up on what takes longer within the block: LedgerError."""
    until = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > until, SLOT_SIZES)
    try:
        yield
    except sqlite3.OperationalError as error:
        if time.monotonic() > until:
            raise LedgerError("there is too much in that time to count it quickly") from None
        raise error
    finally:
        connection.set_progress_handler(None, 0)


_SUMS = """
    SELECT min(?, cast((ended - ?) / ? AS INTEGER)) AS slot, count(*),
        sum(outcome NOT IN ('ok', 'client_left')), sum(outcome = 'client_left'),
        sum(prompt_tokens), sum(completion_tokens), total(cost)
    FROM requests WHERE ended >= ? AND ended < ? GROUP BY slot
"""


def time_slots(connection: sqlite3.Connection, since: float, until: float, count: int) -> list[TimeSlot]:
    """A span of time in `count` equal pieces."""
    width = (until - since) / count
    rows = connection.execute(_SUMS, (count - 1, since, width, since, until)).fetchall()
    known = {row[0]: row[1:] for row in rows}
    return [TimeSlot(since + n * width, *known.get(n, ())) for n in range(count)]


def latency_slots(
    connection: sqlite3.Connection, since: float, until: float, count: int
) -> list[LatencySlot]:
    """How fast the answers were in each of `count` equal pieces."""
    width, found = (until - since) / count, _sample(connection, since, until)
    firsts: list[list[float]] = [[] for _ in range(count)]
    totals: list[list[float]] = [[] for _ in range(count)]
    for ended, first_byte, total in found:
        slot = min(count - 1, int((ended - since) / width))
        totals[slot].append(total)
        if first_byte is not None:
            firsts[slot].append(first_byte)
    return [
        LatencySlot(since + n * width, _percentiles(firsts[n]), _percentiles(totals[n])) for n in range(count)
    ]


def _sample(
    connection: sqlite3.Connection, since: float, until: float
) -> list[tuple[float, float | None, float]]:
    """Good answers of the span: all of them, or every so-manieth."""
    span = (since, until)
    (many,) = connection.execute(
        "SELECT count(*) FROM requests WHERE ended >= ? AND ended < ?", span
    ).fetchone()
    step = max(1, many // SAMPLE)
    return connection.execute(
        "SELECT ended, first_byte_ms, total_ms FROM requests"
        " WHERE ended >= ? AND ended < ? AND outcome = 'ok' AND rowid % ? = 0",
        (*span, step),
    ).fetchall()


def _percentiles(values: list[float]) -> tuple[float, float] | None:
    """The median and the 95th percentile, by the nearest rank."""
    if not values:
        return None
    values.sort()
    return values[(len(values) - 1) // 2], values[-(-len(values) * 95 // 100) - 1]


def recent_requests(
    connection: sqlite3.Connection,
    limit: int,
    *,
    before: tuple[float, str] | None = None,
    only: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The newest requests, those that ended before (time, id) where that is given; `only` by `COLUMNS`."""
    wanted = {column: value for column, value in (only or {}).items() if column in COLUMNS}
    terms, values = [f"{column} = ?" for column in wanted], list[Any](wanted.values())
    if before is not None:
        terms, values = [*terms, "(ended, id) < (?, ?)"], [*values, *before]
    where = f"WHERE {' AND '.join(terms)}" if terms else ""
    return _rows(
        connection, f"SELECT * FROM requests {where} ORDER BY ended DESC, id DESC LIMIT {limit:d}", values
    )


def request_by_id(connection: sqlite3.Connection, id: str) -> dict[str, Any] | None:
    """One request."""
    found = _rows(connection, "SELECT * FROM requests WHERE id = ?", [id])
    return found[0] if found else None


def _rows(connection: sqlite3.Connection, question: str, values: list[Any]) -> list[dict[str, Any]]:
    cursor = connection.execute(question, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
