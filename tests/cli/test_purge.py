"""`qproxy purge` removes the stored data of one key from the files, and of no other."""

import json
from functools import partial

import trio

from qproxy import cli
from qproxy.backends.local import key_file
from qproxy.backends.local.ledger import SqliteUsageLedger
from qproxy.backends.local.responses import SqliteResponseStore
from qproxy.ledger import Pricing
from qproxy.server.response_store import StoredResponse
from tests.telemetry.factories import record


async def fill(home, owners):
    """Store a response of each owner, and requests of bob and amy."""
    store = SqliteResponseStore(home / "responses.sqlite3", max_age=1e6, max_bytes=10**6, timeout=5.0)
    for owner in owners:
        await store.save(StoredResponse("r", owner, None, {"output": []}, [f"prompt of {owner}"]))
    await store.aclose()
    ledger = SqliteUsageLedger(home / "ledger.sqlite3", Pricing(), keep_days=90)
    for id, key in (("a", "bob"), ("b", "bob"), ("c", "amy")):
        ledger.record(record(id=id, key=key))
    ledger.close()


def test_a_key_is_purged(tmp_path, monkeypatch, capsys):
    """Every key of the name, including revoked ones, loses its responses, rows and sums; no byte of them
    stays in the files."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    keys = tmp_path / "keys.json"
    old, _ = key_file.create(keys, name="bob")
    key_file.revoke(keys, "bob")
    new, _ = key_file.create(keys, name="bob")
    amy, _ = key_file.create(keys, name="amy")
    trio.run(partial(fill, tmp_path, [old.digest, new.digest, amy.digest]))
    assert cli.main(["purge", "--key", "bob", "--responses-only"]) == 0
    assert "Deleted 2 responses and 0 requests of bob." in capsys.readouterr().out
    assert cli.main(["purge", "--key", "bob"]) == 0
    shown = capsys.readouterr()
    assert "Deleted 0 responses and 2 requests of bob." in shown.out
    assert f"Still active: {new.id}" in shown.err
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("*.sqlite3*"))
    assert old.digest.encode() not in stored
    assert new.digest.encode() not in stored
    assert b"bob" not in stored
    assert f"prompt of {amy.digest}".encode() in stored
    assert cli.main(["usage", "--window", "all", "--json"]) == 0
    assert "amy" in capsys.readouterr().out
    purges = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(entry["action"], entry["subject"]) for entry in purges] == [("data.purge", "bob")] * 2


def test_an_unknown_key_is_an_error(tmp_path, monkeypatch, capsys):
    """With an unknown key nothing is deleted, and the exit code is 2."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["purge", "--key", "bob"]) == 2
    assert "no key 'bob'" in capsys.readouterr().err
    assert not (tmp_path / "audit.jsonl").exists()
