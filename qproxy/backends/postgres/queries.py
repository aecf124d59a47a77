"""SQL queries of the ledger in PostgreSQL: usage within windows, sums along time, latencies, single requests.

Each takes a connection within a transaction, which limits its time. As in the ledger file, calendar windows
are sums of `hours`, the rolling one is a sum of `requests`, and latencies of many requests are sampled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from qproxy.backends.postgres.connection import Connection
from qproxy.ledger.units import has_usage, sums
from qproxy.ledger.usage import FILTERS, GroupBy, History, LatencySlot, TimeSlot, UsageRow, WindowUsage
from qproxy.limits.windows import WINDOWS

SAMPLE = 100_000
"""Requests of which latencies are computed; PostgreSQL sorts as many in a tenth of a second."""
_COLUMNS = {"key": ("key", "key"), "account": ("account", "account"), "model": ("model", "served_model")}
"""The columns of `hours` and of `requests` by which usage is summed."""
_OF_HOURS = f"""
    SELECT {{by}}, sum(requests)::bigint, sum(failed)::bigint, sum(prompt_tokens)::bigint,
        sum(completion_tokens)::bigint, sum(cost), sum(unpriced)::bigint, {sums("sum({unit})")}, sum(saved)
    FROM hours WHERE hour >= %s {{only}} GROUP BY {{by}}
"""
_OF_REQUESTS = f"""
    SELECT {{by}}, count(*), count(*) FILTER (WHERE outcome <> 'ok'), sum(prompt_tokens)::bigint,
        sum(completion_tokens)::bigint, coalesce(sum(cost), 0),
        count(*) FILTER (WHERE cost IS NULL AND {has_usage()}), {sums("sum({unit})")},
        coalesce(sum(full_cost - cost), 0)
    FROM requests WHERE ended >= %s AND account <> '' {{only}} GROUP BY {{by}}
"""


def usage_windows(
    connection: Connection, by: GroupBy, windows: Sequence[str], now: float
) -> dict[str, list[UsageRow]]:
    """Return the usage within each window, largest first."""
    return {window: usage_by(connection, by, window, now) for window in windows}


def usage_by(
    connection: Connection, by: GroupBy, window: str, now: float, only: str | None = None
) -> list[UsageRow]:
    """Return the usage within a window (none of `WINDOWS`: ever), largest first; `only` names one user of
    it."""
    of_hours, of_requests = _COLUMNS[by]
    rolling = window in WINDOWS and WINDOWS[window].rolling
    text, name = (_OF_REQUESTS, of_requests) if rolling else (_OF_HOURS, of_hours)
    column = sql.Identifier(name)
    condition = sql.SQL("" if only is None else "AND {} = %s").format(column)
    query = sql.SQL(text).format(by=column, only=condition)
    since = WINDOWS[window].start(now) if window in WINDOWS else 0.0
    rows = connection.execute(query, [since] if only is None else [since, only]).fetchall()
    usage = [UsageRow(row[0], window, *row[1:]) for row in rows]
    return sorted(usage, key=lambda row: (-row.tokens, -row.requests, row.name))


def key_usage(
    connection: Connection, key: str, windows: Collection[str], now: float
) -> dict[str, WindowUsage]:
    """Return what one key used within each window."""
    usage = {}
    for name in windows:
        window = WINDOWS[name]
        rows = usage_by(connection, "key", name, now, only=key)
        used = rows[0].amounts if rows else {}
        oldest = _oldest_request(connection, key, window.start(now)) if window.rolling else None
        usage[name] = WindowUsage(window.start(now), used, window.end(now if oldest is None else oldest))
    return usage


def _oldest_request(connection: Connection, key: str, since: float) -> float | None:
    row = connection.execute(
        "SELECT min(ended) FROM requests WHERE ended >= %s AND account <> '' AND key = %s", [since, key]
    ).fetchone()
    return None if row is None or row[0] is None else float(row[0])


_SUMS = f"""
    SELECT least(%s, floor((ended - %s) / %s))::bigint AS slot, count(*),
        count(*) FILTER (WHERE outcome NOT IN ('ok', 'client_disconnected')),
        count(*) FILTER (WHERE outcome = 'client_disconnected'),
        sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint, coalesce(sum(cost), 0),
        count(*) FILTER (WHERE cost IS NULL AND {has_usage()}), coalesce(sum(full_cost - cost), 0)
    FROM requests WHERE ended >= %s AND ended < %s GROUP BY slot
"""
_LATENCIES = """
    SELECT least(%s, floor((ended - %s) / %s))::bigint AS slot,
        percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY first_byte_ms),
        percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY total_ms)
    FROM requests WHERE ended >= %s AND ended < %s AND outcome = 'ok' AND hashtext(id) %% %s = 0
    GROUP BY slot
"""


def history(connection: Connection, since: float, until: float, count: int) -> History:
    """Return sums and latencies of a period in `count` equal parts."""
    slots = _time_slots(connection, since, until, count)
    step = max(1, sum(slot.requests for slot in slots) // SAMPLE)
    latencies = _latency_slots(connection, since, until, count, step)
    return History(slots, latencies, _latency_slots(connection, since, until, 1, step)[0])


def _time_slots(connection: Connection, since: float, until: float, count: int) -> list[TimeSlot]:
    width = (until - since) / count
    rows = connection.execute(_SUMS, [count - 1, since, width, since, until]).fetchall()
    known = {row[0]: row[1:] for row in rows}
    return [TimeSlot(since + n * width, *known.get(n, ())) for n in range(count)]


def _latency_slots(
    connection: Connection, since: float, until: float, count: int, step: int
) -> list[LatencySlot]:
    width = (until - since) / count
    rows = connection.execute(_LATENCIES, [count - 1, since, width, since, until, step]).fetchall()
    known = {row[0]: row[1:] for row in rows}
    return [LatencySlot(since + n * width, *map(_pair, known.get(n, ()))) for n in range(count)]


def _pair(percentiles: list[float | None] | None) -> tuple[float, float] | None:
    """Return the median and the 95th percentile, None where nothing was measured."""
    median, high = percentiles or (None, None)
    return None if median is None or high is None else (median, high)


def recent_requests(
    connection: Connection,
    limit: int,
    *,
    before: tuple[float, str] | None = None,
    only: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Return the newest requests, before (time, id) if given; `only` filters by `FILTERS`."""
    wanted = {column: value for column, value in (only or {}).items() if column in FILTERS}
    terms = [sql.SQL("{} = %s").format(sql.Identifier(column)) for column in wanted]
    values: list[Any] = list(wanted.values())
    if before is not None:
        terms, values = [*terms, sql.SQL("(ended, id) < (%s, %s)").format()], [*values, *before]
    where = sql.SQL("WHERE {}" if terms else "{}").format(sql.SQL(" AND ").join(terms))
    query = sql.SQL("SELECT * FROM requests {} ORDER BY ended DESC, id DESC LIMIT %s").format(where)
    return _rows(connection, query, [*values, limit])


def request_by_id(connection: Connection, id: str) -> dict[str, Any] | None:
    """Return one request, None if it is not known."""
    found = _rows(connection, sql.SQL("SELECT * FROM requests WHERE id = %s").format(), [id])
    return found[0] if found else None


def _rows(connection: Connection, query: sql.Composed, values: list[Any]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()
