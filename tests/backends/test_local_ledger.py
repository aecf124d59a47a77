"""The ledger's file: rows, sums, concurrent writers, state after a kill, and older or newer files."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from qproxy.backends.local import ledger_schema as schema
from qproxy.backends.local.ledger import SqliteUsageLedger
from qproxy.backends.local.ledger_queries import oldest_request, usage_by
from qproxy.bootstrap.models import package_catalog
from qproxy.ledger import LedgerError
from qproxy.ledger.prices import Pricing
from qproxy.ledger.usage import UsageRow
from qproxy.limits.windows import WINDOWS
from qproxy.telemetry import ResponseTokens
from qproxy.wire import storable
from qproxy.wire.events import Usage
from qproxy.wire.token_ratios import TokenEstimate
from tests.telemetry.factories import record

NOON = datetime.fromisoformat("2026-11-26T12:10:00+00:00").timestamp()
HOUR = 3600


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "ledger.sqlite3"


@pytest.fixture
def open_file(path):
    """Return a function that opens the file as a reader does; the connections close with the test."""
    opened = []

    def open_reader():
        opened.append(schema.open_for_reading(path))
        return opened[-1]

    yield open_reader
    for connection in opened:
        connection.close()


def write_ledger(path, *moments, keep_days=90):
    """Return a ledger with one record for each (seconds after noon, changes)."""
    clock = {"now": NOON}
    ledger = SqliteUsageLedger(
        path,
        Pricing(listed_for=["one"], catalog=package_catalog()),
        wall_clock=lambda: clock["now"],
        keep_days=keep_days,
    )
    for number, (after, changes) in enumerate(moments):
        clock["now"] = NOON + after
        ledger.record(record(**{"id": f"req_{number}", **changes}))
    ledger.close()
    return ledger


def test_a_row_has_the_fields_of_its_record(path, open_file):
    """Every column of a row has the record's value, with a cost if a price is known."""
    write_ledger(path, (0, {}))
    connection = open_file()
    connection.row_factory = sqlite3.Row
    (row,) = map(dict, connection.execute("SELECT * FROM requests"))
    assert row == {
        "id": "req_0", "ended": NOON, "key": "bob", "account": "one", "endpoint": "/chat/completions",
        "model": "qwen3.7-plus", "served_model": "qwen3.7-plus", "stream": 1, "status": 200, "outcome": "ok",
        "error": None, "message": None, "causes": None, "rounds": 1,
        "finish_reason": "stop", "attempts": 2, "failures": "two:upstream_error",
        "prompt_tokens": 100, "completion_tokens": 21, "cached_tokens": 40, "reasoning_tokens": 5,
        "characters": 0.0, "seconds": 0.0, "images": 0.0, "documents": 0.0, "searches": 0.0, "estimated": 0,
        "cost": pytest.approx((60 * 0.4 + 40 * 0.08 + 21 * 1.6) / 1e6),
        "full_cost": pytest.approx((100 * 0.4 + 21 * 1.6) / 1e6),
        "amount": pytest.approx((60 * 0.4 + 40 * 0.08 + 21 * 1.6) / 1e6), "currency": "USD",
        "tier": None, "fallback": None,
        "first_byte_ms": 400.0, "total_ms": 1500.0, "overhead_ms": 100.0,
        "rules": "merge_system_messages,reasoning_effort", "repairs": "closer_missing:2",
        "tools": "clock:1,clock!:1",
        "upstream_request_id": "up-1",
    }  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600


POISON = {
    "half of a surrogate pair": {"model": "\ud800", "finish_reason": "\udfff"},
    "an integer beyond 64 bits": {"usage": Usage(10**300, 10**30, 10**300, {"cached_tokens": 2**63})},
    "NaN": {"first_byte": float("nan")},
    "nothing where something must be": {"endpoint": None},
}
"""Values that should never occur: record fields are made storable earlier."""


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_an_invalid_row_excludes_no_other(path, open_file, poison, caplog):
    """Rows beside one that SQLite rejects are written, and so is that one if any of its values can be."""
    ledger = write_ledger(path, (0, {}), (1, poison), (2, {}), (3, poison), (4, {}))
    connection = open_file()
    ids = {name for (name,) in connection.execute("SELECT id FROM requests")}
    assert {"req_0", "req_2", "req_4"} <= ids
    assert (ledger.written, ledger.lost) == (len(ids), 5 - len(ids))
    assert len(ids) == (3 if "endpoint" in poison else 5)
    assert connection.execute("SELECT sum(requests) FROM hours").fetchone() == (len(ids),)
    assert "\ud800" not in caplog.text
    assert ("rows lost" in caplog.text) is ("first_byte" not in poison), "SQLite writes a NaN as NULL"


def test_huge_counts_can_be_summed(path, open_file):
    """A budget query returns sums, whatever values some rows have."""
    write_ledger(path, *((number, {"usage": Usage(10**300, 10**300, 10**300)}) for number in range(20)))
    (use,) = usage_by(open_file(), "key", "day", NOON + 30)
    assert (use.requests, use.tokens) == (20, 40 * storable.MAX_COUNT)


def test_a_disconnected_client_has_estimated_tokens(path, open_file):
    """If the upstream reported no tokens, the row has an estimate and marks it."""
    started = [ResponseTokens(TokenEstimate(50), text_bytes=28)]
    write_ledger(path, (0, {"usage": None, "outcome": "client_disconnected", "responses": started}))
    connection = open_file()
    found = connection.execute("SELECT prompt_tokens, completion_tokens, estimated FROM requests").fetchone()
    assert found == (50, 7, 1)


def test_requests_without_a_model_are_not_recorded(path):
    """Health checks, model lists and unknown URLs leave no row."""
    ledger = write_ledger(path, (0, {"model": ""}))
    assert (ledger.written, path.exists()) == (0, False)


MOMENTS: tuple[tuple[int, dict[str, Any]], ...] = (
    (-10 * 24 * HOUR, {}),
    (-19 * HOUR, {"key": "amy"}),
    (-6 * HOUR, {}),
    (-4 * HOUR, {"account": "two"}),
    (0, {"outcome": "internal_error"}),
    (0, {"account": None, "outcome": "error", "usage": None, "first_byte": None}),
)


@pytest.mark.parametrize(
    ("window", "bob", "amy"),
    [("5h", 2, 0), ("day", 3, 0), ("day-beijing", 3, 1), ("week", 3, 1), ("month", 4, 1), ("all", 4, 1)],
)
def test_windows(path, open_file, window, bob, amy):
    """Sums by key count the requests in each window; a request that reached no account counts for no key."""
    expected = {"bob": bob, "amy": amy}
    write_ledger(path, *MOMENTS)
    found = {use.name: use.requests for use in usage_by(open_file(), "key", window, NOON + 60)}
    assert found == {name: count for name, count in expected.items() if count}


@pytest.mark.parametrize("window", ["5h", "day"])
def test_sums(path, open_file, window):
    """Both kinds of windows add up requests, failures, tokens and costs alike, and count requests without a
    price."""
    write_ledger(path, (0, {}), (1, {"outcome": "internal_error"}), (2, {"account": "two"}))
    connection = open_file()
    cost = (60 * 0.4 + 40 * 0.08 + 21 * 1.6) / 1e6
    (model,) = usage_by(connection, "model", window, NOON + 60)
    assert replace(model, cost=0.0, saved=0.0) == UsageRow("qwen3.7-plus", window, 3, 1, 300, 63, 0.0, 1)
    assert model.cost == pytest.approx(2 * cost)
    assert model.saved == pytest.approx(2 * 40 * (0.4 - 0.08) / 1e6)
    assert [use.name for use in usage_by(connection, "account", window, NOON + 60)] == ["one", "two"]
    assert usage_by(connection, "account", window, NOON + 60, only="two")[0].unpriced == 1
    assert usage_by(connection, "key", window, NOON + 60, only="nobody") == []
    assert oldest_request(connection, "bob", WINDOWS["5h"], NOON + 60) == NOON


async def test_a_query_sees_every_earlier_row(path):
    """A query of a running ledger includes the request that finished a moment ago."""
    ledger = SqliteUsageLedger(path, Pricing(), wall_clock=lambda: NOON, keep_days=90)
    try:
        for number in range(50):
            ledger.record(record(id=f"req_{number}"))
        assert await ledger.query(lambda file: file.execute("SELECT count(*) FROM requests").fetchone()) == (
            50,
        )
        with pytest.raises(LedgerError, match="no such table"):
            await ledger.query(lambda file: file.execute("SELECT * FROM nowhere"))
    finally:
        ledger.close()


def test_a_repeated_row_counts_once(path, open_file):
    """The same request twice (after a write with an unknown outcome) is one row and counts once."""
    write_ledger(path, (0, {"id": "same"}), (1, {"id": "same"}))
    assert open_file().execute("SELECT count(*) FROM requests").fetchone() == (1,)
    assert open_file().execute("SELECT sum(requests) FROM hours").fetchone() == (1,)


async def test_a_failing_query_raises_to_its_caller(path):
    """An error in a query is raised to its caller, and the thread continues."""
    ledger = SqliteUsageLedger(path, Pricing(), wall_clock=lambda: NOON, keep_days=90)
    try:
        with pytest.raises(LedgerError, match="division"):
            await ledger.query(lambda file: 1 / 0)
        assert await ledger.query(lambda file: 7) == 7
    finally:
        ledger.close()


def test_old_rows_are_deleted(path, open_file):
    """Rows older than the retention are deleted; their hourly sums stay, for a month's budget and the year's
    view."""
    write_ledger(path, (-9 * 24 * HOUR, {}), (0, {}), keep_days=7)
    write_ledger(path, (1, {"id": "late"}), keep_days=7)
    connection = open_file()
    assert connection.execute("SELECT count(*) FROM requests WHERE ended < ?", (NOON - HOUR,)).fetchone() == (
        0,
    )
    assert connection.execute("SELECT sum(requests) FROM hours").fetchone() == (3,)


def test_an_unwritable_file_is_retried(path, tmp_path, caplog):
    """A ledger that cannot write logs it once, keeps its rows, and writes them later."""
    blocked = tmp_path / "data"
    blocked.write_text("not a directory")
    ledger = SqliteUsageLedger(path, Pricing(), wall_clock=lambda: NOON, keep_days=90)
    ledger.record(record())
    ledger.close()
    assert "cannot write usage ledger" in caplog.text
    assert (ledger.written, ledger.lost) == (0, 0)
    blocked.unlink()
    ledger.record(record(id="req_2"))
    ledger.close()
    assert (ledger.written, ledger.lost) == (2, 0)


def test_rejects_a_newer_file(path, open_file):
    """A file of a later version is neither read nor changed."""
    write_ledger(path, (0, {}))
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO schema_version VALUES (99, 'later')")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="this version"):
        open_file()
    with pytest.raises(LedgerError, match="newer"):
        schema.open_for_writing(path)


@pytest.mark.parametrize("known", range(len(schema.MIGRATIONS)))
def test_an_older_file_is_migrated(path, open_file, known):
    """A file with only the first migrations gets the others, whatever it contains."""
    path.parent.mkdir()
    whole, schema.MIGRATIONS = schema.MIGRATIONS, schema.MIGRATIONS[:known]
    try:
        schema.open_for_writing(path).close()
    finally:
        schema.MIGRATIONS = whole
    write_ledger(path, (0, {}))
    assert schema.version(open_file()) == len(schema.MIGRATIONS)


OUTCOMES = {
    "ok": "ok",
    "error": "error",
    "failed": "internal_error",
    "upstream_cut": "upstream_truncated",
    "client_left": "client_disconnected",
    "shutting_down": "shutting_down",
}


def test_names_of_the_first_version_are_replaced(path, open_file):
    """Outcomes, rules and columns of a first ledger get their new names; counts and unknown rules stay."""
    path.parent.mkdir()
    whole, schema.MIGRATIONS = schema.MIGRATIONS, schema.MIGRATIONS[:1]
    rules = [
        "effort",
        "one_system,choices,effort",
        "choices",
        "one_system_more,meaningless",
        None,
        "",
    ]
    try:
        with closing(schema.open_for_writing(path)) as connection:
            for number, (outcome, applied) in enumerate(zip(OUTCOMES, rules, strict=True)):
                connection.execute(
                    "INSERT INTO requests VALUES (?, ?, 'bob', 'one', '/x', 'm', 'm', 1, 200, ?, NULL, "
                    "'stop', 2,"
                    " NULL, 100, 21, 0, 0, 0, 0.5, 1.0, 2.0, 0.1, ?, NULL, NULL, NULL)",
                    (f"old_{number}", NOON, outcome, applied),
                )
    finally:
        schema.MIGRATIONS = whole
    write_ledger(path, (0, {}))
    rows = open_file().execute(
        "SELECT outcome, rules, finish_reason, attempts FROM requests WHERE id LIKE 'old%' ORDER BY id"
    )
    assert list(rows) == [
        (outcome, applied, "stop", 2)
        for outcome, applied in zip(
            OUTCOMES.values(),
            (
                "reasoning_effort",
                "merge_system_messages,max_choices,reasoning_effort",
                "max_choices",
                "one_system_more,unsupported_params",
                None,
                "",
            ),
            strict=True,
        )
    ]
    assert open_file().execute("SELECT sum(attempts), count(*) FROM recent_requests").fetchone() == (14, 7)


def test_views_for_datasette(path, open_file):
    """The views have readable times and one row per request or day."""
    write_ledger(path, (0, {}))
    connection = open_file()
    row = connection.execute("SELECT ended_utc, key, model FROM recent_requests").fetchone()
    assert row == ("2026-11-26 12:10:00", "bob", "qwen3.7-plus")
    day = connection.execute("SELECT day_utc, requests, prompt_tokens FROM usage_by_day").fetchone()
    assert day == ("2026-11-26", 1, 100)


WRITER = """
import sys, time
from pathlib import Path
from qproxy.backends.local.ledger import SqliteUsageLedger
from qproxy.ledger import Pricing
from tests.telemetry.factories import record
ledger = SqliteUsageLedger(Path(sys.argv[1]), Pricing(), keep_days=90)
for number in range(int(sys.argv[3])):
    ledger.record(record(id=f"{sys.argv[2]}-{number}"))
    print(number, flush=True)
    time.sleep(0.002)
ledger.close()
"""


def writer(path, name, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_kill_9_loses_at_most_a_second(path, open_file):
    """After SIGKILL every request that finished more than a second earlier is in the file, which is valid."""
    child = writer(path, "killed", 100_000)
    moments: list[float] = []
    try:
        while len(moments) < 2 or moments[-1] - moments[0] < 1.3:
            child.stdout.readline()
            moments.append(time.monotonic())
        os.kill(child.pid, signal.SIGKILL)
        killed = time.monotonic()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    safe = sum(moment < killed - 1.0 for moment in moments)
    schema.open_for_writing(path).close()  # as the next server does
    connection = open_file()
    rows = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
    assert rows >= safe > 0
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT sum(requests) FROM hours").fetchone()[0] == rows


def test_concurrent_processes_write_one_file(path, open_file):
    """Three concurrent processes lose no row and no sum, and create the file once."""
    children = [writer(path, str(number), 60) for number in range(3)]
    for child in children:
        child.communicate(timeout=60)
        assert child.returncode == 0
    connection = open_file()
    assert connection.execute("SELECT count(*) FROM requests").fetchone() == (180,)
    assert connection.execute("SELECT sum(requests), sum(prompt_tokens) FROM hours").fetchone() == (
        180,
        18000,
    )
