"""The tables of the ledger in PostgreSQL, with the columns of the ledger file.

`requests` is partitioned by month, so that pruning drops tables instead of deleting rows; a month's partition
is created before its first row. `hours` has the sums of every hour. The views are for people.

`schema_version` has the version. Several processes may migrate at once: one does, under an advisory lock that
ends with its transaction. A role that may not create tables can serve a database that is up to date, but for
new months' partitions. A database of a newer qproxy is rejected.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import NamedTuple

from psycopg import sql

from qproxy.backends.postgres.connection import Connection, transaction
from qproxy.ledger.protocol import LedgerError

LOCK = int.from_bytes(b"qproxy", "big")
"""The advisory lock of migrations, partitions and pruning, in this database."""
MIGRATION_SECONDS = 60.0
TEXT, INTEGER, REAL = "text", "bigint", "double precision"
COLUMNS = {
    "id": TEXT, "ended": REAL, "key": TEXT, "account": TEXT, "endpoint": TEXT, "model": TEXT,
    "served_model": TEXT, "stream": INTEGER, "status": INTEGER, "outcome": TEXT, "error": TEXT,
    "message": TEXT, "finish_reason": TEXT, "attempts": INTEGER, "rounds": INTEGER, "failures": TEXT,
    "causes": TEXT, "prompt_tokens": INTEGER, "completion_tokens": INTEGER, "cached_tokens": INTEGER,
    "reasoning_tokens": INTEGER, "characters": REAL, "seconds": REAL, "images": REAL,
    "documents": REAL, "searches": REAL, "estimated": INTEGER, "cost": REAL, "full_cost": REAL,
    "amount": REAL, "currency": TEXT, "tier": TEXT, "fallback": TEXT, "first_byte_ms": REAL,
    "total_ms": REAL, "overhead_ms": REAL, "rules": TEXT, "repairs": TEXT, "tools": TEXT,
    "upstream_request_id": TEXT,
}  # fmt: skip
"""The columns of `requests`; those of `ledger.rows.to_row`, in its order."""
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
    CREATE TABLE requests (
        id text NOT NULL,
        ended double precision NOT NULL,  -- Unix seconds, UTC
        key text NOT NULL,                -- the client's key: its name, else its id; '' without one
        account text NOT NULL,            -- '' for a request that reached no account
        endpoint text NOT NULL,
        model text NOT NULL,              -- as the client named it
        served_model text NOT NULL,       -- as the account was asked for it
        stream bigint NOT NULL,
        status bigint NOT NULL,
        outcome text NOT NULL,            -- as in docs/operations.md
        error text,
        message text,
        finish_reason text,
        attempts bigint NOT NULL,
        rounds bigint NOT NULL,
        failures text,                    -- account:code of attempts that failed
        causes text,
        prompt_tokens bigint NOT NULL,
        completion_tokens bigint NOT NULL,
        cached_tokens bigint NOT NULL,    -- part of prompt_tokens
        reasoning_tokens bigint NOT NULL, -- part of completion_tokens
        estimated bigint NOT NULL,        -- 1: the upstream reported no tokens, these are estimates
        cost double precision,            -- estimated, in US dollars; NULL without a known price
        first_byte_ms double precision,
        total_ms double precision NOT NULL,
        overhead_ms double precision,
        rules text,
        repairs text,
        tools text,                       -- that the server ran, name:times; name!:times failed
        upstream_request_id text,
        PRIMARY KEY (id, ended)           -- a key of a partitioned table has its partition's column
    ) PARTITION BY RANGE (ended)
    """,
        "CREATE INDEX requests_ended ON requests (ended, id)",
        "CREATE INDEX requests_key ON requests (key, ended)",
        """
    CREATE TABLE hours (
        hour bigint NOT NULL,             -- Unix seconds of its beginning, UTC
        key text NOT NULL,
        account text NOT NULL,
        model text NOT NULL,              -- served_model
        requests bigint NOT NULL,         -- those that reached an account
        failed bigint NOT NULL,           -- of these, without a whole answer
        prompt_tokens bigint NOT NULL,
        completion_tokens bigint NOT NULL,
        cost double precision NOT NULL,
        unpriced bigint NOT NULL,         -- requests without a known price
        PRIMARY KEY (hour, key, account, model)
    ) WITH (fillfactor = 70)              -- updated all the time: leaves room for it in each page
    """,
        """
    CREATE VIEW recent_requests AS
        SELECT to_timestamp(ended) AS ended, key, account, model, status, outcome, error, finish_reason,
            prompt_tokens, completion_tokens, round(cost::numeric, 6) AS cost_usd, first_byte_ms, total_ms,
            attempts, rounds, id
        FROM requests ORDER BY requests.ended DESC
    """,
        """
    CREATE VIEW usage_by_day AS
        SELECT (to_timestamp(hour) AT TIME ZONE 'UTC')::date AS day_utc, key, account, model,
            sum(requests) AS requests, sum(failed) AS failed, sum(prompt_tokens) AS prompt_tokens,
            sum(completion_tokens) AS completion_tokens,
            CASE WHEN sum(cost) > 0 OR sum(unpriced) = 0 THEN round(sum(cost)::numeric, 6) END AS cost_usd,
            sum(unpriced) AS unpriced
        FROM hours GROUP BY 1, key, account, model ORDER BY 1 DESC
    """,
    ),
    (
        # requests: characters spoken, seconds of sound heard, pictures made, documents ranked, web searches
        *(
            f"ALTER TABLE {table} ADD COLUMN {unit} double precision NOT NULL DEFAULT 0"
            for table in ("requests", "hours")
            for unit in ("characters", "seconds", "images", "documents", "searches")
        ),
        """
    CREATE OR REPLACE VIEW usage_by_day AS
        SELECT (to_timestamp(hour) AT TIME ZONE 'UTC')::date AS day_utc, key, account, model,
            sum(requests) AS requests, sum(failed) AS failed, sum(prompt_tokens) AS prompt_tokens,
            sum(completion_tokens) AS completion_tokens,
            CASE WHEN sum(cost) > 0 OR sum(unpriced) = 0 THEN round(sum(cost)::numeric, 6) END AS cost_usd,
            sum(unpriced) AS unpriced, sum(characters) AS characters, sum(seconds) AS seconds,
            sum(images) AS images, sum(documents) AS documents, sum(searches) AS searches
        FROM hours GROUP BY 1, key, account, model ORDER BY 1 DESC
    """,
    ),
    (
        # requests: dollars without cache and flex; the cost in the currency of its price; the tier; why
        # served_model is a fallback. hours: full_cost without cost
        *(
            f"ALTER TABLE requests ADD COLUMN {name} {kind}"
            for name, kind in (
                ("full_cost", "double precision"),
                ("amount", "double precision"),
                ("currency", "text"),
                ("tier", "text"),
                ("fallback", "text"),
            )
        ),
        "ALTER TABLE hours ADD COLUMN saved double precision NOT NULL DEFAULT 0",
    ),
)


def version(connection: Connection) -> int:
    """Return the number of migrations applied to a database."""
    row = connection.execute("SELECT to_regclass('schema_version')").fetchone()
    if row is None or row[0] is None:
        return 0
    row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
    return 0 if row is None else int(row[0])


def migrate(connection: Connection) -> None:
    """Bring the tables up to date. Raises LedgerError if they are newer than this program."""
    with transaction(connection, MIGRATION_SECONDS):
        if _is_current(connection):
            return
        lock(connection)
        if _is_current(connection):  # another process was faster
            return
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version"
            " (version integer PRIMARY KEY, since timestamptz NOT NULL DEFAULT now())"
        )
        known = version(connection)
        for number, statements in enumerate(MIGRATIONS[known:], known + 1):
            for statement in statements:
                connection.execute(sql.SQL(statement))
            connection.execute("INSERT INTO schema_version (version) VALUES (%s)", [number])


def check_version(connection: Connection) -> None:
    """Raise LedgerError unless this program can read the tables as they are."""
    if not _is_current(connection):
        raise LedgerError("no qproxy of this version has written a ledger there")


def _is_current(connection: Connection) -> bool:
    known = version(connection)
    check_not_newer(known)
    return known == len(MIGRATIONS)


def check_not_newer(known: int) -> None:
    """Raise LedgerError for a version that this program does not know."""
    if known > len(MIGRATIONS):
        raise LedgerError(f"the tables were made by a newer qproxy (schema version {known})")


def lock(connection: Connection) -> None:
    """Wait for the lock of migrations and partitions, which ends with the transaction."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


class Month(NamedTuple):
    """A month of UTC: one partition of `requests`."""

    year: int
    month: int

    @property
    def table(self) -> str:
        """Return the name of its partition."""
        return f"requests_{self.year:04}_{self.month:02}"

    @property
    def start(self) -> float:
        """Return when it starts, in Unix seconds."""
        return datetime(self.year, self.month, 1, tzinfo=timezone.utc).timestamp()  # noqa: UP017 - as in windows

    def next(self) -> Month:
        """Return the month after it."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)


def month_of(ended: float) -> Month:
    """Return the month of a moment."""
    moment = datetime.fromtimestamp(ended, timezone.utc)  # noqa: UP017 - as in limits.windows
    return Month(moment.year, moment.month)


def create_partition(connection: Connection, month: Month, seconds: float) -> None:
    """Create the partition of a month if there is none."""
    with transaction(connection, seconds):
        lock(connection)
        if connection.execute("SELECT to_regclass(%s)", [month.table]).fetchone() != (None,):
            return
        connection.execute(
            sql.SQL("CREATE TABLE {} PARTITION OF requests FOR VALUES FROM ({}) TO ({})").format(
                sql.Identifier(month.table), sql.Literal(month.start), sql.Literal(month.next().start)
            )
        )


def partitions(connection: Connection) -> list[Month]:
    """Return the months that have a partition, oldest first."""
    rows = connection.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'requests'::regclass ORDER BY c.relname"
    ).fetchall()
    names = [str(name).split("_") for (name,) in rows]
    return [Month(int(year), int(month)) for _, year, month in names]


def drop_partition(connection: Connection, month: Month) -> None:
    """Drop a month's rows."""
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(month.table)))
