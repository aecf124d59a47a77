"""SQL queries of the ledger: usage within windows, sums along time, latencies, single requests.

Each takes an open connection: the writing thread's, or a reader's. Calendar windows start on a full hour and
are sums of `hours`; the rolling one is a sum of `requests`. A long history is queried by people who look at a
page, and the thread that answers also writes: those queries run within `query_timeout`, and latencies come
from a sample.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from qproxy.ledger.protocol import LedgerError
from qproxy.ledger.units import has_usage, sums
from qproxy.ledger.usage import FILTERS, GroupBy, History, LatencySlot, TimeSlot, UsageRow, WindowUsage
from qproxy.limits.windows import WINDOWS, UsageWindow

PAGE_TIMEOUT = 1.5
"""Seconds for a query of a page: rows wait meanwhile."""
SAMPLE = 20_000
PROGRESS_STEPS = 20_000
"""Instructions of SQLite's virtual machine between two checks of the time."""
_COLUMNS = {"key": ("key", "key"), "account": ("account", "account"), "model": ("model", "served_model")}
"""The columns of `hours` and of `requests` by which usage is summed."""
_OF_HOURS = f"""
    SELECT {{by}}, sum(requests), sum(failed), sum(prompt_tokens), sum(completion_tokens), sum(cost),
        sum(unpriced), {sums("sum({unit})")}, sum(saved)
    FROM hours WHERE hour >= ? {{only}} GROUP BY {{by}}
"""
_OF_REQUESTS = f"""
    SELECT {{by}}, count(*), sum(outcome != 'ok'), sum(prompt_tokens), sum(completion_tokens), total(cost),
        sum(cost IS NULL AND {has_usage()}), {sums("sum({unit})")}, total(full_cost - cost)
    FROM requests WHERE ended >= ? AND account != '' {{only}} GROUP BY {{by}}
"""


@contextmanager
def query_timeout(connection: sqlite3.Connection, seconds: float = PAGE_TIMEOUT) -> Iterator[None]:
    """Interrupt queries of the block that take longer. Raises LedgerError."""
    until = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > until, PROGRESS_STEPS)
    try:
        yield
    except sqlite3.OperationalError as error:
        if time.monotonic() > until:
            raise LedgerError(f"the query took more than {seconds:g} s: choose a shorter period") from None
        raise error
    finally:
        connection.set_progress_handler(None, 0)


def usage_windows(
    connection: sqlite3.Connection, by: GroupBy, windows: Sequence[str], now: float
) -> dict[str, list[UsageRow]]:
    """Return the usage within each window, largest first."""
    return {window: usage_by(connection, by, window, now) for window in windows}


def usage_by(
    connection: sqlite3.Connection, by: GroupBy, window: str, now: float, only: str | None = None
) -> list[UsageRow]:
    """Return the usage within a window (none of `WINDOWS`: ever), largest first; `only` names one user of
    it."""
    of_hours, of_requests = _COLUMNS[by]
    rolling = window in WINDOWS and WINDOWS[window].rolling
    query, column = (_OF_REQUESTS, of_requests) if rolling else (_OF_HOURS, of_hours)
    query = query.format(by=column, only="" if only is None else f"AND {column} = ?")
    since = WINDOWS[window].start(now) if window in WINDOWS else 0.0
    rows = connection.execute(query, (since,) if only is None else (since, only)).fetchall()
    usage = [UsageRow(row[0], window, *row[1:]) for row in rows]
    return sorted(usage, key=lambda row: (-row.tokens, -row.requests, row.name))


def key_usage(
    connection: sqlite3.Connection, key: str, windows: Collection[str], now: float
) -> dict[str, WindowUsage]:
    """Return what one key used within each window."""
    usage = {}
    for name in windows:
        window = WINDOWS[name]
        rows = usage_by(connection, "key", name, now, only=key)
        used = rows[0].amounts if rows else {}
        oldest = oldest_request(connection, key, window, now) if window.rolling else None
        usage[name] = WindowUsage(window.start(now), used, window.end(now if oldest is None else oldest))
    return usage


def oldest_request(connection: sqlite3.Connection, key: str, window: UsageWindow, now: float) -> float | None:
    """Return when the first of a key's requests within a rolling window ended."""
    row = connection.execute(
        "SELECT min(ended) FROM requests WHERE ended >= ? AND account != '' AND key = ?",
        (window.start(now), key),
    ).fetchone()
    return None if row[0] is None else float(row[0])


_SUMS = f"""
    SELECT min(?, cast((ended - ?) / ? AS INTEGER)) AS slot, count(*),
        sum(outcome NOT IN ('ok', 'client_disconnected')), sum(outcome = 'client_disconnected'),
        sum(prompt_tokens), sum(completion_tokens), total(cost),
        sum(cost IS NULL AND {has_usage()}), total(full_cost - cost)
    FROM requests WHERE ended >= ? AND ended < ? GROUP BY slot
"""


def history(connection: sqlite3.Connection, since: float, until: float, count: int) -> History:
    """Return sums and latencies of a period in `count` equal parts."""
    return History(
        time_slots(connection, since, until, count),
        latency_slots(connection, since, until, count),
        latency_slots(connection, since, until, 1)[0],
    )


def time_slots(connection: sqlite3.Connection, since: float, until: float, count: int) -> list[TimeSlot]:
    """Return the sums of a period in `count` equal parts."""
    width = (until - since) / count
    rows = connection.execute(_SUMS, (count - 1, since, width, since, until)).fetchall()
    known = {row[0]: row[1:] for row in rows}
    return [TimeSlot(since + n * width, *known.get(n, ())) for n in range(count)]


def latency_slots(
    connection: sqlite3.Connection, since: float, until: float, count: int
) -> list[LatencySlot]:
    """Return the latencies of a period in `count` equal parts."""
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
    """Read the successful responses of a period: all of them, or every nth."""
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
    """Return the median and the 95th percentile, by nearest rank."""
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
    """Return the newest requests, before (time, id) if given; `only` filters by `FILTERS`."""
    wanted = {column: value for column, value in (only or {}).items() if column in FILTERS}
    terms, values = [f"{column} = ?" for column in wanted], list[Any](wanted.values())
    if before is not None:
        terms, values = [*terms, "(ended, id) < (?, ?)"], [*values, *before]
    where = f"WHERE {' AND '.join(terms)}" if terms else ""
    return _rows(
        connection, f"SELECT * FROM requests {where} ORDER BY ended DESC, id DESC LIMIT {limit:d}", values
    )


def request_by_id(connection: sqlite3.Connection, id: str) -> dict[str, Any] | None:
    """Return one request, None if it is not known."""
    found = _rows(connection, "SELECT * FROM requests WHERE id = ?", [id])
    return found[0] if found else None


def _rows(connection: sqlite3.Connection, question: str, values: list[Any]) -> list[dict[str, Any]]:
    cursor = connection.execute(question, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
