"""What a key may use within a window: counted from the ledger, refused with a word about when, shared by workers."""

import time

import pytest
import trio

from qproxy import cli
from qproxy.access import api_keys
from qproxy.access.api_keys import ApiKey, Quota
from qproxy.access.budgets import CACHE_SECONDS, BudgetTracker
from qproxy.cli.keys import keys_table
from qproxy.ledger import UsageLedger
from qproxy.wire.errors import QproxyError, RequestError
from tests.helpers import HELLO, world
from tests.ledger.test_writer import NOON
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
    made = UsageLedger(path, wall_clock=lambda: wall["now"])
    yield made
    made.close()


@pytest.fixture
def budgets(ledger, wall):
    return BudgetTracker(ledger, wall_clock=lambda: wall["now"])


async def use(budgets, of, tokens):
    (await budgets.claim(of, tokens)).settle(tokens, counts=True)


async def test_requests_of_a_day(budgets, wall):
    """A day's requests can be used once; the refusal says when there are more, and that trying again does not help."""
    bob = key(Quota("day", requests=2))
    await use(budgets, bob, 5)
    await use(budgets, bob, 5)
    with pytest.raises(RequestError) as refusal:
        await budgets.claim(bob, 1)
    error = refusal.value
    assert (error.status, error.type, error.code) == (429, "insufficient_quota", "insufficient_quota")
    assert error.should_retry is False
    assert error.message == (
        "The API key 'bob' has used up its budget of 2 requests a day (UTC). It is renewed at 2026-11-27 00:00 UTC."
    )
    assert error.retry_after == pytest.approx((11 * 60 + 50) * 60)
    wall["now"] += DAY
    await use(budgets, bob, 5)


async def test_tokens_are_counted_from_the_ledger(budgets, ledger, wall):
    """What was used before this process began counts; of five rolling hours, the first comes back after them."""
    wall["now"] = NOON - 3600
    ledger.finished(record(id="before"))
    wall["now"] = NOON
    bob = key(Quota("5h", tokens=150))
    await use(budgets, bob, 29)
    with pytest.raises(RequestError, match=r"150 tokens in five hours\. .* back at 2026-11-26 16:10 UTC"):
        await budgets.claim(bob, 1)
    wall["now"] = NOON + 4 * 3600 + 60
    budgets._tabs["bob"].asked = -100.0
    await use(budgets, bob, 29)


async def test_requests_under_way_are_held(budgets):
    """Requests at once cannot together use more than is left; one that reached no model gives its share back."""
    bob = key(Quota("month", requests=2))
    first, second = await budgets.claim(bob, 10), await budgets.claim(bob, 10)
    with pytest.raises(RequestError):
        await budgets.claim(bob, 10)
    first.settle(0, counts=False)
    first.settle(0, counts=False)
    third = await budgets.claim(bob, 10)
    second.settle(10, counts=True)
    third.settle(10, counts=True)
    with pytest.raises(RequestError):
        await budgets.claim(bob, 10)


async def test_other_workers_are_heard_of(budgets, path, wall, ledger):
    """What another process wrote counts as soon as the ledger is asked again."""
    bob = key(Quota("day", requests=3))
    await use(budgets, bob, 5)
    other = UsageLedger(path, wall_clock=lambda: NOON)
    for number in range(3):
        other.record(record(id=f"elsewhere-{number}"))
    other.close()
    budgets._tabs["bob"].asked -= CACHE_SECONDS + 1
    with pytest.raises(RequestError):
        await budgets.claim(bob, 5)


async def test_nothing_is_counted_twice_or_lost_by_asking(budgets, ledger):
    """However often the ledger is asked in between, a row is what it is."""
    bob = key(Quota("day", tokens=10**9))
    for number in range(40):
        claim = await budgets.claim(bob, 50)
        budgets._tabs["bob"].asked -= CACHE_SECONDS + 1
        claim.settle(121, counts=True)
        ledger.finished(record(id=f"row-{number}"))
    await budgets.claim(bob, 1)
    tab = budgets._tabs["bob"]
    assert (tab.spent["day"].tokens + tab.tokens, tab.held_requests) == (40 * 121, 1)


@pytest.mark.parametrize("broken", ["none", "unwritable"])
async def test_without_a_ledger_that_answers(broken, tmp_path, caplog):
    """A budget that cannot be read is not let loose: a 503 that says so."""
    blocked = tmp_path / "blocked"
    blocked.write_text("no directory")
    ledger = None if broken == "none" else UsageLedger(blocked / "ledger.sqlite3")
    with pytest.raises(QproxyError, match="cannot be read now") as refusal:
        await BudgetTracker(ledger).reserve(key(Quota("day", requests=1)), 1)
    assert (refusal.value.status, refusal.value.code) == (503, "budget_unavailable")
    assert "budget of the key bob" in caplog.text
    if ledger is not None:
        ledger.close()


async def test_end_to_end(tmp_path):
    """A key made with a budget serves until it is used up, over restarts; `usage` and `keys list` tell."""
    file, ledger = tmp_path / "keys.json", tmp_path / "ledger.sqlite3"
    _, secret = api_keys.create(file, name="bob", budgets=(Quota("week", requests=3),))
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
    assert "week: 3 requests" in "".join(keys_table(api_keys.read(file), time.time()))


def test_budgets_on_the_command_line(tmp_path, monkeypatch, capsys):
    """`qproxy keys create` takes budgets for several windows, and says what is no window."""
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
    (made,) = api_keys.read(tmp_path / "keys.json")
    assert made.budgets == (Quota("5h", 10, 50), Quota("month", None, 1000))
    for wrong in ("fortnight=3", "day=0", "day"):
        with pytest.raises(SystemExit):
            cli.main(["keys", "create", "--budget-tokens", wrong])
    assert "does not begin with a window" in capsys.readouterr().err


async def test_a_client_that_leaves_pays_for_what_it_got(tmp_path):
    """A stream that its client gave up costs the key about what had come."""
    file, ledger = tmp_path / "keys.json", tmp_path / "ledger.sqlite3"
    _, secret = api_keys.create(file, name="bob", budgets=(Quota("day", tokens=10_000),))
    async with world(keys_file=str(file), ledger=str(ledger)) as it:
        it.emulator.delay = 0.01
        fields = [(b"authorization", f"Bearer {secret}".encode())]
        body = b'{"model":"qwen3.7-plus","stream":true,"messages":[{"role":"user","content":"%b"}]}' % (
            b"word " * 400
        )
        async with it.client.request("POST", "/v1/chat/completions", headers=fields, body=body) as response:
            await response.receive()
        with trio.fail_after(2):
            while it.server.counters.in_flight:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.001)
        kept = it.server.ledger
        assert kept is not None
        rows = await kept.query(
            lambda file: file.execute("SELECT outcome, prompt_tokens, estimated FROM requests").fetchall()
        )
    assert rows == [("client_left", 501, 1)]
