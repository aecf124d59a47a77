"""`qproxy accounts`, and the state that a server leaves behind."""

import json
from datetime import UTC, datetime

import pytest
import trio

from qproxy import cli
from qproxy.accounts import report
from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.shared_state import AccountState, LoginState
from qproxy.backends.local.account_state import read
from qproxy.cli.accounts import accounts_table
from qproxy.config.accounts import AccountConfig, resolve_account
from qproxy.emulator.faults import json_reply
from tests.helpers import HELLO, accounts, world

WALL = datetime(2026, 8, 12, 11, 4, 5, tzinfo=UTC).timestamp()
ONE = resolve_account(AccountConfig("one", preset="coding-plan-intl", key="sk-sp-secret", rpm=2))
QUOTA = Cooldown(WALL + 100, WALL, "quota", WALL + 86400)
STANDINGS = {
    "not used": (None, "unused", "not used yet"),
    "ready": (AccountState("one", requests=3), "ready", "ready"),
    "cooling down": (
        AccountState("one", {"": QUOTA}),
        "cooling_down",
        "cooling down until 11:05:45 UTC: quota",
    ),
    "rested": (AccountState("one", {"": QUOTA.with_clock_offset(-200)}), "ready", "ready"),
    "a model": (AccountState("one", {"m": QUOTA}), "ready", "ready; not for m"),
    "signed out": (
        AccountState("one", {"": QUOTA}, login=LoginState("login_needed", "nobody is signed in", False)),
        "login_needed",
        "nobody is signed in",
    ),
    "signed in": (
        AccountState("one", login=LoginState("ready", "signed in", True, WALL + 9)),
        "ready",
        "ready",
    ),
    "rate limited": (
        AccountState("one", bucket_levels={"requests": (0.5, WALL)}),
        "rate_limited",
        "at its requests or tokens per minute",
    ),
}


@pytest.mark.parametrize(("stored", "state", "words"), STANDINGS.values(), ids=STANDINGS.keys())
def test_states_and_messages(stored, state, words):
    """The row has a state for programs and a message for people."""
    (row,) = report.account_rows([ONE], {} if stored is None else {ONE.identity: stored}, WALL)
    assert (row.state, row.message) == (state, words)
    assert (row.name, row.kind, row.plan, row.host) == (
        "one",
        "key",
        "coding",
        "coding-intl.dashscope.aliyuncs.com",
    )


def test_the_expiry_of_a_token_is_shown():
    """The row of a login has the expiry of its token."""
    stored = AccountState("one", login=LoginState("ready", "signed in", True, WALL + 9))
    rows = report.account_rows([ONE], {ONE.identity: stored}, WALL)
    assert rows[0].expires_at == WALL + 9
    assert "one: token expires 11:04:14 UTC" in accounts_table(rows, WALL)


def test_another_key_is_another_account():
    """A new key does not inherit the cooldown of the key it replaces."""
    other = resolve_account(AccountConfig("one", preset="coding-plan-intl", key="sk-sp-other"))
    assert other.identity != ONE.identity
    assert "secret" not in ONE.identity


async def test_cooldowns_survive_a_restart(tmp_path, monkeypatch, capsys):
    """A restart keeps a cooldown, `qproxy accounts` shows it, and neither it nor the file has a secret."""
    file = str(tmp_path / "accounts.db")
    refusal = json_reply(
        {"error": {"code": "insufficient_quota", "message": "month allocated quota exceeded"}}, 429
    )
    settings = {"accounts": accounts("one", "two", plan="coding"), "account_state_file": file}
    async with world(**settings) as it:
        it.emulator.script(refusal)
        assert (await it.post(HELLO))[0] == 200
        first, second = (seen.headers["host"] for seen in it.emulator.requests)
        assert first != second
    async with world(**settings) as it:
        for n in range(10):
            message = {"role": "user", "content": f"conversation {n}"}
            assert (await it.post({**HELLO, "messages": [message]}))[0] == 200
        assert {seen.headers["host"] for seen in it.emulator.requests} == {second}
    name = first.removesuffix(".test")
    toml = tmp_path / "q.toml"
    tables = [
        f'[[accounts]]\nname = "{n}"\nplan = "coding"\nkey = "sk-test-key"\nbase_url = "http://{n}.test/v1"\n'
        for n in ("one", "two")
    ]
    toml.write_text(f'account_state_file = "{file}"\n' + "".join(tables))
    assert await trio.to_thread.run_sync(cli.main, ["accounts", "--config", str(toml), "--json"]) == 0
    out = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(out)["accounts"]}
    row, other = rows[name], rows[second.removesuffix(".test")]
    assert (row["state"], row["requests"], row["failures"], row["last_minute"]) == ("cooling_down", 1, 1, 1)
    assert (row["last_error"], row["in_flight"]) == ("429 insufficient_quota", 0)
    assert "month allocated quota exceeded" in row["quota"]
    assert row["quota_reset_at"] > row["cooldown_until"] > row["last_error_at"]
    assert (other["state"], other["requests"], other["failures"]) == ("ready", 11, 0)
    assert await trio.to_thread.run_sync(cli.main, ["accounts", "--config", str(toml)]) == 0
    table = capsys.readouterr().out
    assert "cooling down until" in table
    assert "quota resets" in table
    assert "sk-test" not in out + table + repr(read(tmp_path / "accounts.db"))


def test_accounts_without_a_state_file(tmp_path, monkeypatch, capsys):
    """Without a state file every account is unused; an invalid file is an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-x")
    assert cli.main(["accounts"]) == 0
    assert "not used yet" in capsys.readouterr().out
    (tmp_path / "accounts.db").write_text("not a database")
    assert cli.main(["accounts"]) == 1
    assert "accounts.db" in capsys.readouterr().err
