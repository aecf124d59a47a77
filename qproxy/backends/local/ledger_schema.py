"""The tables of the ledger file.

`requests` has a row per request and is pruned; `hours` has the sums of every hour by key, account and model
and is kept for over a year, because a month's budget cannot wait for a month's rows to be read. The views are
for people: times as text, sums by day.

The table `schema_version` has the version of a file; `MIGRATIONS` bring it up to date, each in one
transaction. A file of a newer qproxy is rejected.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from qproxy.ledger.protocol import LedgerError
from qproxy.system.sqlite import is_damage, open_database, open_readonly, transaction
from qproxy.wire.dialects.request_rules import RENAMED_RULES

BUSY_SECONDS = 5.0
"""Seconds for another process to finish its write."""
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
        outcome TEXT NOT NULL,        -- as in docs/operations.md
        error TEXT,
        finish TEXT,
        tries INTEGER NOT NULL,
        failures TEXT,                -- account:code of tries that failed
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,      -- part of prompt_tokens
        reasoning_tokens INTEGER NOT NULL,   -- part of completion_tokens
        estimated INTEGER NOT NULL,   -- 1: the upstream reported no tokens, these are estimates
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
            sum(failed) AS failed, sum(prompt_tokens) AS prompt_tokens,
            sum(completion_tokens) AS completion_tokens,
            round(sum(cost), 6) AS cost_usd, sum(unpriced) AS unpriced
        FROM hours GROUP BY day_utc, key, account, model ORDER BY day_utc DESC
    """,
    ),
    (
        "DROP VIEW recent_requests",
        "ALTER TABLE requests RENAME COLUMN finish TO finish_reason",
        "ALTER TABLE requests RENAME COLUMN tries TO attempts",
        """
    UPDATE requests SET outcome = CASE outcome
        WHEN 'failed' THEN 'internal_error'
        WHEN 'upstream_cut' THEN 'upstream_truncated'
        WHEN 'client_left' THEN 'client_disconnected'
        ELSE outcome END
    """,
        *(
            f"""
    UPDATE requests SET rules = trim(replace(',' || rules || ',', ',{old},', ',{new},'), ',')
        WHERE instr(',' || rules || ',', ',{old},')
    """
            for old, new in RENAMED_RULES.items()
        ),
        """
    CREATE VIEW recent_requests AS
        SELECT datetime(ended, 'unixepoch') AS ended_utc, key, account, model, status, outcome, error,
            finish_reason, prompt_tokens, completion_tokens, round(cost, 6) AS cost_usd, first_byte_ms,
            total_ms, attempts, id
        FROM requests ORDER BY ended DESC
    """,
    ),
    (
        "ALTER TABLE requests ADD COLUMN message TEXT",
        "ALTER TABLE requests ADD COLUMN rounds INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE requests ADD COLUMN causes TEXT",
        "DROP VIEW recent_requests",
        """
    CREATE VIEW recent_requests AS
        SELECT datetime(ended, 'unixepoch') AS ended_utc, key, account, model, status, outcome, error,
            finish_reason, prompt_tokens, completion_tokens, round(cost, 6) AS cost_usd, first_byte_ms,
            total_ms, attempts, rounds, id
        FROM requests ORDER BY ended DESC
    """,
    ),
    (
        "DROP VIEW usage_by_day",
        """
    CREATE VIEW usage_by_day AS
        SELECT date(hour, 'unixepoch') AS day_utc, key, account, model, sum(requests) AS requests,
            sum(failed) AS failed, sum(prompt_tokens) AS prompt_tokens,
            sum(completion_tokens) AS completion_tokens,
            CASE WHEN sum(cost) > 0 OR sum(unpriced) = 0 THEN round(sum(cost), 6) END AS cost_usd,
            sum(unpriced) AS unpriced
        FROM hours GROUP BY day_utc, key, account, model ORDER BY day_utc DESC
    """,
    ),
    (
        # requests: characters spoken, seconds of sound heard, pictures made, documents ranked, web searches
        *(
            f"ALTER TABLE {table} ADD COLUMN {unit} REAL NOT NULL DEFAULT 0"
            for table in ("requests", "hours")
            for unit in ("characters", "seconds", "images", "documents", "searches")
        ),
        "DROP VIEW usage_by_day",
        """
    CREATE VIEW usage_by_day AS
        SELECT date(hour, 'unixepoch') AS day_utc, key, account, model, sum(requests) AS requests,
            sum(failed) AS failed, sum(prompt_tokens) AS prompt_tokens,
            sum(completion_tokens) AS completion_tokens,
            CASE WHEN sum(cost) > 0 OR sum(unpriced) = 0 THEN round(sum(cost), 6) END AS cost_usd,
            sum(unpriced) AS unpriced, sum(characters) AS characters, sum(seconds) AS seconds,
            sum(images) AS images, sum(documents) AS documents, sum(searches) AS searches
        FROM hours GROUP BY day_utc, key, account, model ORDER BY day_utc DESC
    """,
    ),
    (
        "ALTER TABLE requests ADD COLUMN full_cost REAL",  # dollars, without cache and flex
        "ALTER TABLE requests ADD COLUMN amount REAL",  # what it costs in the currency of its price
        "ALTER TABLE requests ADD COLUMN currency TEXT",
        "ALTER TABLE requests ADD COLUMN tier TEXT",  # flex; NULL for the usual one
        "ALTER TABLE requests ADD COLUMN fallback TEXT",  # why served_model is a fallback
        "ALTER TABLE hours ADD COLUMN saved REAL NOT NULL DEFAULT 0",  # full_cost without cost
    ),
)


def open_for_writing(path: Path | None) -> sqlite3.Connection:
    """Open the ledger, created or brought up to date; without a path, memory. Raises LedgerError."""
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


def create_temporary() -> sqlite3.Connection:
    """Create an empty ledger in a file that is deleted when it is closed. Raises LedgerError."""
    connection = sqlite3.connect("", isolation_level=None, uri=True)
    try:
        _migrate(connection, None)
    except sqlite3.Error as error:
        connection.close()
        raise LedgerError(f"no temporary file could be created ({error}).") from None
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open the ledger as it is. Raises LedgerError if there is none."""
    if not path.exists() or not path.stat().st_size:  # created on a full disk
        raise LedgerError(f"{path}: no usage recorded yet; the ledger is created on the first request.")
    try:
        connection = open_readonly(path, patience=BUSY_SECONDS)
        if not 0 < version(connection) <= len(MIGRATIONS):
            connection.close()
            raise LedgerError(f"{path}: was not written by this version of qproxy.")
    except sqlite3.Error as error:
        advice = "; move it away, and a new one is created" if is_damage(error) else ""
        raise LedgerError(f"{path}: not a ledger ({error}){advice}.") from None
    return connection


def version(connection: sqlite3.Connection) -> int:
    """Return the number of migrations applied to a file."""
    made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'").fetchone()
    if made is None:
        return 0
    return int(connection.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()[0])


def _migrate(connection: sqlite3.Connection, path: Path | None) -> None:
    """Bring the file up to date; several processes may try at once."""
    with transaction(connection):
        known = version(connection)
        if known > len(MIGRATIONS):
            raise LedgerError(f"{path}: was written by a newer qproxy (schema version {known}).")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, since TEXT NOT NULL)"
        )
        for number, statements in enumerate(MIGRATIONS[known:], known + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO schema_version VALUES (?, datetime('now'))", (number,))
