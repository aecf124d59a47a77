"""`qproxy accounts`, and the state that a server stores."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from qproxy import cli
from qproxy.accounts import report
from qproxy.accounts.condition import LoginState
from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.shared_state import AccountState
from qproxy.backends.local.account_state import read
from qproxy.cli.accounts import accounts_table
from qproxy.config.accounts import AccountConfig, resolve_account
from qproxy.emulator.faults import json_reply
from qproxy.limits.circuit_breaker import THRESHOLD
from qproxy.wire.errors import RetryHint, UpstreamError
from tests.helpers import HELLO, MODEL, accounts, world

WALL = datetime(2026, 8, 12, 11, 4, 5, tzinfo=UTC).timestamp()
ONE = resolve_account(
    AccountConfig("one", preset="coding-plan-intl", key="sk-sp-secret", rpm=2, max_in_flight=4)
)
QUOTA = Cooldown(WALL + 100, WALL, "quota", WALL + 86400)
WORKED: dict[str, Any] = {"last_success_at": WALL - 9.0, "results": "-++"}
FAULT: dict[str, Any] = {
    "last_fault_at": WALL - 5.0,
    "last_error": "502 upstream_error",
    "last_message": "connection refused",
}
CAUSE = "502 upstream_error: connection refused"
LOGIN = LoginState("ready", "logged in", True, WALL + 9)
STANDINGS = {
    "not used": (None, "unknown", "no request has succeeded yet"),
    "requests without a result": (AccountState("one", requests=3), "unknown", "no request has succeeded yet"),
    "ready": (AccountState("one", requests=3, **WORKED), "ready", "ready"),
    "never worked": (
        AccountState("one", results="-", **FAULT),
        "failing",
        f"1 of the last 1 request failed: {CAUSE}",
    ),
    "failed since it worked": (
        AccountState("one", **{**WORKED, **FAULT, "results": "++-"}),
        "failing",
        f"1 of the last 3 requests failed: {CAUSE}",
    ),
    "rejected key": (
        AccountState("one", {"": Cooldown(WALL + 60, WALL, "access")}, results="--", **FAULT),
        "failing",
        f"2 of the last 2 requests failed: {CAUSE}; next attempt 11:05:05 UTC",
    ),
    "worked since it failed": (
        AccountState("one", **{**FAULT, **WORKED, "last_fault_at": WALL - 10.0}),
        "ready",
        "ready",
    ),
    "cooling down": (
        AccountState("one", {"": QUOTA}, **WORKED),
        "cooling_down",
        "cooling down until 11:05:45 UTC: quota",
    ),
    "exhausted, and not used since": (
        AccountState("one", {"": QUOTA.with_clock_offset(-200)}, **WORKED),
        "unknown",
        "its quota was exhausted, and it was not used since",
    ),
    "a rate limit that is over": (
        AccountState("one", {"": Cooldown(WALL - 1, WALL - 61, "a minute's limit")}, **WORKED),
        "ready",
        "ready",
    ),
    "a model": (AccountState("one", {"m": QUOTA}, **WORKED), "ready", "ready; not for m"),
    "logged out": (
        AccountState("one", {"": QUOTA}, login=LoginState("login_needed", "nobody is logged in", False)),
        "login_needed",
        "nobody is logged in",
    ),
    "logged in": (AccountState("one", login=LOGIN, **WORKED), "ready", "ready"),
    "logged in and not used": (
        AccountState("one", login=LOGIN),
        "unknown",
        "no request has succeeded yet",
    ),
    "rate limited": (
        AccountState("one", bucket_levels={"requests": (0.5, WALL)}, **WORKED),
        "rate_limited",
        "at its requests or tokens per minute",
    ),
    "at capacity": (
        AccountState("one", in_flight={"1": (4, WALL)}, **WORKED),
        "at_capacity",
        "at its limit of concurrent requests (max_in_flight)",
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


def test_learned_rules_are_shown():
    """The rules that rejections have taught are listed by model."""
    stored = AccountState("one", learned_rules={"top_p m": WALL, "temperature m": WALL})
    rows = report.account_rows([ONE], {ONE.identity: stored}, WALL)
    assert rows[0].learned_rules == {"m": ["temperature", "top_p"]}
    assert "one: learned for m: temperature, top_p" in accounts_table(rows, WALL)


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


async def test_wake_ends_the_cooldowns_of_a_running_server(tmp_path, monkeypatch, capsys):
    """`qproxy accounts wake` ends what makes an account wait in every server; an unknown name is an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    file = tmp_path / "accounts.db"
    table = '[[accounts]]\nname = "one"\nkey = "sk-test-key"\nbase_url = "http://one.test/v1"\n'
    (tmp_path / "qproxy.toml").write_text(table)
    async with world(accounts=accounts("one"), account_state_file=str(file)) as it:
        pool = it.server.state.relay.accounts
        (account,) = pool.accounts
        account.record_failure(UpstreamError("x", code="insufficient_quota"), trio.current_time(), MODEL)
        for _ in range(THRESHOLD):
            account.record_failure(UpstreamError("x", retry=RetryHint.SOON), trio.current_time(), MODEL)
        await pool.start_sync()
        assert account.cooldowns
        assert await trio.to_thread.run_sync(cli.main, ["accounts", "wake", "one"]) == 0
        await pool.start_sync()
        assert (account.cooldowns, account.quota) == ({}, None)
        assert not account.circuit_breaker.wait(trio.current_time())
        assert read(file)[account.identity].cooldowns == {}
        assert account.condition(trio.current_time()).state == "failing", "only a success shows that it works"
        assert (await it.post(HELLO))[0] == 200
        assert account.condition(trio.current_time()).state == "ready"
    assert await trio.to_thread.run_sync(cli.main, ["accounts", "wake", "on"]) == 2
    assert "did you mean" in capsys.readouterr().err.lower()
    (tmp_path / "qproxy.toml").write_text('account_state_file = ""\n' + table)
    assert await trio.to_thread.run_sync(cli.main, ["accounts", "wake", "one"]) == 1


def test_accounts_without_a_state_file(tmp_path, monkeypatch, capsys):
    """Without a state file every account is unused; an invalid file is an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-x")
    assert cli.main(["accounts"]) == 0
    assert "unknown" in capsys.readouterr().out
    (tmp_path / "accounts.db").write_text("not a database")
    assert cli.main(["accounts"]) == 1
    assert "accounts.db" in capsys.readouterr().err


async def test_learned_rules_survive_a_restart_and_can_be_forgotten(tmp_path, capsys):
    """Another server applies what one learned; the check and the list show it, and a command forgets it."""
    file = str(tmp_path / "accounts.db")
    own = accounts("one", kind="openai_compatible", models=["my-model"])
    settings = {"accounts": own, "account_state_file": file}
    later = [{"role": "user", "content": "go"}, {"role": "system", "content": "be brief"}]
    body = {**HELLO, "model": "my-model", "messages": later}
    rejection = json_reply({"error": {"message": "System message must be at the beginning."}}, 400)
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    accepted = json_reply({"id": "x", "object": "chat.completion", "choices": [choice]})
    async with world(**settings) as it:
        it.emulator.script(rejection, accepted)
        assert (await it.post(body))[0] == 200
    async with world(**settings) as it:
        it.emulator.script(accepted)
        assert (await it.post(body))[0] == 200
        (sent,) = it.emulator.requests
        assert [message["role"] for message in sent.body["messages"]] == ["user", "user"]
    toml = tmp_path / "q.toml"
    toml.write_text(
        f'port = 0\naccount_state_file = "{file}"\n[[accounts]]\nname = "one"\nkind = "openai_compatible"\n'
        'key = "sk-test-key"\nbase_url = "http://one.test/v1"\nmodels = ["my-model"]\n'
    )
    line = "learned for my-model: system_reminder"
    for options, shown in (([], True), (["forget-rules", "one"], False), ([], False)):
        arguments = ["accounts", "--config", str(toml), *options]
        assert await trio.to_thread.run_sync(cli.main, arguments) == 0
        assert (line in capsys.readouterr().out) == shown
        if not options and shown:
            check = ["check", "--offline", "--config", str(toml)]
            await trio.to_thread.run_sync(cli.main, check)
            assert "my-model: system_reminder" in capsys.readouterr().out
