"""Shared account state: pure merging, the file, and rate limits across processes."""

import itertools
import json
import os
import sqlite3
import stat
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qproxy.accounts import Account, AccountPool, quota_resets
from qproxy.accounts.condition import LoginState
from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.learned_rules import LEARNED_SECONDS, MAX_LEARNED, LearnedRules
from qproxy.accounts.rate_limit import AccountRateLimiter
from qproxy.accounts.shared_state import (
    HEARTBEAT,
    AccountState,
    AccountStateDelta,
    StateStoreError,
    acquire_rate,
    from_json,
    merge,
    to_json,
)
from qproxy.accounts.sync import AccountStateSync
from qproxy.backends.local.account_state import SqliteAccountState, read
from qproxy.wire.errors import LimitKind, RequestError, UpstreamError
from tests.accounts.factories import account, refusal
from tests.auth.helpers import signed

REST = Cooldown(100.0, 0.0, "quota", 200.0)


def test_states_survive_json():
    """A stored state can be read, even by a version with more or fewer fields."""
    standing = AccountState(
        "a",
        {"": REST},
        3,
        1,
        "429 x",
        5.0,
        "gone",
        LoginState("ready", "signed in", True, 9.0),
        {"tokens": (1.5, 2.0)},
        {"7": 2},
        {"p": (1, 70.0)},
        learned_rules={"system_reminder m": 7.0},
    )
    data = json.loads(json.dumps(to_json(standing)))
    assert from_json(data) == standing
    assert from_json({**data, "new": 1}) == standing
    assert from_json({}) == AccountState()


def test_a_state_of_the_first_version_is_read():
    """The first version's names for cooldowns, levels and the login's message are read."""
    written = {
        "name": "a",
        "rests": {
            "": {"until": 100.0, "since": 0.0, "why": "quota", "reset": 200.0, "strikes": 1, "probing": False}
        },
        "requests": 3,
        "failures": 1,
        "last_error": "429 x",
        "last_error_at": 5.0,
        "quota": "gone",
        "login": {"state": "ready", "words": "signed in", "usable": True, "expires_at": 9.0},
        "pace": {"tokens": [1.5, 2.0]},
        "slots": {"7": 2},
        "in_flight": {"p": [1, 70.0]},
    }
    assert from_json(written) == AccountState(
        "a",
        {"": replace(REST, failed_probes=1)},
        3,
        1,
        "429 x",
        5.0,
        "gone",
        LoginState("ready", "signed in", True, 9.0),
        {"tokens": (1.5, 2.0)},
        {"7": 2},
        {"p": (1, 70.0)},
    )
    with pytest.raises(ValueError, match="not an account state"):
        from_json({"cooldowns": {"": {"no": 1}}})


NEWS = st.builds(
    AccountStateDelta,
    st.just("a"),
    requests=st.integers(0, 9),
    failures=st.integers(0, 9),
    in_flight=st.integers(0, 9),
)


@given(st.lists(st.tuples(st.sampled_from("pqr"), NEWS), max_size=20))
def test_counts_add_up(posts):
    """Deltas of several processes add up in any order; in flight is each process's last count."""
    standing, wall = AccountState(), 1000.0
    for process, news in posts:
        standing = merge(standing, news, process, wall)
    assert standing.requests == standing.last_minute(wall) == sum(news.requests for _, news in posts)
    assert standing.failures == sum(news.failures for _, news in posts)
    assert standing.active_requests(wall) == sum(
        {process: news.in_flight for process, news in posts}.values()
    )
    assert standing.active_requests(wall + HEARTBEAT + 1) == standing.last_minute(wall + 70) == 0


def test_cooldowns_start_and_end():
    """A cooldown stays until a delta ends it."""
    standing = merge(AccountState(), AccountStateDelta("a", {"": REST, "m": REST}), "p", 0.0)
    standing = merge(standing, AccountStateDelta("a", {"m": None}), "q", 0.0)
    assert standing.cooldowns == {"": REST}


@given(st.lists(st.tuples(st.floats(-5, 20), st.integers(0, 50)), min_size=1, max_size=80))
def test_reservations_keep_the_rate_limit(steps):
    """For any clock, no more is granted than the bucket and its refill allow, and the rest is reported."""
    limits, standing, wall, forward = {"requests": 30, "tokens": 100}, AccountState(), 1000.0, 0.0
    requests = tokens = 0
    for step, count in steps:
        wall, forward = wall + step, forward + max(step, 0.0)
        standing, claim = acquire_rate(standing, limits, {"requests": 1, "tokens": count}, wall)
        requests, tokens = requests + claim.granted, tokens + claim.granted * count
        assert claim.granted or claim.available["requests"] < 1 or claim.available["tokens"] < count
    assert requests <= 30 + forward / 2 + 1e-3
    assert tokens <= 100 + forward * 100 / 60 + 1e-3


async def test_a_file_is_private_and_survives(tmp_path):
    """A state file is read by the next process, and readable by its owner only."""
    path = tmp_path / "new" / "accounts.db"
    first = SqliteAccountState(path, wall_clock=lambda: 50.0)
    await first.exchange({"id": AccountStateDelta("a", {"": REST}, requests=2, quota=("gone",))})
    await first.aclose()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
    second = SqliteAccountState(path, wall_clock=lambda: 51.0)
    (standing,) = (await second.exchange({"id": AccountStateDelta("a")})).values()
    assert (standing.cooldowns, standing.requests, standing.quota) == ({"": REST}, 2, "gone")
    assert read(path) == {"id": standing}
    assert read(tmp_path / "none.db") == {}
    await second.aclose()


BROKEN = {
    "no database": lambda path: path.write_bytes(b"x" * 4096),
    "a directory": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN.keys())
async def test_a_failing_store_stops_no_request(spoil, tmp_path, caplog):
    """An unusable file is logged once, and the accounts continue without it."""
    path = tmp_path / "accounts.db"
    spoil(path)
    with pytest.raises(StateStoreError, match=r"accounts\.db"):
        read(path)
    one = account("a", identity="id", rate_limiter=AccountRateLimiter(rpm=60))
    board = SqliteAccountState(path)
    accounts = AccountPool([one], sharing=AccountStateSync(board), queue_timeout=1.0, max_queue_size=100)
    for _ in range(2):
        await accounts.start_sync()
        async with accounts.lease("m") as leased:
            assert leased is one
    assert [record.message for record in caplog.records] == [
        message
        for message in {record.message for record in caplog.records}
        if "not shared with other workers" in message
    ]
    await board.aclose()


async def test_a_damaged_row_is_replaced(tmp_path):
    """A damaged row counts as an unused account and is overwritten; other rows are unaffected."""
    path = tmp_path / "accounts.db"
    board = SqliteAccountState(path)
    await board.exchange({"a": AccountStateDelta("a", requests=1), "b": AccountStateDelta("b", requests=2)})
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE accounts SET standing = '{' WHERE identity = 'a'")
    known = await board.exchange(
        {"a": AccountStateDelta("a", requests=3), "b": AccountStateDelta("b", requests=4)}
    )
    assert (known["a"].requests, known["b"].requests) == (3, 6)
    assert read(path) == known
    await board.aclose()


class Pair:
    """Two processes with the same account, one store, and separate wall clocks."""

    def __init__(self, path, fields):
        self.wall = 1_000_000.0
        self.boards = [SqliteAccountState(path, wall_clock=self.now) for _ in range(2)]
        self.ones = [account("a", identity="id", wall_clock=self.now, **fields()) for _ in range(2)]
        self.all = [
            AccountPool(
                [one],
                queue_timeout=0.01,
                sharing=AccountStateSync(board, wall_clock=self.now),
                max_queue_size=100,
            )
            for one, board in zip(self.ones, self.boards, strict=True)
        ]

    def now(self):
        return self.wall + time.monotonic()

    async def share(self, *which):
        for n in which:
            await self.all[n].start_sync()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for board in self.boards:
            await board.aclose()


def left_of(one):
    return one.rate_limiter.tokens.available(trio.current_time())


def resting(one):
    return {key: round(rest.until - trio.current_time()) for key, rest in one.cooldowns.items()}


async def test_cooldowns_are_shared(tmp_path):
    """A cooldown that starts or ends in one process starts or ends in the other."""
    async with Pair(tmp_path / "b.db", dict) as it:
        one, two = it.ones
        one.record_failure(refusal(LimitKind.QUOTA, "gone", waits=100.0), trio.current_time())
        one.record_failure(refusal(LimitKind.MODEL), trio.current_time(), "m")
        await it.share(0, 1)
        assert resting(two) == {"": 100, "m": 600}
        assert two.quota == "gone"
        two.record_success()
        await it.share(1, 0)
        assert resting(one) == {"m": 600}
        assert one.quota is None


ORDERS = list(itertools.permutations((0, 1, 0, 1)))


@pytest.mark.parametrize("order", sorted(set(ORDERS)), ids=str)
@pytest.mark.parametrize("moment", ["before", "during", "after"])
async def test_a_probes_success_reaches_every_process(tmp_path, order, moment):
    """The success counts in any order of exchanges, and for any change of the cooldown in the other
    process."""
    async with Pair(tmp_path / "b.db", dict) as it:
        one, two = it.ones
        one.record_failure(refusal(LimitKind.QUOTA, "gone", waits=100.0), trio.current_time())
        await it.share(0, 1, 0)

        def change():
            """Send a probe of the other process, whose client disconnects without a result."""
            two.cooldowns[""] = replace(two.cooldowns[""], until=trio.current_time() + 15.0, probing=True)

        if moment == "before":
            change()
        one.record_success("", trio.current_time())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.share, *order)
            await trio.lowlevel.checkpoint()
            if moment == "during":
                change()
        if moment == "after" and two.cooldowns:
            change()
        await it.share(0, 1, 0, 1)
        assert resting(one) == resting(two) == {}
        assert [each.condition(trio.current_time()).state for each in it.ones] == ["ready", "ready"]


async def test_a_rejection_after_a_success_is_kept(tmp_path):
    """A success ends only cooldowns that started before its request was sent, in any process."""
    async with Pair(tmp_path / "b.db", dict) as it:
        one, two = it.ones
        one.record_failure(refusal(LimitKind.QUOTA, waits=100.0), trio.current_time())
        await it.share(0, 1)
        sent = trio.current_time()
        await trio.sleep(0.01)
        two.record_failure(refusal(LimitKind.QUOTA, waits=200.0), trio.current_time())
        await it.share(1)
        one.record_success("", sent)
        await it.share(0, 1, 0)
        assert resting(one) == resting(two) == {"": 200}


async def test_results_are_shared(tmp_path):
    """A fault, its cause, the share of failures and the success that ends it hold for all processes."""
    async with Pair(tmp_path / "b.db", dict) as it:
        one, two = it.ones
        one.record_success("m")
        two.record_failure(UpstreamError("no route to sk-secret12345", status=502), trio.current_time(), "m")
        await it.share(0, 1, 0)
        for each in it.ones:
            found = each.condition(trio.current_time())
            assert found.state == "failing"
            assert (
                found.message == "1 of the last 2 requests failed: 502 upstream_error: no route to [hidden]"
            )
            assert each.failed_model == "m"
        one.record_success("m")
        await it.share(0, 1)
        assert [each.condition(trio.current_time()).state for each in it.ones] == ["ready", "ready"]
        assert [each.results for each in it.ones] == ["+-+", "+-+"]


async def test_a_stored_cooldown_ends_when_its_reason_must_have(tmp_path):
    """A rate limit never lasts for days, whatever another version stored and whatever its clock showed."""
    async with Pair(tmp_path / "b.db", dict) as it:
        one, two = it.ones
        now = trio.current_time()
        one.cooldowns = {
            "": Cooldown(now + 1e7, now + 1e6, "a minute's limit"),
            "m": Cooldown(now + 1e7, now, "quota"),
            "x": Cooldown(now + 1e7, now, "a reason of another version"),
        }
        await it.share(0, 1)
        assert resting(two) == {"": 300, "m": round(quota_resets.MAX_RESET), "x": 60}


async def test_changes_during_an_exchange_are_kept(tmp_path):
    """A cooldown that starts during an exchange stays, and is published by the next one."""
    async with Pair(tmp_path / "b.db", dict) as it:
        one, two = it.ones
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.share, 0)
            await trio.lowlevel.checkpoint()
            one.record_failure(refusal(LimitKind.QUOTA, waits=100.0), trio.current_time())
        assert resting(one) == {"": 100}
        await it.share(0, 1)
        assert resting(two) == {"": 100}


async def test_a_wall_clock_jump_moves_no_cooldown(tmp_path):
    """Within a process a cooldown follows the monotonic clock."""
    async with Pair(tmp_path / "b.db", dict) as it:
        one, two = it.ones
        one.record_failure(refusal(LimitKind.QUOTA, waits=100.0), trio.current_time())
        await it.share(0, 1)
        it.wall -= 86400.0
        await it.share(0, 1, 0, 1)
        assert resting(one) == resting(two) == {"": 100}


async def test_one_rate_limit_for_two_processes(tmp_path):
    """Two processes together get what one would get, and returned amounts are available to both."""
    async with Pair(tmp_path / "b.db", lambda: {"rate_limiter": AccountRateLimiter(rpm=20, tpm=1000)}) as it:
        got = 0
        for n in range(60):
            with suppress(RequestError):
                async with it.all[n % 2].lease("m", tokens=40, used=lambda: 10):
                    got += 1
        assert got == 20
        await it.share(0, 1, 0)
        assert [round(left_of(one), -2) for one in it.ones] == [800, 800]


async def test_the_state_of_a_login_is_shared(tmp_path):
    """The shared state has a login's state and expiry, but no token."""
    board = SqliteAccountState(tmp_path / "b.db")
    async with signed(tmp_path, interval=0.05) as it:  # polled in real time: the board works in a thread
        accounts = AccountPool(
            [Account("me", it.source(), identity="id")],
            sharing=AccountStateSync(board),
            queue_timeout=1.0,
            max_queue_size=100,
        )
        await accounts.start_sync()
        login = read(board.path)["id"].login
        assert login is not None
        assert (login.usable, login.expires_at) == (False, None)
        await it.sign_in()
        await accounts.accounts[0].source.credential()
        await accounts.start_sync()
        login = read(board.path)["id"].login
        assert login is not None
        assert (login.state, login.expires_at) == ("ready", it.on_disk().expiry_date / 1000)
        assert it.on_disk().access_token not in repr(read(board.path))
    await board.aclose()


CLAIMS = """
import sys, trio
from pathlib import Path
from qproxy.backends.local.account_state import SqliteAccountState

async def main():
    store = SqliteAccountState(Path(sys.argv[1]), wall_clock=lambda: 1e9)
    one = {"requests": 1}
    granted = [(await store.acquire("id", {"requests": 100}, one, None)).granted for _ in range(60)]
    print(sum(granted))

trio.run(main)
"""


async def test_many_processes_keep_one_rate_limit(tmp_path):
    """Four concurrent processes get exactly the available amount, even if one is killed in between."""
    path, counts = str(tmp_path / "b.db"), []
    run = partial(trio.run_process, [sys.executable, "-c", CLAIMS, path], capture_stdout=True)

    async def one():
        counts.append(int((await run()).stdout))

    async with trio.open_nursery() as nursery:
        victim = await nursery.start(
            partial(trio.run_process, [sys.executable, "-c", CLAIMS, path + "x"], check=False)
        )
        for _ in range(4):
            nursery.start_soon(one)
        victim.kill()
    assert sum(counts) == 100


def test_an_empty_delta_is_recognized():
    """A delta without changes is empty."""
    assert AccountStateDelta("a").is_empty
    assert not replace(AccountStateDelta("a"), quota=(None,)).is_empty


def test_learned_rules_are_bounded():
    """The newest rules stay, and none for longer than a month, in an account and in the store."""
    rules = LearnedRules()
    for number in range(MAX_LEARNED + 5):
        rules.add(f"m{number}", ["temperature"], float(number))
    assert len(list(rules)) == MAX_LEARNED
    assert rules.for_model("m0", 0.0) == {}
    assert rules.for_model("m200", 300.0) == {"temperature": True}
    assert rules.for_model("m200", 300.0 + LEARNED_SECONDS) == {}
    many = {f"temperature m{number}": float(number) for number in range(MAX_LEARNED + 5)}
    merged = merge(AccountState(), AccountStateDelta("a", learned_rules=many), "p", 300.0)
    assert len(merged.learned_rules) == MAX_LEARNED


async def test_learned_rules_are_shared_and_forgotten(tmp_path):
    """A rule that one process learns applies in the other and after a restart, until either forgets it."""
    async with Pair(tmp_path / "b.db", dict) as two:
        one, other = two.ones
        one.learned_rules.add("m", ["system_reminder"], two.now())
        other.learned_rules.add("m", ["developer_role"], two.now())
        await two.share(0, 1, 0)
        both = {"developer_role": True, "system_reminder": True}
        assert one.rule_switches("m", {}) == other.rule_switches("m", {}) == both
        assert set(read(tmp_path / "b.db")["id"].learned_rules) == {"developer_role m", "system_reminder m"}
        other.learned_rules.forget()
        await two.share(1, 0, 1)
        assert one.rule_switches("m", {}) == other.rule_switches("m", {}) == {}
        assert not read(tmp_path / "b.db")["id"].learned_rules


def test_a_configured_switch_outweighs_a_learned_one():
    """The operator's setting takes precedence, for all accounts or for one."""
    one = account("a", rules={"temperature": False}, wall_clock=lambda: 1.0)
    one.learned_rules.add("m", ["temperature", "top_p", "seed"], 1.0)
    assert one.rule_switches("m", {"top_p": False}) == {"temperature": False, "top_p": False, "seed": True}
