"""Budgets of a key per window: counted from the ledger, shared by workers; the error names the reset time."""

import time

import pytest
import trio

from qproxy import cli
from qproxy.access.api_keys import ApiKey, Quota
from qproxy.access.budgets import CACHE_SECONDS, BudgetTracker
from qproxy.backends.local import key_file
from qproxy.backends.local.ledger import SqliteUsageLedger
from qproxy.cli.keys import keys_table
from qproxy.ledger import Pricing
from qproxy.wire.errors import QproxyError, RequestError
from tests.backends.test_local_ledger import NOON
from tests.helpers import HELLO, world
from tests.telemetry.factories import record

DAY = 86400


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite3"


def key(*budgets):
    return ApiKey("key_1", "0" * 64, "bob", budgets=budgets)


@pytest.fixture
def wall():
    return {"now": NOON}


@pytest.fixture
def ledger(path, wall):
    made = SqliteUsageLedger(path, Pricing(), wall_clock=lambda: wall["now"], keep_days=90)
    yield made
    made.close()


@pytest.fixture
def budgets(ledger, wall):
    return BudgetTracker(ledger, wall_clock=lambda: wall["now"])


def amounts(tokens):
    """Return the amounts of one request."""
    return {"requests": 1, "tokens": tokens}


async def use(budgets, of, tokens):
    (await budgets.reserve(of, amounts(tokens))).settle(amounts(tokens))


async def test_requests_of_a_day(budgets, wall):
    """A day's requests can be used once; the error has the reset time, and tells clients not to retry."""
    bob = key(Quota("day", requests=2))
    await use(budgets, bob, 5)
    await use(budgets, bob, 5)
    with pytest.raises(RequestError) as refusal:
        await budgets.reserve(bob, amounts(1))
    error = refusal.value
    assert (error.status, error.type, error.code) == (429, "insufficient_quota", "insufficient_quota")
    assert error.should_retry is False
    assert error.message == (
        "API key 'bob' has exhausted its budget of 2 requests per day (UTC). It resets at 2026-11-27 00:00 "
        "UTC."
    )
    assert error.retry_after == pytest.approx((11 * 60 + 50) * 60)
    wall["now"] += DAY
    await use(budgets, bob, 5)


async def test_tokens_are_counted_from_the_ledger(budgets, ledger, wall):
    """Usage from before the process started counts; usage older than five hours leaves the five-hour
    window."""
    wall["now"] = NOON - 3600
    ledger.record(record(id="before"))
    wall["now"] = NOON
    bob = key(Quota("5h", tokens=150))
    await use(budgets, bob, 29)
    with pytest.raises(
        RequestError, match=r"150 tokens per five hours\. .* available again at 2026-11-26 16:10 UTC"
    ):
        await budgets.reserve(bob, amounts(1))
    wall["now"] = NOON + 4 * 3600 + 60
    budgets._usage_by_key["bob"].requested_at = -100.0
    await use(budgets, bob, 29)


async def test_requests_in_flight_are_reserved(budgets):
    """Concurrent requests cannot together exceed the remainder; one that reached no model releases its
    reservation."""
    bob = key(Quota("month", requests=2))
    first, second = await budgets.reserve(bob, amounts(10)), await budgets.reserve(bob, amounts(10))
    with pytest.raises(RequestError):
        await budgets.reserve(bob, amounts(10))
    first.settle({})
    first.settle({})
    third = await budgets.reserve(bob, amounts(10))
    second.settle(amounts(10))
    third.settle(amounts(10))
    with pytest.raises(RequestError):
        await budgets.reserve(bob, amounts(10))


async def test_usage_of_other_workers_counts(budgets, path, wall, ledger):
    """Rows written by another process count as soon as the ledger is read again."""
    bob = key(Quota("day", requests=3))
    await use(budgets, bob, 5)
    other = SqliteUsageLedger(path, Pricing(), wall_clock=lambda: NOON, keep_days=90)
    for number in range(3):
        other.record(record(id=f"elsewhere-{number}"))
    other.close()
    budgets._usage_by_key["bob"].requested_at -= CACHE_SECONDS + 1
    with pytest.raises(RequestError):
        await budgets.reserve(bob, amounts(5))


async def test_rereading_the_ledger_neither_repeats_nor_loses_usage(budgets, ledger):
    """A row counts once, however often the ledger is read in between."""
    bob = key(Quota("day", tokens=10**9))
    for number in range(40):
        claim = await budgets.reserve(bob, amounts(50))
        budgets._usage_by_key["bob"].requested_at -= CACHE_SECONDS + 1
        claim.settle(amounts(121))
        ledger.record(record(id=f"row-{number}"))
    await budgets.reserve(bob, amounts(1))
    tab = budgets._usage_by_key["bob"]
    used = tab.windows["day"].used["tokens"] + tab.used["tokens"]
    assert (used, tab.reserved) == (40 * 121, amounts(1))


@pytest.mark.parametrize("broken", ["none", "unwritable"])
async def test_an_unavailable_ledger_rejects_requests(broken, tmp_path, caplog):
    """A budget that cannot be read yields a 503 budget_unavailable."""
    blocked = tmp_path / "blocked"
    blocked.write_text("no directory")
    ledger = (
        None if broken == "none" else SqliteUsageLedger(blocked / "ledger.sqlite3", Pricing(), keep_days=90)
    )
    with pytest.raises(QproxyError, match="cannot be read") as refusal:
        await BudgetTracker(ledger).reserve(key(Quota("day", requests=1)), amounts(1))
    assert (refusal.value.status, refusal.value.code) == (503, "budget_unavailable")
    assert "cannot read budget: key=bob" in caplog.text
    if ledger is not None:
        ledger.close()


async def test_a_budget_holds_over_restarts(tmp_path):
    """A key created with a budget serves until it is exhausted, over restarts; `keys list` shows the
    budget."""
    file, ledger = tmp_path / "keys.json", tmp_path / "ledger.sqlite3"
    _, secret = key_file.create(file, name="bob", budgets=(Quota("week", requests=3),))
    headers = [(b"authorization", f"Bearer {secret}".encode())]
    settings = {"keys_file": str(file), "ledger": str(ledger)}
    async with world(**settings) as it:
        for body in (HELLO, {**HELLO, "model": "nobody-has-this"}):
            await it.post(body, headers=headers)
        assert (await it.post({"model": "x"}, headers=headers))[0] == 400
    async with world(**settings) as it:
        assert (await it.post(HELLO, headers=headers))[0] == 200
        status, head, body = await it.post(HELLO, headers=headers)
        assert (status, body["error"]["code"]) == (429, "insufficient_quota")
        assert head["x-should-retry"] == "false"
        assert "week (from Monday, Beijing)" in body["error"]["message"]
    assert "week: 3 requests" in "".join(keys_table(key_file.read(file), time.time()))


def test_budgets_on_the_command_line(tmp_path, monkeypatch, capsys):
    """`qproxy keys create` takes budgets for several windows, and rejects an unknown window."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    command = [
        "keys",
        "create",
        "--name",
        "bob",
        "--budget-requests",
        "5h=10",
        "--budget-tokens",
        "month=1000",
    ]
    assert cli.main([*command, "--budget-tokens", "5h=50"]) == 0
    (made,) = key_file.read(tmp_path / "keys.json")
    assert made.budgets == (Quota("5h", 10, 50), Quota("month", None, 1000))
    for wrong in ("fortnight=3", "day=0", "day"):
        with pytest.raises(SystemExit):
            cli.main(["keys", "create", "--budget-tokens", wrong])
    assert "does not start with a window" in capsys.readouterr().err


async def test_a_disconnected_client_is_charged_for_the_response_so_far(tmp_path):
    """A stream that its client closed costs the key about the tokens that were sent."""
    file, ledger = tmp_path / "keys.json", tmp_path / "ledger.sqlite3"
    _, secret = key_file.create(file, name="bob", budgets=(Quota("day", tokens=10_000),))
    async with world(keys_file=str(file), ledger=str(ledger)) as it:
        it.emulator.delay = 0.01
        fields = [(b"authorization", f"Bearer {secret}".encode())]
        body = b'{"model":"qwen3.7-plus","stream":true,"messages":[{"role":"user","content":"%b"}]}' % (
            b"word " * 400
        )
        async with it.client.request("POST", "/v1/chat/completions", headers=fields, body=body) as response:
            await response.receive()
        with trio.fail_after(2):
            while it.server.state.counters.in_flight:  # noqa: ASYNC110 - there is no event to await
                await trio.sleep(0.001)
        kept = it.server.state.ledger
        assert isinstance(kept, SqliteUsageLedger)
        rows = await kept.query(
            lambda file: file.execute("SELECT outcome, prompt_tokens, estimated FROM requests").fetchall()
        )
    assert rows == [("client_disconnected", 501, 1)]
