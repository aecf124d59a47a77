"""Several ledger files as one, for machines without a common database: a temporary file, deleted when closed.

A request is counted once, by its id, however many of the files have it. Sums of hours outlive their requests:
what a file's sums have beyond its requests is of deleted ones, and is added as it is. Copies of one ledger
from different days must therefore not be merged with each other.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from qproxy.backends.local import ledger_schema as schema
from qproxy.backends.local.ledger_reader import SqliteLedgerReader
from qproxy.ledger.protocol import LedgerError
from qproxy.ledger.units import UNITS, has_usage, sums

_KEY = "hour, key, account, model"
_SUMS = ("requests", "failed", "prompt_tokens", "completion_tokens", "cost", "unpriced", *UNITS, "saved")
_BY_HOUR = f"""
    SELECT cast(ended / 3600 AS INTEGER) * 3600 AS hour, key, account, served_model AS model,
        count(*) AS requests, sum(outcome != 'ok') AS failed, sum(prompt_tokens) AS prompt_tokens,
        sum(completion_tokens) AS completion_tokens, total(cost) AS cost,
        sum(cost IS NULL AND {has_usage()}) AS unpriced, {sums("sum({unit}) AS {unit}")},
        total(full_cost - cost) AS saved
    FROM {{source}}.requests WHERE account != '' GROUP BY 1, 2, 3, 4
"""
_ADD = f"""
    INSERT INTO main.hours ({_KEY}, {", ".join(_SUMS)}) {{rows}}
    ON CONFLICT DO UPDATE SET {", ".join(f"{name} = {name} + excluded.{name}" for name in _SUMS)}
"""
_DELETED = f"""
    SELECT {_KEY}, {", ".join(f"max(0, h.{name} - coalesce(r.{name}, 0))" for name in _SUMS)}
    FROM source.hours h LEFT JOIN ({_BY_HOUR.format(source="source")}) r USING ({_KEY})
    WHERE h.requests > coalesce(r.requests, 0)
"""


def open_merged(paths: Iterable[Path]) -> SqliteLedgerReader:
    """Return a reader of all the files together. Raises LedgerError if one of them is no ledger."""
    connection = schema.create_temporary()
    try:
        for path in {path.resolve(): path for path in paths}.values():
            _check(path)
            _add_file(connection, path)
        rows = f"SELECT * FROM ({_BY_HOUR.format(source='main')}) WHERE true"  # a join's ON is not meant
        connection.execute(_ADD.format(rows=rows))
    except sqlite3.Error as error:
        connection.close()
        raise LedgerError(f"The ledgers cannot be merged: {error}.") from None
    except BaseException:
        connection.close()
        raise
    return SqliteLedgerReader(Path("merged ledgers"), connection)


def _check(path: Path) -> None:
    with closing(schema.open_for_reading(path)) as connection:
        if schema.version(connection) != len(schema.MIGRATIONS):
            raise LedgerError(f"{path}: was written by an older qproxy; start its server once with this one.")


def _add_file(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("ATTACH ? AS source", (f"{path.absolute().as_uri()}?mode=ro",))
    try:
        names = ", ".join(row[1] for row in connection.execute("PRAGMA main.table_info(requests)"))
        connection.execute(
            f"INSERT OR IGNORE INTO main.requests ({names}) SELECT {names} FROM source.requests"
        )
        connection.execute(_ADD.format(rows=_DELETED))
    finally:
        connection.execute("DETACH source")
