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


@pytest.mark.parametrize(("standing", "state", "words"), STANDINGS.values(), ids=STANDINGS.keys())
def test_words(standing, state, words):
    """The state is said in a word for programs and in words for people."""
    (row,) = report.account_rows([ONE], {} if standing is None else {ONE.identity: standing}, WALL)
    assert (row.state, row.message) == (state, words)
    assert (row.name, row.kind, row.plan, row.host) == (
        "one",
        "key",
        "coding",
        "coding-intl.dashscope.aliyuncs.com",
    )


def test_the_end_of_a_token_is_shown():
    """A login says when its token ends."""
    standing = AccountState("one", login=LoginState("ready", "signed in", True, WALL + 9))
    rows = report.account_rows([ONE], {ONE.identity: standing}, WALL)
    assert rows[0].expires_at == WALL + 9
    assert "one: the token in use ends 11:04:14 UTC" in accounts_table(rows, WALL)


def test_another_key_is_another_account():
    """Who replaces a key that is out of quota does not inherit its rest."""
    other = resolve_account(AccountConfig("one", preset="coding-plan-intl", key="sk-sp-other"))
    assert other.identity != ONE.identity
    assert "secret" not in ONE.identity


async def test_what_a_server_knew_outlives_it(tmp_path, monkeypatch, capsys):
    """A restart keeps the cool-down, `qproxy accounts` shows it, and neither it nor the file has a secret."""
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
    assert "the quota is expected back" in table
    assert "sk-test" not in out + table + repr(read(tmp_path / "accounts.db"))


def test_before_anything_has_happened(tmp_path, monkeypatch, capsys):
    """Without a file every account is there, unused; a file that is none is said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-x")
    assert cli.main(["accounts"]) == 0
    assert "not used yet" in capsys.readouterr().out
    (tmp_path / "accounts.db").write_text("not a database")
    assert cli.main(["accounts"]) == 1
    assert "accounts.db" in capsys.readouterr().err
