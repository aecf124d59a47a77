"""The ledger in PostgreSQL: rows and their sums are written once, with several writers, outages, migrations
and retention."""

import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime

import psycopg
import pytest
import trio

from qproxy import cli
from qproxy.access.api_keys import ApiKey, Quota
from qproxy.access.budgets import BudgetTracker
from qproxy.backends.local.ledger import SqliteUsageLedger
from qproxy.backends.local.ledger_spool import LedgerSpool
from qproxy.backends.postgres import batches, schema
from qproxy.backends.postgres import connection as connections
from qproxy.backends.postgres.batches import write_batch
from qproxy.backends.postgres.connection import PostgresAddress, transaction
from qproxy.backends.postgres.ledger import PostgresUsageLedger
from qproxy.backends.postgres.ledger_reader import PostgresLedgerReader
from qproxy.bootstrap.models import package_catalog
from qproxy.config import Config
from qproxy.diagnostics.databases import check_databases
from qproxy.ledger import LedgerError
from qproxy.ledger.prices import Pricing
from qproxy.ledger.rows import to_row
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Usage
from tests.telemetry.factories import record

NOON = datetime.fromisoformat("2026-11-26T12:10:00+00:00").timestamp()
DAY = 86400
PRICING = Pricing(listed_for=["one"], catalog=package_catalog())


@pytest.fixture
def url(postgres):
    return postgres.create_schema()


@pytest.fixture
def database(url):
    """Yield a connection to a database with the tables of a ledger."""
    with closing(PostgresAddress(url, timeout=5.0).connect()) as connection:
        schema.migrate(connection)
        yield connection


@pytest.fixture
def spool(tmp_path):
    return LedgerSpool(tmp_path / "ledger-spool.sqlite3")


@pytest.fixture
async def ledger(url, spool):
    made = PostgresUsageLedger(
        PostgresAddress(url, timeout=2.0), PRICING, keep_days=90, spool=spool, wall_clock=lambda: NOON
    )
    yield made
    await made.aclose()


def rows(*numbers, ended=NOON, **changes):
    return [to_row(record(id=f"req_{number}", **changes), ended + number, PRICING) for number in numbers]


def value(connection, query):
    ((found,),) = connection.execute(query).fetchall()
    return found


async def wait_for_requests(ledger, count):
    """Wait until a number of requests are in the database."""
    with trio.fail_after(30):
        while True:
            try:
                if await ledger.query(lambda db: value(db, "SELECT count(*) FROM requests")) == count:
                    return
            except LedgerError:
                await trio.sleep(0.02)


async def test_a_row_equals_that_of_the_ledger_file(ledger, tmp_path):
    """Columns, values and types are equal in both members, so that a page shows the same."""
    local = SqliteUsageLedger(tmp_path / "l.sqlite3", PRICING, keep_days=90, wall_clock=lambda: NOON)
    for member in (ledger, local):
        member.record(record())
    here, there = await local.request("req_1"), await ledger.request("req_1")
    assert here is not None
    assert there is not None
    assert here == there
    assert list(schema.COLUMNS) == list(to_row(record(), NOON, PRICING))
    assert [type(cell) for cell in here.values()] == [type(there[name]) for name in here]
    await local.aclose()


def test_a_repeated_batch_adds_nothing(database):
    """A request is one row and counts once: sent twice, twice in one batch, or with another time."""
    batch = rows(*range(100))
    for again in (batch, batch, batch + batch, rows(*range(100), ended=NOON + 40 * DAY)):
        write_batch(database, again, 5.0)
    assert value(database, "SELECT count(*) FROM requests") == 100
    assert database.execute("SELECT sum(requests), sum(prompt_tokens) FROM hours").fetchall() == [
        (100, 10_000)
    ]


def test_known_requests_are_found_by_index(database):
    """A batch scans no whole table, even before the planner has statistics."""
    write_batch(database, rows(1), 5.0)
    columns = ", ".join(name for name in schema.COLUMNS if name != "id")
    many = f"SELECT 'x' || n, {columns} FROM requests, generate_series(1, 3000) n"
    database.execute(f"INSERT INTO requests (id, {columns}) {many}")
    values = [batches._column(rows(*range(250)), name) for name in schema.COLUMNS]
    plans = []
    with database.transaction():
        for settings in ("SELECT 1", batches._BY_INDEX):
            database.execute(settings)
            plans.append(str(database.execute(f"EXPLAIN {batches._INSERT}", values).fetchall()))
    assert ["Seq Scan on requests" in plan for plan in plans] == [True, False]


def test_fifty_writers_of_the_same_hours(url, database):
    """Rows are requests and sums are exact, in any order of the writers' rows, without a deadlock."""
    start = threading.Barrier(50)

    def write(number):
        with closing(PostgresAddress(url, timeout=30.0).connect()) as connection:
            start.wait()
            for batch in range(2):
                numbers = range(number * 40 + batch * 20, number * 40 + batch * 20 + 20)
                made = [
                    to_row(record(id=f"req_{n}", key=f"key_{n % 7}"), NOON + n % 3 * 3600, PRICING)
                    for n in (numbers if number % 2 else reversed(numbers))
                ]
                assert write_batch(connection, made, 30.0) == 20

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(write, range(50)))
    assert value(database, "SELECT count(*) FROM requests") == 2000
    sums = "SELECT key, hour, sum(requests), sum(cost) FROM hours GROUP BY 1, 2 ORDER BY 1, 2"
    again = (
        "SELECT key, floor(ended / 3600)::bigint * 3600 AS hour, count(*), sum(cost)"
        " FROM requests GROUP BY 1, 2 ORDER BY 1, 2"
    )
    found, expected = database.execute(sums).fetchall(), database.execute(again).fetchall()
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert [row[3] for row in found] == pytest.approx([row[3] for row in expected])


async def test_a_kill_while_writing_loses_and_doubles_nothing(postgres, ledger, spool, caplog):
    """Rows go to the spool during an outage of the database, queries fail, and all rows are written once
    afterwards."""
    for number in range(300):
        ledger.record(record(id=f"before_{number}"))
    await wait_for_requests(ledger, 300)
    postgres.list_children()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, postgres.kill)
        for number in range(500):
            ledger.record(record(id=f"meanwhile_{number}"))
            await trio.lowlevel.checkpoint()
    with pytest.raises(LedgerError, match="PostgreSQL"):
        await ledger.key_usage("bob", {"5h"}, NOON + 1)
    ledger.record(record(id="away"))
    with pytest.raises(LedgerError, match="PostgreSQL"):
        await ledger.recent_requests(1)
    await ledger.aclose()
    assert spool.count() >= 1, "what is not sent is in the file when the process ends"
    spool.close()
    postgres.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ledger.run)
        await wait_for_requests(ledger, 801)
        nursery.cancel_scope.cancel()
    usage = (await ledger.usage_by("key", ("month",), NOON + 1))["month"]
    assert [(row.name, row.requests) for row in usage] == [("bob", 801)]
    assert ledger.lost == 0
    await ledger.aclose()
    assert spool.count() == 0
    assert [r.getMessage() for r in caplog.records if "spool" in r.getMessage()][1:] == [], (
        "one line an outage"
    )


async def test_rows_of_an_earlier_process_are_sent_at_the_start(ledger, spool, database):
    """Rows of a killed process are sent from the spool once, without a new request."""
    spool.add(rows(1, 2, 3))
    spool.close()
    write_batch(database, rows(2), 5.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ledger.run)
        await wait_for_requests(ledger, 3)
        nursery.cancel_scope.cancel()
    assert value(database, "SELECT sum(requests)::int FROM hours") == 3
    assert spool.count() == 0


def test_a_frozen_server_times_out(postgres, url, monkeypatch):
    """A server without responses cannot extend the timeout; its connection is closed, and another one
    works."""
    monkeypatch.setattr(connections, "SERVER_HEAD_START", 0.1)
    address = PostgresAddress(url, timeout=5.0)
    with closing(address.connect()) as connection:
        postgres.list_children()
        postgres.signal(signal.SIGSTOP)
        try:
            with pytest.raises(psycopg.OperationalError), transaction(connection, 0.1):
                connection.execute("SELECT 1")
        finally:
            postgres.signal(signal.SIGCONT)
    with closing(address.connect()) as connection:
        assert value(connection, "SELECT 1") == 1


POISON = {
    "half of a surrogate pair": ({"model": "\ud800", "finish_reason": "\udfff"}, 3),
    "a NUL": ({"model": "a\0b"}, 3),
    "an integer beyond 64 bits": ({"usage": Usage(10**300, 10**30, 10**300, {"cached_tokens": 2**63})}, 3),
    "NaN": ({"first_byte": float("nan")}, 3),
    "nothing where something must be": ({"endpoint": None}, 2),
}
"""Records that should never be, and how many of three rows, the second of which is this, are written."""


@pytest.mark.parametrize(("poison", "expected"), POISON.values(), ids=POISON)
def test_an_invalid_row_excludes_no_other(database, poison, expected):
    """Rows beside one that the database rejects are written, and so is that one if its values can be."""
    assert write_batch(database, [*rows(1), *rows(2, **poison), *rows(3)], 5.0) == expected
    assert value(database, "SELECT count(*) FROM requests WHERE id IN ('req_1', 'req_3')") == 2
    assert value(database, "SELECT sum(requests)::int FROM hours") == expected


MIGRATE = """
import sys
from qproxy.backends.postgres import schema
from qproxy.backends.postgres.connection import PostgresAddress
connection = PostgresAddress(sys.argv[1], timeout=20.0).connect()
print("ready", flush=True)
sys.stdin.readline()
schema.migrate(connection)
"""


def test_concurrent_migrations(url):
    """One process migrates; the other waits and finds the tables."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.communicate(timeout=60)[1] for child in children] == ["", ""]
    with closing(PostgresAddress(url, timeout=5.0).connect()) as connection:
        assert schema.version(connection) == len(schema.MIGRATIONS)


async def test_neither_the_database_nor_the_spool(url, tmp_path, caplog):
    """Rows stay in memory, one line is logged for each, and all are written when one of both is back."""
    (tmp_path / "file").write_text("")
    spool = LedgerSpool(tmp_path / "file" / "ledger-spool.sqlite3")
    gone = PostgresAddress(f"{url}&port=1", timeout=2.0)
    ledger = PostgresUsageLedger(gone, PRICING, keep_days=90, spool=spool, wall_clock=lambda: NOON)
    for number in range(3):
        ledger.record(record(id=f"req_{number}"))
        with pytest.raises(LedgerError) as raised:
            await ledger.recent_requests(1)
        assert str(raised.value).count("PostgreSQL database") == 1
    assert len([line for line in caplog.records if line.levelname == "ERROR"]) == 2
    ledger._address, ledger._next_attempt = PostgresAddress(url, timeout=2.0), 0.0
    await wait_for_requests(ledger, 3)
    await ledger.aclose()
    assert ledger.lost == 0


async def test_tables_of_a_newer_version_are_not_changed(url, database, ledger, spool):
    """Neither a server nor a command changes them; requests wait in the spool."""
    database.execute("INSERT INTO schema_version (version) VALUES (1000)")
    ledger.record(record())
    with pytest.raises(LedgerError, match="newer qproxy"):
        await ledger.recent_requests(1)
    with pytest.raises(LedgerError, match="newer qproxy"):
        PostgresLedgerReader(PostgresAddress(url, timeout=5.0))
    await ledger.aclose()
    assert spool.count() == 1


async def test_the_database_is_checked(url, postgres, database):
    """`qproxy check` connects as a server does: it names an empty schema, tables that fit, and what prevents
    use."""

    async def check(**settings):
        (finding,) = await check_databases(Config(**settings))
        return finding.state, finding.message

    empty = postgres.create_schema()
    assert await check_databases(Config(ledger="ledger.sqlite3")) == []
    for given, expected in (
        (empty, ("ok", "the server will make its tables")),
        (url, ("ok", "version 18, tables of this version")),
        (f"{postgres.url}&options=-csearch_path%3Dnowhere", ("failed", "may not create tables")),
        ("postgresql://me:s3cret@127.0.0.1:1/usage", ("failed", "refused")),
    ):
        state, message = await check(ledger=given)
        assert state == expected[0]
        assert expected[1] in message
        assert "s3cret" not in message
    database.execute("INSERT INTO schema_version (version) VALUES (1000)")
    assert (await check(ledger=url))[0] == "failed"
    state, message = await check(ledger=url, ledger_password_file="/nowhere")
    assert (state, "ledger_password_file" in message) == ("failed", True)


def test_a_command_needs_a_ledger(url):
    """A command reports a database without tables, and creates none."""
    with pytest.raises(LedgerError, match="has written a ledger there"):
        PostgresLedgerReader(PostgresAddress(url, timeout=5.0))


async def test_months_are_partitions_and_end_with_the_retention(ledger, database):
    """A month's rows are a table, created before its first row and dropped after its last expires; a partly
    expired month loses its older rows."""
    write_batch(database, rows(1, ended=NOON - 120 * DAY) + rows(2, ended=NOON - 91 * DAY), 5.0)
    write_batch(database, rows(3, ended=NOON - 89 * DAY), 5.0)
    assert [month.table[-7:] for month in schema.partitions(database)] == ["2026_07", "2026_08"]
    ledger.record(record(id="now"))
    assert [row["id"] for row in await ledger.recent_requests(9)] == ["now", "req_3"]
    assert [month.table[-7:] for month in schema.partitions(database)] == ["2026_08", "2026_11"]


async def test_a_slow_query_is_cancelled(ledger):
    """The query raises an error, and the connection answers the next one."""
    with pytest.raises(LedgerError, match="choose a shorter period"):
        await ledger._page(
            lambda db: (db.execute("SET LOCAL statement_timeout = 20"), db.execute("SELECT pg_sleep(9)"))
        )
    with pytest.raises(LedgerError, match="nowhere"):
        await ledger.query(lambda db: db.execute("SELECT * FROM nowhere"))
    assert await ledger.recent_requests(5) == []


PASSWORDS = {
    "in the login": "postgresql://me:s3cr%2Fet@127.0.0.1:1/usage",
    "in the query": "postgresql://127.0.0.1:1/usage?user=me&password=s3cr%2Fet",
    "in a URL that is none": "postgresql://me:s3cr%2Fet@127.0.0.1:1/usage?colour=s3cr%2Fet",
    "beside a port that is none": "postgresql://me:s3cr%2Fet@127.0.0.1:1:1/usage",
}


@pytest.mark.parametrize("given", PASSWORDS.values(), ids=PASSWORDS)
async def test_the_password_is_in_no_message(given, spool, caplog):
    """The password is in no error, log, repr or setting, and is registered as a secret."""
    config = Config(ledger=given)
    assert {given, "s3cr%2Fet", "s3cr/et"} <= config.secrets()
    shown = [repr(config)]
    try:
        address = PostgresAddress(given, timeout=2.0)
    except LedgerError as error:
        shown.append(str(error))
    else:
        ledger = PostgresUsageLedger(address, PRICING, keep_days=90, spool=spool)
        ledger.record(record())
        with pytest.raises(LedgerError) as raised:
            await ledger.recent_requests(1)
        await ledger.aclose()
        shown += [str(raised.value), repr(ledger), repr(address), str(address), address.reason(raised.value)]
    assert not any("s3cr" in text for text in (*shown, caplog.text))


async def test_a_budget_counts_usage_of_another_machine(ledger, url, tmp_path):
    """Two servers with directories of their own share the budget of a key."""
    address = PostgresAddress(url, timeout=5.0)
    spool = LedgerSpool(tmp_path / "other" / "ledger-spool.sqlite3")
    other = PostgresUsageLedger(address, PRICING, keep_days=90, spool=spool, wall_clock=lambda: NOON)
    key = ApiKey("key_1", "0" * 64, "bob", budgets=(Quota("day", requests=2),))
    budgets = BudgetTracker(other, wall_clock=lambda: NOON + 1)
    (await budgets.reserve(key, {"requests": 1})).settle({})
    for number in range(2):
        ledger.record(record(id=f"req_{number}"))
    await ledger.recent_requests(1)
    with pytest.raises(RequestError, match="exhausted its budget"):
        await BudgetTracker(other, wall_clock=lambda: NOON + 1).reserve(key, {"requests": 1})
    await other.aclose()


def test_a_file_is_no_secret():
    """The path of a ledger file is shown."""
    assert Config(ledger="/var/lib/qproxy/ledger.sqlite3").secrets() == set()


async def test_usage_reads_the_database(url, ledger, tmp_path, monkeypatch, capsys):
    """`qproxy usage` shows the usage of all machines, and `qproxy purge` deletes it."""
    ledger.record(record())
    await ledger.recent_requests(1)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.setenv("QPROXY_LEDGER", url)
    assert await trio.to_thread.run_sync(cli.main, ["usage", "--json", "--window", "all"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["usage"]
    assert (row["name"], row["requests"], row["prompt_tokens"]) == ("bob", 1, 100)
