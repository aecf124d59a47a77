"""Account states on a real engine: races, lost data, partitions, clocks, cancellation. Counts, not times."""

import random
from dataclasses import replace

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.shared_state import AccountState, AccountStateDelta, SharedCircuit
from qproxy.backends.redis.account_copy import COUNT_SECONDS
from qproxy.wire.errors import QproxyError
from tests.backends.fakes import FakeAccountState
from tests.backends.redis.link import Link
from tests.backends.redis.members import open_account_state
from tests.backends.redis.server import Server

HOUR = 3600.0
EMPTY = AccountStateDelta("a")


def cooldown(seconds, reason="quota"):
    now = trio.current_time()
    return Cooldown(now + seconds, now, reason)


def started(key="", seconds=HOUR):
    """Return the change of a cooldown that starts now."""
    return AccountStateDelta("a", {key: cooldown(seconds)}, quota=("used up",))


async def view(store, delta=EMPTY):
    return (await store.exchange({"id": delta}))["id"]


async def test_an_event_reaches_the_others_by_a_message(valkey, nursery, autojump_clock):
    """They hear of it at once, its sender does not; without messages a second passes."""
    one, two = [await open_account_state(valkey, nursery) for _ in range(2)]
    for store in (one, two):
        await view(store)
        await store.wait_change(1)
        await store.wait_change(1)
    before = trio.current_time()
    await view(one, started())
    await two.wait_change(1)
    assert trio.current_time() == before
    assert (await view(two)).quota == "used up"
    await one.wait_change(1)
    assert trio.current_time() == before + 1
    await view(one, AccountStateDelta("a", requests=1))
    await two.wait_change(1)
    assert trio.current_time() == before + 2


async def test_counts_are_published_each_ten_seconds(valkey, nursery, autojump_clock):
    """Not each second; an exchange without news costs one command that changes nothing."""
    link = Link(valkey)
    store = await open_account_state(valkey, nursery, link=link)
    await view(store)
    before = link.commands
    for _ in range(100):
        await view(store, AccountStateDelta("a", requests=1, in_flight=1))
        await trio.sleep(1)
    assert link.commands - before == 100
    assert 100 - COUNT_SECONDS <= int(valkey.execute("HGET", store._copy("id").key, "requests")) <= 100
    version = valkey.execute("HGET", store._copy("id").key, "v")
    await view(store, started())
    assert int(valkey.execute("HGET", store._copy("id").key, "v")) > int(version)


async def test_older_results_do_not_hide_a_failure(valkey, nursery, autojump_clock):
    """Successes of another process that are published later are not appended after the failures."""
    one, two = [await open_account_state(valkey, nursery) for _ in range(2)]
    for store in (one, two):
        await view(store, AccountStateDelta("a", requests=1, results="+", last_success_at=0.0))
    await trio.sleep(1)
    worked = AccountStateDelta("a", requests=20, results="+" * 20, last_success_at=trio.current_time())
    await view(one, worked)
    await trio.sleep(1)
    await view(two, AccountStateDelta("a", results="---", failures=3, last_fault_at=trio.current_time()))
    for _ in range(15):
        await view(one)
        await trio.sleep(1)
    state = await view(two, AccountStateDelta("a", quota=("x",)))
    assert (state.results, state.requests) == ("++---", 22)
    await view(one, replace(worked, last_success_at=trio.current_time(), results="+"))
    await trio.sleep(COUNT_SECONDS)
    await view(one, AccountStateDelta("a", quota=("y",)))
    assert (await view(two)).results == "++---+"


async def test_of_many_processes_one_probes(valkey, nursery, autojump_clock):
    """Ten processes claim at once, again and again: one gets each probe."""
    stores = [await open_account_state(valkey, nursery) for _ in range(10)]
    await view(stores[0], started("m", 5))
    claimed = []

    async def claim(store):
        now = trio.current_time()
        probe = replace((await view(store)).cooldowns["m"], until=now + 15, probing=True)
        claimed.append(await store.claim_probe("id", {"m": probe}))

    for _ in range(4):
        await trio.sleep(15)
        claimed.clear()
        async with trio.open_nursery() as group:
            for store in stores:
                group.start_soon(claim, store)
        assert claimed.count(True) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_slots_are_never_more_than_the_limit(seed, valkey, nursery, autojump_clock):
    """Five processes take and return at random, some are cancelled: in the end all slots are free."""
    stores = [await open_account_state(valkey, nursery) for _ in range(5)]
    chance, in_flight, most, granted = random.Random(seed), 0, 0, 0

    async def use(store, start, seconds, patience):
        nonlocal in_flight, most, granted
        await trio.sleep(start)
        grant = None
        with trio.move_on_after(patience):
            while not (grant and grant.granted):
                grant = await store.acquire("id", {}, {"requests": 1}, 7)
                if not grant.granted:
                    assert grant.at_capacity
                    await trio.sleep(0.25)
        if grant and grant.granted:
            in_flight, granted = in_flight + 1, granted + 1
            most = max(most, in_flight)
            await trio.sleep(seconds)
            in_flight -= 1
            store.release("id")

    async with trio.open_nursery() as group:
        for _ in range(150):
            patience = chance.choice((0.0, 0.1, 60.0, 60.0))
            group.start_soon(
                use, chance.choice(stores), chance.uniform(0, 10), chance.uniform(0, 0.5), patience
            )
    assert 6 <= most <= 7  # a process may have one in advance
    assert granted > 75
    await trio.sleep(2)
    assert float(valkey.execute("HGET", stores[0]._limited["id"].key, "h:in_flight")) == 0


async def test_slots_of_a_process_that_is_gone_become_free(valkey, nursery, autojump_clock):
    """After the end of its lease; one that is still there renews it."""
    async with trio.open_nursery() as process:
        gone = await open_account_state(valkey, process)
        for _ in range(2):
            assert (await gone.acquire("id", {}, {"requests": 1}, 3)).granted
        process.cancel_scope.cancel()
    store, other = [await open_account_state(valkey, nursery) for _ in range(2)]
    assert (await store.acquire("id", {}, {"requests": 1}, 3)).granted
    await trio.sleep(1)
    assert not (await other.acquire("id", {}, {"requests": 1}, 3)).granted
    await trio.sleep(31)
    for _ in range(2):
        assert (await other.acquire("id", {}, {"requests": 1}, 3)).granted
    assert not (await other.acquire("id", {}, {"requests": 1}, 3)).granted


@pytest.fixture
def server():
    """A server of its own, which may be killed."""
    server = Server()
    yield server
    server.close()


async def test_a_server_that_has_lost_everything_gets_it_back(server, nursery, autojump_clock):
    """Killed and restarted without data: any process offers what all knew, and counts are not doubled."""
    stores = [await open_account_state(server, nursery) for _ in range(3)]
    circuit = SharedCircuit(trio.current_time(), trio.current_time() + 30, 6)
    known = replace(
        started(),
        requests=7,
        failures=2,
        last_error="429 x",
        last_error_at=trio.current_time(),
        last_message="gone",
        results="+--",
        learned_rules={"no_tools m": 1.0},
        circuit=circuit,
    )
    state = await view(stores[0], known)
    for store in stores:
        assert await view(store) == state
    server.kill()
    server.start()
    await trio.sleep(1)
    for store in stores:
        with trio.fail_after(60):
            await store._client.wait_connected()
    for store in (*stores, *stores):
        await view(store)
        await trio.sleep(COUNT_SECONDS)
    fresh = await open_account_state(server, nursery)
    expected = await view(stores[1])
    assert (expected.requests, expected.failures, expected.results) == (7, 2, "+--")
    assert (expected.cooldowns, expected.quota, expected.circuit) == (state.cooldowns, "used up", circuit)
    assert await view(fresh) == expected


@pytest.mark.parametrize("seed", range(4))
async def test_lost_data_doubles_no_count(seed, server, nursery, autojump_clock):
    """Whichever process comes first, with news or without: the server knows again what any of them knew."""
    chance = random.Random(seed)
    stores = [await open_account_state(server, nursery) for _ in range(3)]
    requests = known = 0
    for _ in range(4):
        for _ in range(12):
            count = chance.randrange(4)
            requests += count
            delta = AccountStateDelta("a", requests=count, quota=("x",) if chance.random() < 0.4 else None)
            await view(chance.choice(stores), delta)
            await trio.sleep(chance.choice((0, 0.3, 4)))
        for store in (*stores, *stores, *stores):
            await trio.sleep(COUNT_SECONDS / 2)
            await view(store)
        found = int(server.execute("HGET", stores[0]._copy("id").key, "requests"))
        assert known <= found <= requests
        known = max(store._copy("id").state().requests for store in stores)
        server.execute("FLUSHALL")
    assert known >= requests - 4 * COUNT_SECONDS


@pytest.mark.parametrize("seed", range(4))
async def test_what_happens_counts_once_over_faults(seed, server, nursery, autojump_clock):
    """Over cut and frozen connections, with late executions: the server's counts are the processes'."""
    chance = random.Random(seed)
    links = [Link(server) for _ in range(3)]
    stores = [await open_account_state(server, nursery, link=link) for link in links]
    requests = 0
    for _ in range(60):
        link, store = chance.choice([*zip(links, stores, strict=True)])
        count = chance.randrange(4)
        requests += count
        event = chance.random() < 0.5
        before = trio.current_time()
        await view(store, AccountStateDelta("a", requests=count, quota=("x",) if event else None))
        assert trio.current_time() - before <= 0.25
        match chance.randrange(6):
            case 0:
                await link.cut()
            case 1:
                link.restore()
            case 2:
                link.freeze()
            case 3:
                await link.thaw()
        await trio.sleep(chance.choice((0, 0.1, 3)))
    for link in links:
        link.restore()
        await link.thaw()
    await trio.sleep(20)
    for store in stores:
        await view(store)
        await store.aclose()
        assert store.is_settled
    assert int(server.execute("HGET", stores[0]._copy("id").key, "requests")) == requests


async def test_without_the_server_what_was_known_goes_on(valkey, nursery, autojump_clock):
    """States stay, what happens here is added to them, a probe is not prevented, and nothing waits long."""
    links = [Link(valkey) for _ in range(2)]
    one, two = [await open_account_state(valkey, nursery, link=link) for link in links]
    await view(two)
    state = await view(one, started())
    for link in links:
        await link.cut()
    await trio.sleep(0.1)
    before = trio.current_time()
    assert (await view(one)).cooldowns == state.cooldowns
    here = await view(one, AccountStateDelta("a", {"m": cooldown(60)}, requests=3))
    assert here.cooldowns.keys() == {"", "m"}
    assert here.requests == 3
    assert await one.claim_probe("id", {"m": replace(here.cooldowns["m"], probing=True)})
    assert trio.current_time() == before
    for link in links:
        link.restore()
    await trio.sleep(5)
    await view(one)
    assert (await view(two)).cooldowns.keys() == {"", "m"}


async def test_slots_without_the_server_are_a_share(valkey, nursery, autojump_clock):
    """Each process has its part of the limit, and what it holds counts; with one process, all of it."""
    links = [Link(valkey) for _ in range(2)]
    stores = [await open_account_state(valkey, nursery, link=link) for link in links]
    await trio.sleep(6)
    for store in stores:
        assert (await store.acquire("id", {}, {"requests": 1}, 6)).granted
    for link in links:
        await link.cut()
    await trio.sleep(0.1)
    for store in stores:
        grants = [await store.acquire("id", {}, {"requests": 1}, 6) for _ in range(4)]
        assert [grant.granted for grant in grants] == [True, True, False, False]
        assert grants[3].at_capacity
        store.release("id")
        assert (await store.acquire("id", {}, {"requests": 1}, 6)).granted
    for link in links:
        link.restore()
    await trio.sleep(5)
    assert not (await stores[0].acquire("id", {}, {"requests": 1}, 6)).granted


async def test_a_closed_policy_rejects(valkey, nursery, autojump_clock):
    """A request to an account with limits gets a 503 while the server is away."""
    link = Link(valkey)
    store = await open_account_state(valkey, nursery, link=link, policy="closed")
    await link.cut()
    await trio.sleep(0.1)
    with pytest.raises(QproxyError) as error:
        await store.acquire("id", {"requests": 5}, {"requests": 1}, None)
    assert (error.value.status, error.value.code) == (503, "shared_state_unavailable")


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
async def test_the_servers_clock_counts(skew, valkey, nursery, autojump_clock):
    """A machine whose clock is an hour off sees the same cooldown, and ends it at the same moment."""
    right = await open_account_state(valkey, nursery)
    wrong = await open_account_state(valkey, nursery, wall_clock=lambda: trio.current_time() + skew)
    await view(right, started())
    await view(wrong)
    now = trio.current_time()
    (seen,) = (await view(wrong)).cooldowns.values()
    assert seen.until == pytest.approx(now + skew + HOUR, abs=1e-3)
    mine = Cooldown(now + skew + 2 * HOUR, now + skew, "quota")
    await view(wrong, AccountStateDelta("a", {"m": mine}, requests=5))
    state = await view(right)
    assert state.cooldowns["m"].until == pytest.approx(now + 2 * HOUR, abs=1e-3)
    assert state.last_minute(now) == (await view(wrong)).last_minute(now + skew) == 5
    await trio.sleep(1)
    await view(wrong, AccountStateDelta("a", woken_at=trio.current_time() + skew))
    assert (await view(right)).cooldowns == {}
    await trio.sleep(1)
    await view(right, started())
    assert len((await view(wrong)).cooldowns) == 1


async def test_a_command_of_an_operator_waits_for_the_servers_time(valkey, nursery, autojump_clock):
    """A process that has read nothing yet publishes by the server's clock."""
    store = await open_account_state(valkey, nursery)
    await view(store, started())
    await trio.sleep(1)
    command = await open_account_state(valkey, nursery, wall_clock=lambda: trio.current_time() - HOUR)
    await view(command, AccountStateDelta("a", woken_at=trio.current_time() - HOUR))
    assert (await view(store)).cooldowns == {}


@pytest.mark.parametrize("steps", range(12))
async def test_a_cancelled_exchange_loses_nothing(steps, valkey, nursery, autojump_clock):
    """Wherever a call is cancelled, what happened is published once, and slots return."""
    store = await open_account_state(valkey, nursery)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as group:

            async def cancel_later():
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            group.start_soon(cancel_later)
            await view(store, AccountStateDelta("a", requests=2, quota=("x",)))
            grant = await store.acquire("id", {"requests": 10}, {"requests": 1}, 1)
            await store.claim_probe("id", {"": cooldown(15)})
            if grant.granted:
                store.release("id")
    await trio.sleep(2)
    await view(store)
    assert int(valkey.execute("HGET", store._copy("id").key, "requests") or 0) == 2
    assert (await store.acquire("id", {"requests": 10}, {"requests": 1}, 1)).granted


async def test_a_damaged_state_is_ignored(valkey, nursery, autojump_clock, caplog):
    """What another program wrote stops no request and no connection."""
    store = await open_account_state(valkey, nursery)
    await view(store, started())
    key = store._copy("id").key
    for field, value in (
        ("c:", "x"),
        ("error", "1 {"),
        ("v", "99999999999999999"),
        ("f:p", "?"),
        ("e:", "y"),
    ):
        valkey.execute("HSET", key, field, value)
        assert (await view(store)).quota == "used up"
    await view(store, started("m"))
    assert store._client.is_connected
    assert "damaged" in caplog.text


DELTAS = st.builds(
    AccountStateDelta,
    st.just("a"),
    cooldowns=st.dictionaries(
        st.sampled_from(["", "m"]),
        st.none()
        | st.builds(
            Cooldown,
            until=st.integers(1000, 1200).map(float),
            since=st.integers(1000, 1090).map(float),
            reason=st.sampled_from(["quota", "model"]),
            failed_probes=st.integers(0, 3),
            probing=st.booleans(),
        ),
        max_size=2,
    ),
    requests=st.integers(0, 3),
    results=st.text("+-", max_size=3),
    successes=st.dictionaries(st.sampled_from(["", "m"]), st.integers(1000, 1090).map(float), max_size=1),
    woken_at=st.none() | st.integers(1000, 1090).map(float),
    quota=st.none() | st.tuples(st.none() | st.just("gone")),
    last_fault_at=st.none() | st.integers(1000, 1090).map(float),
    last_success_at=st.none() | st.integers(1000, 1090).map(float),
)


@given(st.lists(st.tuples(st.integers(0, 1), DELTAS), max_size=25))
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_the_script_merges_as_the_other_members_do(valkey, steps):
    """The same changes give the same cooldowns, results and counts as in the pure functions."""

    async def main():
        valkey.execute("FLUSHALL")
        now = 1100.0
        states: dict[str, AccountState] = {}
        fakes = [FakeAccountState(states, name, lambda: now) for name in "pq"]
        async with trio.open_nursery() as nursery:
            stores = [await open_account_state(valkey, nursery, lambda: now) for _ in range(2)]
            for n, delta in steps:
                now += 1
                await fakes[n].exchange({"id": delta})
                await view(stores[n], delta)
            for fake, store in zip(fakes, stores, strict=True):
                expected = (await fake.exchange({"id": EMPTY})).get("id", AccountState())
                found = await view(store)
                assert found.cooldowns == expected.cooldowns
                assert (found.quota, found.woken_at) == (expected.quota, expected.woken_at)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
