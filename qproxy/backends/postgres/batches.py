"""Batches of rows into PostgreSQL: each row once, by its id, and into the sum of its hour with it.

One statement writes a batch and the sums, in the order of their keys, so that writers of the same hours wait
for each other instead of in a circle. What is sent again, because the answer to a commit was lost or a
process died before it could forget its rows, adds nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import psycopg

from qproxy.backends.postgres.connection import Connection, transaction
from qproxy.backends.postgres.schema import COLUMNS, INTEGER, REAL, create_partition, month_of, partitions
from qproxy.ledger.rows import HOUR, LedgerRow, storable_row
from qproxy.ledger.units import UNITS, has_usage, sums

ATTEMPTS = 5
"""Of a batch that was the victim of a deadlock or a conflict."""
MAX_PAUSE = 0.05
REJECTED_ROW = (psycopg.DataError, psycopg.IntegrityError, ValueError, OverflowError)
"""Errors caused by a row's own values."""
_CONFLICT = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_CAST = {INTEGER: int, REAL: float}
_UNITS = ", ".join(UNITS)
_NAMES = ", ".join(COLUMNS)
_INSERT = f"""
    WITH batch AS (
        SELECT DISTINCT ON (id) * FROM unnest({", ".join(f"%s::{kind}[]" for kind in COLUMNS.values())})
            AS batch ({_NAMES}) ORDER BY id
    ), fresh AS (
        INSERT INTO requests ({_NAMES}) SELECT {_NAMES} FROM batch
        WHERE NOT EXISTS (SELECT FROM requests known WHERE known.id = batch.id)
        ON CONFLICT (id, ended) DO NOTHING
        RETURNING ended, key, account, served_model, outcome, prompt_tokens, completion_tokens, cost,
            full_cost, {_UNITS}
    )
    INSERT INTO hours AS known
        (hour, key, account, model, requests, failed, prompt_tokens, completion_tokens, cost, unpriced,
        {_UNITS}, saved)
    SELECT floor(ended / {HOUR})::bigint * {HOUR}, key, account, served_model, count(*),
        count(*) FILTER (WHERE outcome <> 'ok'), sum(prompt_tokens), sum(completion_tokens),
        coalesce(sum(cost), 0),
        count(*) FILTER (WHERE cost IS NULL AND {has_usage()}), {sums("sum({unit})")},
        coalesce(sum(full_cost - cost), 0)
    FROM fresh WHERE account <> '' GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (hour, key, account, model) DO UPDATE SET
        requests = known.requests + excluded.requests, failed = known.failed + excluded.failed,
        prompt_tokens = known.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = known.completion_tokens + excluded.completion_tokens,
        cost = known.cost + excluded.cost, unpriced = known.unpriced + excluded.unpriced,
        {sums("{unit} = known.{unit} + excluded.{unit}")}, saved = known.saved + excluded.saved
"""


_BY_INDEX = "SELECT " + ", ".join(
    f"set_config('enable_{plan}', 'off', true)" for plan in ("seqscan", "hashjoin", "mergejoin")
)
"""Look known requests up by their ids: without statistics the planner would read all of a month's rows."""


def write_batch(connection: Connection, rows: Sequence[LedgerRow], seconds: float) -> int:
    """Write rows; return how many the database accepted. Raises psycopg.Error if it is unavailable."""
    storable = [storable_row(row) for row in rows]
    try:
        _write(connection, storable, seconds)
        return len(storable)
    except REJECTED_ROW:
        return sum(_is_written(connection, row, seconds) for row in storable)


def _is_written(connection: Connection, row: LedgerRow, seconds: float) -> bool:
    try:
        _write(connection, [row], seconds)
        return True
    except REJECTED_ROW:
        return False


def _write(connection: Connection, rows: Sequence[LedgerRow], seconds: float) -> None:
    _create_partitions(connection, rows, seconds)
    values = [_column(rows, name) for name in COLUMNS]
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with transaction(connection, seconds):
                connection.execute(_BY_INDEX)
                connection.execute(_INSERT, values)
            return
        except _CONFLICT:
            if attempt == ATTEMPTS:
                raise
            time.sleep(random.uniform(0, MAX_PAUSE))


def _column(rows: Sequence[LedgerRow], name: str) -> list[str | int | float | None]:
    cast = _CAST.get(COLUMNS[name], str)
    return [None if (value := row.get(name)) is None else cast(value) for row in rows]


def _create_partitions(connection: Connection, rows: Sequence[LedgerRow], seconds: float) -> None:
    months = {month_of(float(row["ended"] or 0)) for row in rows}
    with transaction(connection, seconds):
        missing = months.difference(partitions(connection))
    for month in sorted(missing):
        create_partition(connection, month, seconds)
