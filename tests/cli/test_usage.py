"""`qproxy usage`: the ledger as a table, as JSON, as CSV."""

import csv
import io
import json
import time

import pytest

from qproxy import cli
from qproxy.backends.local.ledger import SqliteUsageLedger
from qproxy.bootstrap.models import package_catalog
from qproxy.ledger import Pricing
from tests.telemetry.factories import record


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kept(home):
    pricing = Pricing(listed_for=["one"], catalog=package_catalog())
    ledger = SqliteUsageLedger(home / "ledger.sqlite3", pricing, keep_days=90)
    ledger.record(record(id="a"))
    ledger.record(record(id="b", account="home", outcome="client_disconnected"))
    ledger.record(record(id="c", account="home", served_model="qwen-local", key=None))
    ledger.close()


@pytest.mark.usefixtures("kept")
def test_as_a_table(capsys):
    """The table has a line per key and window, with costs if prices are known."""
    assert cli.main(["usage", "--window", "all", "--window", "5h"]) == 0
    shown = capsys.readouterr()
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[0] == [
        "window",
        "since",
        "(UTC)",
        "key",
        "requests",
        "failed",
        "tokens",
        "in",
        "out",
        "cost",
    ]
    assert lines[1] == ["all", "ever", "bob", "2", "1", "200", "42", "0.0001", "+", "unknown"]
    assert lines[2] == ["all", "ever", "-", "1", "0", "100", "21", "unknown"]
    assert [line[0] for line in lines[3:]] == ["5h", "5h"]
    assert "list prices of 20" in shown.err


@pytest.mark.usefixtures("kept")
def test_for_programs(capsys):
    """JSON and CSV have the same rows."""
    assert cli.main(["usage", "--by", "model", "--window", "month", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["usage"]
    assert [(row["name"], row["requests"], row["unpriced"]) for row in found] == [
        ("qwen3.7-plus", 2, 1),
        ("qwen-local", 1, 1),
    ]
    assert found[0]["since"] == time.strftime("%Y-%m-01T00:00:00Z", time.gmtime())
    assert cli.main(["usage", "--by", "model", "--window", "month", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert found[1]["cost_usd"] is None, "a cost that is not known is not 0"
    assert rows == [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in found
    ]


def test_without_a_ledger(home, capsys):
    """Without a ledger, or with an empty file, the command exits with 1 and a message."""
    for _ in range(2):
        assert cli.main(["usage"]) == 1
        assert "no usage recorded yet" in capsys.readouterr().err
        (home / "ledger.sqlite3").touch()
