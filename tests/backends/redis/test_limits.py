"""Limits that two homes share on a real server, by counts: nothing is granted twice, whatever breaks."""

import random
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from qproxy.access.api_keys import ApiKey, Quota
from qproxy.backends.redis.usage_limiter import RedisUsageLimiter
from qproxy.limits.windows import WINDOWS
from qproxy.wire.errors import QproxyError, RequestError
from tests.backends.fakes import FakeLedger
from tests.backends.redis.link import Link
from tests.backends.redis.members import open_subjects
from tests.backends.redis.server import Server

REQUEST = {"requests": 1, "tokens": 10}


def key(**fields):
    return ApiKey("key_1", "0" * 64, "bob", **fields)


class Home:
    """One process with its link, and a count of what it granted."""

    def __init__(self, link, limiter):
        self.link = link
        self.limiter = limiter
        self.granted = 0
        self.refused = 0
        self.failed = 0

    @property
    def client(self):
        return self.limiter._subjects.client

    async def request(self, limited, seconds=0.0):
        try:
            reservation = await self.limiter.reserve(limited, REQUEST)
        except RequestError as error:
            self.refused += error.status == 429
            return error
        except QproxyError as error:
            self.failed += error.status == 503
            return error
        self.granted += 1
        try:
            await trio.sleep(seconds)
        finally:
            reservation.settle({"tokens": 10}, attempted=True, answered=True)

    async def hammer(self, limited, per_second, until):
        """Send requests until a time, each concurrently."""
        async with trio.open_nursery() as nursery:
            while trio.current_time() < until:
                nursery.start_soon(self.request, limited, 0.05)
                await trio.sleep(1 / per_second)


@asynccontextmanager
async def homes(server, count=2, policy="share", ledger=None):
    async with trio.open_nursery() as nursery:
        found = []
        for _ in range(count):
            link = Link(server)
            subjects = await open_subjects(server, nursery, policy=policy, link=link)
            found.append(Home(link, RedisUsageLimiter(subjects, ledger or FakeLedger())))
        await trio.sleep(6)  # each has counted the other one
        assert [home.client.processes for home in found] == [count] * count
        yield found
        nursery.cancel_scope.cancel()


async def settle(found):
    """Wait until the server knows all."""
    for home in found:
        with trio.fail_after(60):
            await home.client.wait_connected()
    await trio.sleep(5)


async def used(found, limited):
    """What the server has counted in a budget, and what is held."""
    name = found[0].limiter._subject(limited).key
    reply = await found[0].client.request("HMGET", name, "u:month:requests", "h:requests")
    return [float(item or 0) for item in reply]


async def test_a_key_without_limits_costs_no_command(valkey, autojump_clock):
    """Neither do its limits, which it has none of."""
    async with homes(valkey) as (one, two):
        for _ in range(100):
            await one.request(key())
        assert one.link.commands == two.link.commands == 0
        assert list(one.limiter.rate_limits(key())) == []


async def test_a_key_at_its_limit_costs_few_commands(valkey, autojump_clock):
    """The rejection holds for a second without a question; then the next one is asked."""
    async with homes(valkey) as (one, _):
        limited = key(rpm=1)
        await one.request(limited)
        await trio.sleep(1)
        before = one.link.commands
        for _ in range(100):
            await one.request(limited)
        assert (one.granted, one.refused) == (1, 100)
        assert one.link.commands - before == 1


async def test_two_homes_share_a_rate_limit_exactly(valkey, autojump_clock):
    """All is granted that the limit allows, no more, with far fewer commands than requests."""
    async with homes(valkey) as found:
        start, limited = trio.current_time(), key(rpm=300)
        async with trio.open_nursery() as nursery:
            for home in found:
                nursery.start_soon(home.hammer, limited, 50, start + 8)
        allowed = 300 + 5 * (trio.current_time() - start)
        granted = sum(home.granted for home in found)
        assert 0.97 * allowed <= granted <= allowed
        assert sum(home.link.commands for home in found) < 0.4 * sum(
            home.granted + home.refused for home in found
        )


async def test_a_key_far_below_its_limit_costs_few_commands(valkey, autojump_clock):
    """A process takes a quarter of a second's worth of its requests in advance."""
    async with homes(valkey) as found:
        start, limited = trio.current_time(), key(rpm=60000)
        async with trio.open_nursery() as nursery:
            for home in found:
                nursery.start_soon(home.hammer, limited, 100, start + 4)
        assert sum(home.refused for home in found) == 0
        assert sum(home.link.commands for home in found) < 0.1 * sum(home.granted for home in found)


async def break_link(found):
    await found[0].link.cut()
    await trio.sleep(4)
    found[0].link.restore()


async def freeze_link(found):
    found[0].link.freeze()
    await trio.sleep(4)
    await found[0].link.thaw()


async def flap_link(found):
    for _ in range(8):
        await found[0].link.cut()
        await trio.sleep(0.3)
        found[0].link.restore()
        await trio.sleep(0.3)


@pytest.mark.parametrize("policy", ["share", "closed"])
@pytest.mark.parametrize("fault", [break_link, freeze_link, flap_link])
async def test_a_partition_grants_nothing_twice(fault, policy, valkey, autojump_clock):
    """One home cannot reach the server for a while: the sum stays within the limit, but for that home's
    share, and every use is counted once."""
    limited = key(rpm=600, budgets=(Quota("month", requests=1_000_000),))
    async with homes(valkey, policy=policy) as found:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for home in found:
                nursery.start_soon(home.hammer, limited, 60, start + 12)
            await trio.sleep(3.017)
            left = 630 - sum(home.granted for home in found)
            await fault(found)
        elapsed = trio.current_time() - start
        await settle(found)
        granted = sum(home.granted for home in found)
        share = left / 2 + 5 * elapsed if policy == "share" else 0
        assert granted <= 1.01 * (600 + 10 * elapsed) + share
        assert granted >= 0.8 * (600 + 10 * elapsed)
        assert await used(found, limited) == [granted, 0]


async def test_a_killed_server_with_its_file_counts_all(autojump_clock):
    """After kill -9 of the server, and a restart from its append-only file, every use is counted once."""
    server = Server("--appendonly", "yes", "--appendfsync", "always")
    limited = key(rpm=600, budgets=(Quota("month", requests=1_000_000),))
    try:
        async with homes(server) as found:
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                for home in found:
                    nursery.start_soon(home.hammer, limited, 60, start + 10)
                await trio.sleep(4.003)
                server.kill()
                await trio.sleep(1)
                server.start()
            elapsed = trio.current_time() - start
            await settle(found)
            granted = sum(home.granted for home in found)
            assert granted <= 1.01 * (600 + 10 * elapsed)
            assert await used(found, limited) == [granted, 0]
    finally:
        server.close()


async def test_one_request_waits_for_a_frozen_server_and_the_others_do_not(valkey, autojump_clock):
    """For `shared_state_timeout` once; what the server executes late is given back."""
    limited = key(rpm=600)
    async with homes(valkey) as (one, two):
        await one.request(limited)
        await trio.sleep(1)
        one.link.freeze()
        start = trio.current_time()
        await one.request(limited)
        assert trio.current_time() - start == pytest.approx(0.25)
        for _ in range(20):
            await one.request(limited)
        assert trio.current_time() - start == pytest.approx(0.25)
        await one.link.thaw()
        await settle([one, two])
        await trio.sleep(10)
        await two.request(limited)
        assert two.limiter._subject(limited).available()["requests"] == pytest.approx(599, abs=1)


async def test_a_cancelled_request_takes_nothing(valkey, autojump_clock):
    """Wherever it is cancelled, what was granted to it is given back, and no budget stays reserved."""
    limited, chance = key(rpm=600, budgets=(Quota("month", requests=1000),)), random.Random(1)

    async def cancelled(home, after):
        with trio.CancelScope() as scope:
            if after is None:
                scope.cancel()
            else:
                scope.deadline = trio.current_time() + after
            await home.request(limited, 1.0)

    async with homes(valkey) as found:
        for home in found:
            home.link.freeze()
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(cancelled, found[number % 2], chance.choice((None, 0, 0.01, 0.1)))
            await trio.sleep(0.05)
            for home in found:
                await home.link.thaw()
        await settle(found)
        assert await used(found, limited) == [sum(home.granted for home in found), 0]


@pytest.mark.parametrize("policy", ["share", "closed", "open"])
async def test_the_policy_decides_while_the_server_is_away(policy, valkey, autojump_clock):
    """A share of what was left, 503, or no limits; what was granted is counted when the server is back."""
    limited = key(rpm=100)
    async with homes(valkey, policy=policy) as found:
        for home in found:
            await home.request(limited)
        await trio.sleep(1)
        for home in found:
            await home.link.cut()
        await trio.sleep(0.1)
        for home in found:
            for _ in range(100):
                await home.request(limited)
        granted = sum(home.granted for home in found) - 2
        expected = {"share": range(97, 101), "closed": range(1), "open": range(200, 201)}
        assert granted in expected[policy]
        assert (sum(home.failed for home in found) > 0) == (policy == "closed")
        for home in found:
            home.link.restore()
        await settle(found)
        level = float(
            await found[0].client.request("HGET", found[0].limiter._subject(limited).key, "l:requests")
        )
        assert level <= 98 - granted + 20


async def test_a_budget_that_was_never_read_is_not_guessed(valkey, autojump_clock):
    """Without the server a key that is new here gets a 503, and the reason."""
    async with homes(valkey) as (one, _):
        await one.link.cut()
        await trio.sleep(0.1)
        error = await one.request(key(budgets=(Quota("day", requests=5),)))
        assert error.code == "budget_unavailable"


async def test_two_homes_share_a_budget_exactly(valkey, autojump_clock):
    """Concurrent requests of both use what there is, and not one more."""
    limited = key(budgets=(Quota("month", requests=500),))
    async with homes(valkey) as found:
        async with trio.open_nursery() as nursery:
            for home in found:
                nursery.start_soon(home.hammer, limited, 100, trio.current_time() + 10)
        await settle(found)
        assert sum(home.granted for home in found) == 500
        assert await used(found, limited) == [500, 0]


async def test_what_a_dead_process_held_is_released(valkey, autojump_clock):
    """After its lease has ended, 30 s after its last exchange, whoever asks meanwhile."""
    limited = key(budgets=(Quota("month", requests=2),))
    async with homes(valkey) as (one, two), trio.open_nursery() as nursery:
        nursery.start_soon(one.request, limited, 1000)
        nursery.start_soon(one.request, limited, 1000)
        await trio.sleep(15)  # the lease was renewed: it ends later than those of the first exchange
        await one.link.cut()
        await two.request(limited)
        assert (one.granted, two.granted) == (2, 0)
        with trio.fail_after(31):
            while two.granted == 0:
                await trio.sleep(1)
                await two.request(limited)
        assert two.granted == 1
        nursery.cancel_scope.cancel()


async def test_a_server_that_forgot_gives_no_new_minute(valkey, autojump_clock):
    """It starts with what has been refilled since it started."""
    limited = key(rpm=600)
    async with homes(valkey) as (one, _):
        for _ in range(600):
            await one.request(limited)
        valkey.execute("FLUSHALL")
        one.client.nodes[0].forgot_at = trio.current_time()
        await trio.sleep(1.5)
        before = one.granted
        for _ in range(600):
            await one.request(limited)
        assert one.granted - before <= 16


async def test_the_ledger_supplies_what_a_server_does_not_know(valkey, autojump_clock):
    """As a lower bound: supplied twice it counts once."""
    limited = key(budgets=(Quota("month", requests=10),))

    class Ledger(FakeLedger):
        async def key_usage(self, name, windows, now):
            usage = await super().key_usage(name, windows, now)
            return {name: replace(window, used={"requests": 8}) for name, window in usage.items()}

    async with homes(valkey, ledger=Ledger()) as found:
        for home in (*found, *found):
            await home.request(limited)
        assert [home.granted for home in found] == [1, 1]


@pytest.mark.parametrize("window", WINDOWS)
async def test_windows_are_those_of_one_machine(window, valkey):
    """The script's windows begin and end where `limits.windows` has it, over days of many years."""
    chance, now = random.Random(window), [0.0]
    limited = key(budgets=(Quota(window, requests=1),))
    async with trio.open_nursery() as nursery:
        link = Link(valkey, lambda: now[0])
        subjects = await open_subjects(valkey, nursery, lambda: now[0], link=link)
        limiter = RedisUsageLimiter(subjects, None)
        times = [chance.uniform(1.7e9, 3.0e9) for _ in range(40)]
        for at in times:
            valkey.execute("DEL", limiter._subject(limited).key)
            limiter._subject(limited)._denied = None
            end = WINDOWS[window].end(at)
            now[0] = at
            (await limiter.reserve(limited, REQUEST)).settle({}, attempted=True, answered=True)
            limiter._subject(limited).flush()
            while not limiter._subject(limited).is_settled:
                await trio.lowlevel.checkpoint()
            for later, allowed in ((end - 1, False), (end + 301, True)):
                now[0] = later
                if allowed:
                    again = await limiter.reserve(limited, REQUEST)
                    again.settle({}, attempted=False, answered=False)
                else:
                    with pytest.raises(RequestError) as rejection:
                        await limiter.reserve(limited, REQUEST)
                    assert rejection.value.retry_after is not None
                    assert rejection.value.retry_after <= max(1, end + 300 - later)
        nursery.cancel_scope.cancel()
