"""Queries of the ledger: history, latency, and lists of requests."""

import sqlite3

import pytest

from qproxy.backends.local import ledger_queries as history
from qproxy.backends.local import ledger_schema as schema
from qproxy.backends.local.ledger import insert_rows
from qproxy.ledger import LedgerError
from qproxy.ledger.prices import Pricing
from qproxy.ledger.rows import to_row
from qproxy.telemetry.records import RequestRecord


def row(number, ended, outcome="ok", **columns):
    made = to_row(RequestRecord(f"req_{number:03d}", "POST", "/v1/chat/completions"), ended, Pricing())
    return {**made, "model": "m", "account": "a", "outcome": outcome, **columns}


@pytest.fixture
def ledger(tmp_path):
    connection = schema.open_for_writing(tmp_path / "ledger.sqlite3")

    def with_rows(*rows):
        insert_rows(connection, list(rows))
        return connection

    yield with_rows
    connection.close()


def test_requests_per_time_slot(ledger):
    """Each request counts in the slot in which it finished; client disconnects are not failures."""
    connection = ledger(
        row(1, 99.9), row(2, 100.0, prompt_tokens=5, completion_tokens=7, cost=0.5),
        row(3, 109.9, "client_disconnected"),
        row(4, 119.9, "upstream_truncated"), row(5, 120.0),
    )  # fmt: skip
    found = history.time_slots(connection, 100.0, 120.0, 2)
    assert [(s.start, s.requests, s.ok, s.disconnected, s.failed) for s in found] == [
        (100, 2, 1, 1, 0),
        (110, 1, 0, 0, 1),
    ]
    assert (found[0].prompt_tokens, found[0].completion_tokens, found[0].cost) == (5, 7, 0.5)


def test_an_empty_ledger_has_empty_slots(ledger):
    """An empty ledger has slots without requests."""
    found = ledger()
    assert [s.requests for s in history.time_slots(found, 0.0, 10.0, 3)] == [0, 0, 0]
    assert [s.total for s in history.latency_slots(found, 0.0, 10.0, 3)] == [None] * 3
    assert history.recent_requests(found, 5) == []


def test_latencies_are_those_of_successful_responses(ledger):
    """The median and the 95th percentile use the nearest rank; failures and empty responses do not count."""
    rows = [row(n, 10.0 + n / 100, first_byte_ms=float(n), total_ms=n * 10.0) for n in range(1, 101)]
    connection = ledger(
        *rows,
        row(200, 11.5, "internal_error", first_byte_ms=9e9, total_ms=9e9),
        row(201, 25.0, first_byte_ms=None, total_ms=3.0),
    )
    first, second = history.latency_slots(connection, 10.0, 30.0, 2)
    assert (first.first_byte, first.total) == ((50.0, 95.0), (500.0, 950.0))
    assert (second.first_byte, second.total) == (None, (3.0, 3.0))


def test_a_long_history_is_sampled(ledger, monkeypatch):
    """With many requests, only every nth is read."""
    monkeypatch.setattr(history, "SAMPLE", 10)
    connection = ledger(*(row(n, 10.0, total_ms=float(n)) for n in range(1, 101)))
    assert len(history._sample(connection, 0.0, 20.0)) == 10


def test_requests_are_listed_newest_first_by_page(ledger):
    """A page starts exactly after the previous one, even among requests that finished at the same time."""
    connection = ledger(*(row(n, 10.0 + n // 4) for n in range(10)))
    seen, before = [], None
    while page := history.recent_requests(connection, 3, before=before):
        seen += [each["id"] for each in page]
        before = (page[-1]["ended"], page[-1]["id"])
    assert seen == [f"req_{n:03d}" for n in reversed(range(10))]


def test_requests_are_filtered_by_known_columns(ledger):
    """Filters are key, account, model and outcome; no column name comes from the client."""
    connection = ledger(row(1, 1.0, key="a"), row(2, 2.0, key="b"), row(3, 3.0, "error", key="b"))
    assert [r["id"] for r in history.recent_requests(connection, 9, only={"key": "b", "outcome": "ok"})] == [
        "req_002"
    ]
    assert len(history.recent_requests(connection, 9, only={"1=1; DROP TABLE requests; --": "x"})) == 3
    found = history.request_by_id(connection, "req_001")
    assert found is not None
    assert found["key"] == "a"
    assert history.request_by_id(connection, "' OR 1=1") is None


def test_a_slow_query_is_cancelled(ledger):
    """It raises LedgerError, and the connection answers the next query."""
    connection = ledger(*(row(n, 1.0) for n in range(200)))
    endless = "SELECT count(*) FROM requests a, requests b, requests c, requests d"
    with pytest.raises(LedgerError, match="choose a shorter period"), history.query_timeout(connection, 0.01):
        connection.execute(endless).fetchone()
    with pytest.raises(sqlite3.OperationalError), history.query_timeout(connection):
        connection.execute("SELECT nothing FROM nowhere")
    assert len(history.recent_requests(connection, 5)) == 5
