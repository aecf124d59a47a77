"""Accounts of two processes with one store: probes, circuits, slots, events."""

from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from qproxy.accounts import AccountPool
from qproxy.accounts.cooldowns import PROBE_SECONDS
from qproxy.accounts.rate_limit import AccountRateLimiter
from qproxy.accounts.shared_state import AccountState, AccountStateDelta
from qproxy.accounts.sync import CAPACITY_RETRY, AccountStateSync
from qproxy.limits.circuit_breaker import THRESHOLD
from qproxy.wire.errors import LimitKind, OverloadedError, RetryHint, UpstreamError
from tests.accounts.factories import account, refusal
from tests.backends.fakes import FakeAccountState

OUTAGE = UpstreamError("down", status=502, retry=RetryHint.SOON)


class Processes:
    """Pools of several processes, whose accounts are the same."""

    def __init__(self, count=2, names=("a",), **fields):
        self.states: dict[str, AccountState] = {}
        self.stores = [FakeAccountState(self.states, f"{n}", trio.current_time) for n in range(count)]
        self.pools = [
            AccountPool(
                [account(name, identity=name, wall_clock=trio.current_time, **fields) for name in names],
                queue_timeout=5,
                max_queue_size=10,
                sharing=AccountStateSync(store, wall_clock=trio.current_time),
            )
            for store in self.stores
        ]

    async def share(self):
        for pool in (*self.pools, *self.pools):
            await pool.start_sync()

    def first(self, n):
        return self.pools[n].accounts[0]


@asynccontextmanager
async def leases(pool, count):
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(pool.lease("m")) for _ in range(count)]


async def test_one_process_probes_and_the_others_use_other_accounts(autojump_clock):
    """The cooldown expires everywhere at once; before any exchange, one request of all is the probe."""
    processes = Processes(4, names=("a", "b"))
    processes.first(0).record_failure(refusal(LimitKind.QUOTA), trio.current_time())
    await processes.share()
    await trio.sleep(3600)
    used = []

    async def ask(pool):
        async with pool.lease("m") as leased:
            used.append(leased.name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for pool in processes.pools:
            nursery.start_soon(ask, pool)
    assert sorted(used) == ["a", "b", "b", "b"]
    await processes.share()
    for n in range(4):
        assert processes.first(n).cooldowns[""].probing
    processes.first(used.index("a")).record_success("m", trio.current_time())
    await processes.share()
    assert all(processes.first(n).cooldowns == {} for n in range(4))


async def test_a_single_account_is_used_though_another_process_probes(autojump_clock):
    """A cooldown means that others are preferred; without any, requests go on, and none waits."""
    processes = Processes(2, rate_limiter=AccountRateLimiter(rpm=10))
    processes.first(0).record_failure(refusal(LimitKind.QUOTA), trio.current_time())
    await processes.share()
    await trio.sleep(3600)
    started = trio.current_time()
    async with leases(processes.pools[0], 1), leases(processes.pools[1], 2):
        assert trio.current_time() == started
        assert processes.first(1).cooldowns[""].until == started + PROBE_SECONDS
        await processes.share()
    left = [round(processes.first(n).rate_limiter.requests.available(trio.current_time())) for n in (0, 1)]
    assert left == [7, 7]


async def test_an_open_circuit_is_a_hint_for_other_processes(autojump_clock):
    """They need no failures of their own to leave a server that is down, and return when it responds."""
    processes = Processes(3)
    one, two, three = (processes.first(n) for n in range(3))
    for _ in range(THRESHOLD):
        one.record_failure(OUTAGE, trio.current_time())
    await processes.share()
    now = trio.current_time()
    assert one.circuit_breaker.wait(now) > 0
    assert two.circuit_breaker.wait(now) == three.circuit_breaker.wait(now) == one.circuit_breaker.wait(now)
    await trio.sleep(2)
    two.before_request("m", trio.current_time())  # the one trial
    await processes.share()
    assert one.circuit_breaker.state(trio.current_time()) == "open"
    two.record_success("m", trio.current_time())
    await processes.share()
    assert [each.circuit_breaker.failures for each in (one, two, three)] == [0, 0, 0]


async def test_an_old_circuit_opens_nothing(autojump_clock):
    """A process that starts after the pause learns of it, and is not stopped."""
    processes = Processes(2)
    for _ in range(THRESHOLD):
        processes.first(0).record_failure(OUTAGE, trio.current_time())
    await processes.pools[0].start_sync()
    await trio.sleep(60)
    await processes.pools[1].start_sync()
    assert processes.first(1).circuit_breaker.state(trio.current_time()) == "closed"


async def test_slots_are_those_of_all_processes(autojump_clock):
    """A request waits for a slot that another process holds, and gets it soon after its release."""
    processes = Processes(2, max_in_flight=2)
    async with leases(processes.pools[0], 2):
        with pytest.raises(OverloadedError, match="max_in_flight"):
            await processes.pools[1].acquire(request_of(processes.pools[1]))
    async with leases(processes.pools[1], 2), trio.open_nursery() as nursery:
        ended = trio.current_time()

        async def wait():
            async with leases(processes.pools[0], 1):
                assert trio.current_time() <= ended + 1 + CAPACITY_RETRY

        nursery.start_soon(wait)
        await trio.sleep(1)
        processes.stores[1].release("a")
    processes.stores[1]._slots["a"] += 1
    assert [each.in_flight for each in (processes.first(0), processes.first(1))] == [0, 0]


def request_of(pool):
    return pool.lease("m")._request


async def test_a_cancelled_request_leaves_nothing_behind(autojump_clock):
    """Wherever it is cancelled, its slot, its tokens and its place are free again."""
    processes = Processes(1, max_in_flight=1, rate_limiter=AccountRateLimiter(tpm=100))
    (pool,), one = processes.pools, processes.first(0)
    await pool.start_sync()
    for steps in range(6):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel_later(scope, steps):
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel_later, scope, steps)
                async with pool.lease("m", tokens=50, used=lambda: 0):
                    await trio.sleep(0.001)
        assert (one.in_flight, pool.queue_size, processes.stores[0]._slots.get("a", 0)) == (0, 0, 0)
        await pool.start_sync()
        assert one.rate_limiter.tokens.available(trio.current_time()) > 99


async def test_requests_in_flight_elsewhere_are_known(autojump_clock):
    """Each process knows the others' requests, without its own."""
    processes = Processes(3)
    async with leases(processes.pools[0], 2), leases(processes.pools[1], 3):
        await processes.share()
        assert [processes.first(n).in_flight_elsewhere for n in range(3)] == [3, 2, 5]
    await processes.share()
    assert [processes.first(n).in_flight_elsewhere for n in range(3)] == [0, 0, 0]


async def test_an_event_is_exchanged_at_once(autojump_clock):
    """A cooldown and its end do not wait for the next second; ordinary successes do."""
    processes = Processes(1)
    (pool,), one = processes.pools, processes.first(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync)
        await trio.sleep(0.35)
        one.record_failure(refusal(LimitKind.QUOTA), trio.current_time())
        await trio.testing.wait_all_tasks_blocked()
        assert processes.states["a"].cooldowns
        await trio.sleep(0.15)
        one.record_success("m", trio.current_time())
        await trio.testing.wait_all_tasks_blocked()
        assert not processes.states["a"].cooldowns
        await trio.sleep(0.15)
        one.record_success("m", trio.current_time())
        await trio.testing.wait_all_tasks_blocked()
        assert processes.states["a"].results == "-+"
        nursery.cancel_scope.cancel()
    assert processes.states["a"].results == "-++"


async def test_many_events_are_few_exchanges(autojump_clock):
    """A storm of failures costs a bounded number of exchanges."""
    processes = Processes(1)
    (pool,), one = processes.pools, processes.first(0)
    exchanges = []

    class Counting(FakeAccountState):
        async def exchange(self, delta: Mapping[str, AccountStateDelta]) -> Mapping[str, AccountState]:
            exchanges.append(trio.current_time())
            return await super().exchange(delta)

    store = Counting(processes.states, "0", trio.current_time)
    pool.sync = AccountStateSync(store, wall_clock=trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync)
        for _ in range(1000):
            one.record_failure(refusal(LimitKind.QUOTA), trio.current_time())
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert len(exchanges) <= 12
