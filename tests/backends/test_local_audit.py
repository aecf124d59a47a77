"""The audit log: one entry for each kind of change, none with a secret."""

import json
import logging
import stat
from dataclasses import replace

import pytest

from qproxy import cli
from qproxy.access import api_keys
from qproxy.access.api_keys import Quota
from qproxy.backends.local.audit import FileAuditLog
from qproxy.bootstrap.app import build_server
from qproxy.config import Config
from qproxy.process.reload import Reloader
from qproxy.process.settings_history import SettingsHistory
from qproxy.telemetry.audit import AuditEntry
from tests.helpers import accounts


def entries(path):
    """Return the entries of a file, without their times."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(entry.pop("at").endswith("Z") for entry in found)
    return found


async def test_an_entry_is_a_line_with_its_time(tmp_path, caplog):
    """Entries are appended to a private file and logged; a secret given as a name is hidden."""
    caplog.set_level(logging.INFO, "qproxy.audit")
    path = tmp_path / "home" / "audit.jsonl"
    log = FileAuditLog(path, secrets=["correct-horse-battery"], wall_clock=lambda: 1e9)
    await log.record(AuditEntry("cli amy", "key.create", "key_1 a\nb", "rpm 3"))
    await log.record(AuditEntry("cli amy", "key.create", "sk-0123456789abcdef correct-horse-battery"))
    first, second = path.read_text().splitlines()
    assert json.loads(first) == {
        "at": "2001-09-09T01:46:40Z",
        "actor": "cli amy",
        "action": "key.create",
        "subject": "key_1 a\nb",
        "detail": "rpm 3",
    }
    assert json.loads(second)["subject"] == "[hidden] [hidden]"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [record.message for record in caplog.records] == [f"audit: {first}", f"audit: {second}"]


async def test_an_unwritable_file_is_logged_as_an_error(tmp_path, caplog):
    """The change itself does not fail; without a file the log has the entry."""
    (tmp_path / "file").write_text("")
    await FileAuditLog(tmp_path / "file" / "audit.jsonl").record(AuditEntry("reload", "account.add", "one"))
    assert "audit_file" in caplog.text
    caplog.clear()
    caplog.set_level(logging.INFO, "qproxy.audit")
    await FileAuditLog(None).record(AuditEntry("reload", "account.add", "one"))
    assert '"account.add"' in caplog.text


def test_a_key_is_described_by_its_limits():
    """The entry of a new key has every limit, and neither secret nor digest."""
    budget = Quota("month", requests=5)
    key, secret = api_keys.generate(name="bob", rpm=3, models=("a", "b*"), expires=86400, budgets=(budget,))
    entry = api_keys.audit_entry("cli amy", "key.create", key)
    assert entry.subject == f"{key.id} bob"
    limits = "rpm 3; models a,b*; expires 1970-01-02T00:00:00Z; budget month: 5 requests"
    assert entry.detail == limits
    assert secret not in repr(entry)
    assert key.digest not in repr(entry)


def test_commands_record_the_user_and_the_change(tmp_path, monkeypatch, capsys):
    """`qproxy keys` records the user of the process; a failed change leaves no entry."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["keys", "create", "--name", "bob", "--rpm", "3"]) == 0
    secret = capsys.readouterr().out.strip()
    assert cli.main(["keys", "revoke", "bob"]) == 0
    assert cli.main(["keys", "revoke", "bob"]) == 2
    assert cli.main(["keys", "list"]) == 0
    text = (tmp_path / "audit.jsonl").read_text()
    made, revoked = entries(tmp_path / "audit.jsonl")
    assert (made["action"], made["detail"], revoked["action"]) == ("key.create", "rpm 3", "key.revoke")
    assert made["actor"] == revoked["actor"]
    assert made["actor"].startswith("cli ")
    assert made["subject"] == revoked["subject"]
    assert made["subject"].endswith(" bob")
    assert secret not in text
    assert api_keys.hash_key(secret) not in text


@pytest.mark.parametrize("audited", [True, False])
async def test_a_reload_records_names_and_no_values(audited, tmp_path):
    """A reload records settings by name and accounts one by one, in one of several workers, and nothing
    without a change."""
    path = tmp_path / "audit.jsonl"
    before = Config(accounts=accounts("one", "two"), audit_file=str(path), admin_key="the-old-admin-key")
    changed = (replace(before.accounts[0], key="sk-another-key"), *accounts("three"))
    after = replace(before, accounts=changed, admin_key="the-new-admin-key", port=1)
    reloader = Reloader(build_server(before), before, lambda: after, audited=audited)
    assert (await reloader.reload())[0]
    assert (await reloader.reload())[0]
    if not audited:
        assert not path.exists()
        return
    assert [(entry["action"], entry["subject"]) for entry in entries(path)] == [
        ("settings.change", "accounts, admin_key"),
        ("account.change", "one"),
        ("account.add", "three"),
        ("account.remove", "two"),
    ]
    assert "another" not in path.read_text()
    assert "admin-key" not in path.read_text()


def test_settings_edited_between_two_starts(tmp_path):
    """A start records the difference from the last settings in effect, and the file has none of their
    values."""
    before = Config(accounts=accounts("one", "two"), admin_key="correct-horse-battery", port=0)
    one, two = before.accounts
    after = replace(
        before,
        accounts=(replace(one, key="sk-another-0123456789"), replace(two, name="three")),
        admin_key="another-horse-battery",
        cors_origins=["https://chat.example"],
    )
    home = tmp_path / "home"
    assert SettingsHistory(home, 80).update(before) == []  # nothing is known of an earlier start
    assert SettingsHistory(home, 80).update(before) == []
    found = [(entry.actor, entry.action, entry.subject) for entry in SettingsHistory(home, 80).update(after)]
    assert found == [
        ("start", "settings.change", "accounts, admin_key, cors_origins"),
        ("start", "account.change", "one"),
        ("start", "account.add", "three"),
        ("start", "account.remove", "two"),
    ]
    assert SettingsHistory(home, 80).update(after) == []
    path = home / "settings-80.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(word in path.read_text() for word in ("horse", "sk-", "chat.example"))
    path.write_text('{"salt": 1}')
    assert SettingsHistory(home, 80).update(before) == []


def test_settings_that_cannot_be_stored(tmp_path, caplog):
    """An unwritable data directory logs a warning, and changes are found as before."""
    (tmp_path / "file").write_text("")
    assert SettingsHistory(tmp_path / "file", 80).update(Config(accounts=accounts("one"))) == []
    assert "changes of settings before the next start will not be audited" in caplog.text


async def test_a_reload_is_audited_once(tmp_path, monkeypatch):
    """A change that a reload applied is not recorded at the next start."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    before = Config(accounts=accounts("one"), ledger="none")
    after, history = replace(before, cors_origins=["https://chat.example"]), SettingsHistory(tmp_path, 80)
    history.update(before)
    reloader = Reloader(build_server(before), before, lambda: after, history=history)
    assert (await reloader.reload())[0]
    assert SettingsHistory(tmp_path, 80).update(after) == []
