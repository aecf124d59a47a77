"""`qproxy shared` shows what machines share, and moves it to the server and back."""

import json
import logging

import pytest
from cryptography.fernet import Fernet

from qproxy import cli
from qproxy.access.api_keys import Quota
from qproxy.backends.local import key_file
from qproxy.backends.local.ledger import SqliteUsageLedger
from qproxy.backends.redis import reconnection
from qproxy.ledger import Pricing
from tests.backends.redis.server import Server
from tests.telemetry.factories import record

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()


@pytest.fixture
def home(tmp_path, monkeypatch, valkey: Server):
    """A data directory of a machine that shares the server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.setenv("QPROXY_SHARED_STATE", f"unix://{valkey.path}")
    monkeypatch.setenv("QPROXY_SHARED_STATE_TIMEOUT", "5")
    monkeypatch.setenv("QPROXY_SHARED_STATE_CONNECT_TIMEOUT", "5")
    monkeypatch.setenv("QPROXY_SHARED_STATE_KEY_FILE", str(tmp_path / "seal"))
    (tmp_path / "seal").write_text(f"{OLD}\n")
    return tmp_path


def run(capsys, *arguments):
    code = cli.main(["shared", *arguments])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def test_keys_and_budgets_are_moved(home, valkey, monkeypatch, capsys):
    """Keys go to the server with what the ledger knows of their budgets, and to another machine's file."""
    key, _ = key_file.create(home / "keys.json", name="bob", budgets=(Quota("month", 100, None),))
    ledger = SqliteUsageLedger(home / "ledger.sqlite3", Pricing(), keep_days=90)
    for number in range(3):
        ledger.record(record(id=f"{number}", key="bob"))
    ledger.close()
    for new in (1, 0):
        code, text = run(capsys, "import")
        assert (code, text) == (0, f"Imported {new} of 1 API keys, and the usage of 1 keys with budgets.\n")
    (limits,) = valkey.execute("KEYS", "q1:{k:*")
    assert float(valkey.execute("HGET", limits, "u:month:requests")) == 3
    other = home / "other" / "keys.json"
    monkeypatch.setenv("QPROXY_KEYS_FILE", str(other))
    for new in (1, 0):
        code, text = run(capsys, "export")
        assert (code, text) == (0, f"Exported {new} of 1 API keys to {other}.\n")
    key_file.revoke(other, "bob")
    assert run(capsys, "import")[1].startswith("Imported 1 of 1 API keys")
    (home / "keys.json").unlink()
    monkeypatch.setenv("QPROXY_KEYS_FILE", str(home / "keys.json"))
    assert run(capsys, "export")[0] == 0
    (exported,) = key_file.read(home / "keys.json")
    assert (exported.id, exported.revoked is None) == (key.id, False)
    actions = [json.loads(line)["action"] for line in (home / "audit.jsonl").read_text().splitlines()]
    assert set(actions) == {"shared.import", "shared.export"}


def test_logins_are_moved(home, monkeypatch, capsys):
    """To the server, encrypted again there, and back; a second login of the same account is not replaced."""
    monkeypatch.setattr(reconnection, "MAX_PAUSE", 0.0)  # else each step waits for processes to connect
    monkeypatch.setenv("QPROXY_SHARED_STATE_CONNECT_TIMEOUT", "0.5")
    tokens = home / "accounts" / "two" / "oauth_creds.json"
    (home / "qproxy.toml").write_text('[[accounts]]\nname = "two"\nkind = "oauth"\n')
    key_file.create(home / "keys.json", name="bob")

    def log_in(token):
        tokens.parent.mkdir(parents=True, exist_ok=True)
        data = {"access_token": token, "refresh_token": f"{token}-refresh", "expiry_date": 4_000_000_000_000}
        tokens.write_text(json.dumps({**data, "token_type": "Bearer"}))
        tokens.chmod(0o600)

    log_in("first")
    code, text = run(capsys, "import")
    assert (code, "Moved the login of two to the server." in text) == (0, True)
    assert not tokens.exists()
    assert "Moved" not in run(capsys, "import")[1]
    log_in("second")
    code, text = run(capsys, "import")
    assert (code, "account two is logged in in shared_state" in text) == (1, True)
    tokens.unlink()
    (home / "seal").write_text(f"{NEW}\n{OLD}\n")
    code, text = run(capsys, "reseal")
    assert (code, "Encrypted the login of two again." in text) == (0, True)
    (home / "seal").write_text(f"{NEW}\n")
    assert "Moved" not in run(capsys, "export")[1]
    code, text = run(capsys, "export", "--logins")
    assert (code, "Moved the login of two to this machine." in text) == (0, True)
    assert json.loads(tokens.read_text())["access_token"] == "first"


def test_processes_and_kinds_are_shown(home, valkey, capsys):
    """With their sizes; the command itself leaves no trace among the processes."""
    key_file.create(home / "keys.json", name="bob")
    run(capsys, "import")
    valkey.execute("SET", "q1:{r:x:y}", "z")
    valkey.execute("SET", "q1:{new:x}", "z")
    valkey.execute("SET", "other", "z")
    code, text = run(capsys, "show")
    assert code == 0
    rows = {line.rsplit(maxsplit=2)[0] for line in text.splitlines() if line}
    assert {"API keys", "responses", "new"} <= rows
    assert "other" not in text
    assert "No process." in text
    code, text = run(capsys, "show", "--json")
    assert json.loads(text)["kinds"]["responses"]["keys"] == 1


def test_records_are_encrypted_with_the_first_key(home, valkey, capsys, caplog):
    """Values of strings and hashes, with the time that they have left; what no key opens stays."""
    caplog.set_level(logging.ERROR)
    first, foreign = Fernet(OLD), Fernet(Fernet.generate_key())
    valkey.execute("SET", "q1:{m:x}", first.encrypt(b"one"), "EX", "1000")
    for number in range(300):
        valkey.execute("HSET", "q1:{r:x}", f"{number}", first.encrypt(b"two" * 100))
    valkey.execute("HSET", "q1:{r:x}", "plain", "gone")
    valkey.execute("ZADD", "q1:{r:list}", "1", "x")
    (home / "seal").write_text(f"{NEW}\n{OLD}\n")
    code, text = run(capsys, "reseal")
    assert (code, text) == (0, "Encrypted 301 records again; 0 had the first key already.\n")
    only = Fernet(NEW)
    assert only.decrypt(valkey.execute("GET", "q1:{m:x}")) == b"one"
    assert 900 < valkey.execute("TTL", "q1:{m:x}") <= 1000
    assert only.decrypt(valkey.execute("HGET", "q1:{r:x}", "7")) == b"two" * 100
    assert valkey.execute("HGET", "q1:{r:x}", "plain") == b"gone"
    valkey.execute("SET", "q1:{m:foreign}", foreign.encrypt(b"three"))
    (home / "seal").write_text(f"{NEW}\n")
    code, text = run(capsys, "reseal")
    assert code == 1
    assert "Encrypted 0 records again; 301 had the first key already." in text
    assert "No key of shared_state_key_file opens 1 records" in text


def test_without_a_server_or_a_setting_the_reason_is_shown(home, monkeypatch, capsys):
    """A server that is not there is a failure, a missing setting is wrong usage."""
    (home / "seal").unlink()
    monkeypatch.delenv("QPROXY_SHARED_STATE_KEY_FILE")
    code, text = run(capsys, "reseal")
    assert (code, "shared_state_key_file must be set" in text) == (2, True)
    monkeypatch.setenv("QPROXY_SHARED_STATE", f"unix://{home}/none")
    monkeypatch.setenv("QPROXY_SHARED_STATE_CONNECT_TIMEOUT", "0.01")
    code, text = run(capsys, "show")
    assert (code, "shared_state cannot be used" in text) == (1, True)
    monkeypatch.delenv("QPROXY_SHARED_STATE")
    for action in ("show", "import", "export", "reseal"):
        code, text = run(capsys, action)
        assert (code, "must be set" in text) == (2, True), action
