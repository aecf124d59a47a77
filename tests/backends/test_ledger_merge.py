"""Merging the ledger files of several machines."""

import sqlite3
from contextlib import closing
from datetime import datetime

import pytest

from qproxy import cli
from qproxy.backends.local.ledger import SqliteUsageLedger
from qproxy.backends.local.ledger_merge import open_merged
from qproxy.ledger import LedgerError, Pricing
from qproxy.ledger.prices import ModelPrice, PriceTier
from tests.telemetry.factories import record

NOON = datetime.fromisoformat("2026-11-26T12:10:00+00:00").timestamp()
DAY = 86400
PRICING = Pricing({"qwen3.7-plus": ModelPrice((PriceTier(1.0, 2.0),))})


def write(path, ids, *, now=NOON, keep_days=90):
    ledger = SqliteUsageLedger(path, PRICING, keep_days=keep_days, wall_clock=lambda: now)
    for id in ids:
        ledger.record(record(id=id))
    ledger.close()
    return path


async def usage(*paths):
    ledger = open_merged(paths)
    try:
        found = await ledger.usage_by("key", ("5h", "month", "all"), NOON + 60)
        return {window: [(row.requests, row.tokens) for row in rows] for window, rows in found.items()}
    finally:
        await ledger.aclose()


async def test_requests_are_added_and_count_once(tmp_path):
    """Files that share a request, and a file given twice, count it once, in rows and in sums of hours."""
    one, two = write(tmp_path / "1", ["a", "b"]), write(tmp_path / "2", ["b", "c", "d"])
    expected = {window: [(4, 4 * 121)] for window in ("5h", "month", "all")}
    assert await usage(one, two) == await usage(two, one, tmp_path / "." / "1") == expected
    ledger = open_merged([one, two])
    assert len(await ledger.recent_requests(9)) == 4
    (row,) = (await ledger.usage_by("key", ("month",), NOON + 60))["month"]
    assert row.cost == pytest.approx(4 * (100 * 1.0 + 21 * 2.0) / 1e6)
    await ledger.aclose()


async def test_sums_of_deleted_requests_are_added(tmp_path):
    """The retention deletes requests before their sums, which still count."""
    old = write(tmp_path / "old", ["o1", "o2"], now=NOON - 100 * DAY)
    write(old, ["n1"])
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("SELECT count(*) FROM requests").fetchone() == (1,)
    assert (await usage(old, write(tmp_path / "2", ["m1"])))["all"] == [(4, 4 * 121)]


async def test_rejects_a_file_that_is_not_a_ledger(tmp_path):
    """A missing file, another database and a ledger of an older version are named; none is changed."""
    good, other = write(tmp_path / "good", ["a"]), tmp_path / "other"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (x)")
    older = write(tmp_path / "older", ["b"])
    with closing(sqlite3.connect(older)) as connection, connection:
        connection.execute("DELETE FROM schema_version WHERE version > 1")
    for bad in (tmp_path / "missing", other, older):
        with pytest.raises(LedgerError, match=bad.name):
            open_merged([good, bad])


def test_the_command_adds_files_to_its_ledger(tmp_path, monkeypatch, capsys):
    """Files are merged with or without a ledger of the command's own; a database needs no merge."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path / "home"))
    other = write(tmp_path / "other.sqlite3", ["a", "b"])
    command = ["usage", "--window", "all", "--csv", "--merge", str(other)]
    assert cli.main(command) == 0
    assert ",2,0,200,42," in capsys.readouterr().out
    write(tmp_path / "home" / "ledger.sqlite3", ["b", "c"])
    assert cli.main(command) == 0
    assert ",3,0,300,63," in capsys.readouterr().out
    monkeypatch.setenv("QPROXY_LEDGER", "postgresql://db/usage")
    assert cli.main(command) == 1
    assert "--merge is for ledger files" in capsys.readouterr().err
