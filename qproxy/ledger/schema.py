"""The tables of the ledger.

`requests` has a row a request and is pruned; `hours` has the sums of every hour by key, account and model and is kept
for over a year, because a month's budget cannot wait for a month's rows to be read.  Views are for people: times as
words, sums by day.

A file says in `schema_version` what it is; `MIGRATIONS` take it from there to today, each in one transaction.  A file
of a newer qproxy is refused, not guessed at.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from qproxy.system.sqlite import open_database, open_readonly, transaction

BUSY_SECONDS = 5.0
"""For another process to end its write."""
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
    CREATE TABLE requests (
        id TEXT PRIMARY KEY,
        ended REAL NOT NULL,          -- Unix seconds, UTC
        key TEXT NOT NULL,            -- the client's key: its name, else its id; '' where none was asked for
        account TEXT NOT NULL,        -- '' for a request that reached no account
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,          -- as the client named it
        served_model TEXT NOT NULL,   -- as the account was asked for it
        stream INTEGER NOT NULL,
        status INTEGER NOT NULL,
        outcome TEXT NOT NULL,        -- ok, error, failed, upstream_cut, client_left or shutting_down
        error TEXT,
        finish TEXT,
        tries INTEGER NOT NULL,
        failures TEXT,                -- account:code of tries that failed
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,      -- part of prompt_tokens
        reasoning_tokens INTEGER NOT NULL,   -- part of completion_tokens
        estimated INTEGER NOT NULL,   -- 1: the upstream told no tokens, these are guesses
        cost REAL,                    -- estimated, in US dollars; NULL where no price is known
        first_byte_ms REAL,
        total_ms REAL NOT NULL,
        overhead_ms REAL,
        rules TEXT,
        repairs TEXT,
        tools TEXT,                   -- that the server ran, name:times; name!:times failed
        upstream_request_id TEXT
    )
    """,
        """
    CREATE INDEX requests_ended ON requests (ended)
    """,
        """
    CREATE TABLE hours (
        hour INTEGER NOT NULL,        -- Unix seconds of its beginning, UTC
        key TEXT NOT NULL,
        account TEXT NOT NULL,
        model TEXT NOT NULL,          -- served_model
        requests INTEGER NOT NULL,    -- those that reached an account
        failed INTEGER NOT NULL,      -- of these, without a whole answer
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cost REAL NOT NULL,
        unpriced INTEGER NOT NULL,    -- requests without a known price
        PRIMARY KEY (hour, key, account, model)
    ) WITHOUT ROWID
    """,
        """
    CREATE VIEW recent_requests AS
        SELECT datetime(ended, 'unixepoch') AS ended_utc, key, account, model, status, outcome, error, finish,
            prompt_tokens, completion_tokens, round(cost, 6) AS cost_usd, first_byte_ms, total_ms, tries, id
        FROM requests ORDER BY ended DESC
    """,
        """
    CREATE VIEW usage_by_day AS
        SELECT date(hour, 'unixepoch') AS day_utc, key, account, model, sum(requests) AS requests,
            sum(failed) AS failed, sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
            round(sum(cost), 6) AS cost_usd, sum(unpriced) AS unpriced
        FROM hours GROUP BY day_utc, key, account, model ORDER BY day_utc DESC
    """,
    ),
)


class LedgerError(Exception):
    """The ledger cannot be used as it is; the message says where and why."""


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The ledger of this path, made or brought up to date.  LedgerError when it cannot be."""
    try:
        connection = open_database(path, patience=BUSY_SECONDS)
        try:
            _migrate(connection, path)
        except BaseException:
            connection.close()
            raise
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"{path}: cannot be used as a ledger ({error}).") from None
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """The ledger as it is.  LedgerError when there is none."""
    if not path.exists() or not path.stat().st_size:  # begun on a disk that was full
        raise LedgerError(f"{path}: there is no ledger yet; a server writes it with its first request.")
    try:
        connection = open_readonly(path, patience=BUSY_SECONDS)
        if not 0 < version(connection) <= len(MIGRATIONS):
            connection.close()
            raise LedgerError(f"{path}: not written by this version of qproxy.")
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: not a ledger ({error}).") from None
    return connection


def version(connection: sqlite3.Connection) -> int:
    """How many migrations a file has seen."""
    made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'").fetchone()
    if made is None:
        return 0
    return int(connection.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()[0])


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to today's version; several processes may try at once."""
    with transaction(connection):
        known = version(connection)
        if known > len(MIGRATIONS):
            raise LedgerError(f"{path}: written by a newer qproxy (version {known} of its tables).")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, since TEXT NOT NULL)"
        )
        for number, statements in enumerate(MIGRATIONS[known:], known + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO schema_version VALUES (?, datetime('now'))", (number,))
