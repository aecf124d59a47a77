"""The pool: its queue, the queue's bounds, and rate limits."""

import math
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qproxy.accounts import AccountPool
from qproxy.accounts.rate_limit import AccountRateLimiter
from qproxy.wire.errors import LimitKind, OverloadedError, QproxyError
from tests.accounts.factories import account, refusal


async def hold(accounts, seconds, seen=None, model="m", **wish):
    """Hold a lease for a while, and record when it was acquired or which error was raised."""
    try:
        async with accounts.lease(model, **wish) as leased:
            if seen is not None:
                seen.append((leased.name, round(trio.current_time(), 3)))
            await trio.sleep(seconds)
    except QproxyError as error:
        assert seen is not None
        seen.append((error.code, round(trio.current_time(), 3), error.retry_after))


def left_of(one, now):
    return one.rate_limiter.tokens.available(now)


async def test_leases_wait_and_time_out(autojump_clock):
    """A lease waits up to queue_timeout for a free account, and a cancelled one is released."""
    accounts = AccountPool([account("a", max_in_flight=1)], queue_timeout=2.0, max_queue_size=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, accounts, 1)
        await trio.testing.wait_all_tasks_blocked()
        async with accounts.lease("m") as leased:
            assert trio.current_time() == 1
            assert leased.in_flight == 1
            with pytest.raises(OverloadedError):
                async with accounts.lease("m"):
                    raise AssertionError("not reached")
            assert trio.current_time() == 3
        nursery.start_soon(hold, accounts, 100)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert accounts.accounts[0].in_flight == accounts.queue_size == 0
    assert "sk" not in repr(accounts)


async def test_the_queue_is_first_in_first_out(autojump_clock):
    """Released accounts go to waiters in order, and a new request does not overtake them."""
    accounts = AccountPool([account("a", max_in_flight=1)], queue_timeout=9, max_queue_size=100)
    seen: list[Any] = []
    async with trio.open_nursery() as nursery:
        for n in range(4):
            nursery.start_soon(hold, accounts, 1, seen)
            await trio.sleep(0.01 * n)
        await trio.sleep(0.94)  # at 1.0 the first lease ends; a later request is served last
        nursery.start_soon(hold, accounts, 1, seen)
    assert [when for _, when in seen] == pytest.approx([0, 1, 2, 3, 4], abs=0.01)


async def test_the_queue_is_bounded(autojump_clock):
    """A request that finds the queue full is rejected at once."""
    accounts = AccountPool([account("a", max_in_flight=1)], queue_timeout=5, max_queue_size=3)
    seen: list[Any] = []
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(hold, accounts, 100, seen)
        await trio.testing.wait_all_tasks_blocked()
        assert accounts.queue_size == 3
        assert [row[0] for row in seen].count("overloaded") == 2
        nursery.cancel_scope.cancel()
    assert accounts.queue_size == 0


async def test_other_models_are_not_blocked(autojump_clock):
    """A queue for one model does not delay requests for another."""
    one, two = account("a", models=("m",), max_in_flight=1), account("b", models=("n",))
    accounts = AccountPool([one, two], queue_timeout=5, max_queue_size=100)
    seen: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, accounts, 3)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(hold, accounts, 1)
        await trio.testing.wait_all_tasks_blocked()
        await hold(accounts, 0, seen, "n")
    assert seen == [("b", 0)]


async def test_a_cancelled_waiter_releases_its_account(autojump_clock):
    """A waiter cancelled as it is served passes the account to the next one without a charge."""
    accounts = AccountPool(
        [account("a", max_in_flight=1, rate_limiter=AccountRateLimiter(rpm=2))],
        queue_timeout=9,
        max_queue_size=100,
    )
    seen: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, accounts, 1)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_at(1.0):
            await hold(accounts, 5, seen)
        nursery.start_soon(hold, accounts, 0, seen)
    assert seen[-1] == ("a", 1)
    assert accounts.accounts[0].in_flight == accounts.queue_size == 0
    assert accounts.accounts[0].requests == 2


async def test_the_end_of_a_cooldown_serves_the_queue(autojump_clock):
    """Waiters acquire the account whose cooldown ends first, although no lease was released."""
    a, b = account("a", max_in_flight=1), account("b")
    accounts = AccountPool([a, b], queue_timeout=9, max_queue_size=100)
    seen: list[Any] = []
    b.record_failure(refusal(LimitKind.QUOTA, waits=2.0), 0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, accounts, 5)
        await trio.testing.wait_all_tasks_blocked()
        await hold(accounts, 0, seen)
    assert seen == [("b", pytest.approx(2, abs=0.01))]


async def test_waits_for_a_single_rate_limited_account(autojump_clock):
    """A rate limited account is awaited within queue_timeout; beyond it a 429 has a correct Retry-After."""
    accounts = AccountPool(
        [account("a", rate_limiter=AccountRateLimiter(rpm=30))], queue_timeout=3, max_queue_size=100
    )
    seen: list[Any] = []
    async with trio.open_nursery() as nursery:
        for _ in range(33):
            nursery.start_soon(hold, accounts, 0, seen)
    assert [row[1] for row in seen if row[0] == "a"] == pytest.approx([0] * 30 + [2], abs=0.01)
    refused = [row for row in seen if row[0] != "a"]
    assert [(code, when) for code, when, _ in refused] == [("rate_limit_exceeded", 0)] * 2
    assert sorted(wait for *_, wait in refused) == pytest.approx([4, 4], abs=0.01)
    await trio.sleep_until(4.01)
    await hold(accounts, 0, seen)
    assert seen[-1] == ("a", 4.01)


async def test_a_rate_limited_account_is_skipped(autojump_clock):
    """No request waits while another account is free."""
    accounts = AccountPool(
        [account("a", rate_limiter=AccountRateLimiter(rpm=1)), account("b")],
        queue_timeout=3,
        max_queue_size=100,
    )
    seen: list[Any] = []
    for n in range(20):
        await hold(accounts, 0, seen, affinity=str(n))
    assert [row[0] for row in seen].count("a") == 1
    assert trio.current_time() == 0


async def test_tokens_are_reserved_and_settled(autojump_clock):
    """An estimate is reserved, exchanged for the usage at the end, and limited to a minute's worth."""
    one = account("a", rate_limiter=AccountRateLimiter(tpm=6000))
    accounts = AccountPool([one], queue_timeout=1, max_queue_size=100)
    assert accounts.counts_tokens
    async with accounts.lease("m", tokens=5000, used=lambda: 600):
        assert one.rate_limiter.wait(1000, 0) == 0
        with pytest.raises(QproxyError) as refused:
            async with accounts.lease("m", tokens=2000):
                raise AssertionError("not reached")
        assert refused.value.retry_after == pytest.approx(10)
    assert left_of(one, 0) == 5400
    async with accounts.lease("m", tokens=100, used=lambda: 5400):
        pass
    assert left_of(one, 0) == 0
    await trio.sleep(60)
    async with accounts.lease("m", tokens=10**9, used=lambda: None):
        assert left_of(one, 60) == 0


async def test_large_requests_do_not_starve(autojump_clock):
    """Later small requests do not take the tokens that a large one waits for."""
    one = account("a", rate_limiter=AccountRateLimiter(tpm=6000))
    accounts = AccountPool([one], queue_timeout=100, max_queue_size=100)
    seen: list[Any] = []
    one.rate_limiter.acquire(6000, 0)
    async with trio.open_nursery() as nursery:
        for tokens in (3000, 100, 100):
            nursery.start_soon(partial(hold, accounts, 0, seen, tokens=tokens))
            await trio.testing.wait_all_tasks_blocked()
    assert [row[1] for row in seen] == pytest.approx([30, 31, 32], abs=0.01)


async def test_one_probe_at_a_time_after_a_cooldown(autojump_clock):
    """After a cooldown one request is the probe, and the others use another account meanwhile."""
    a, b = account("a"), account("b")
    accounts = AccountPool([a, b], queue_timeout=1.0, max_queue_size=100)
    a.record_failure(refusal(LimitKind.QUOTA, waits=60.0), 0.0)
    await trio.sleep(61)
    async with trio.open_nursery() as nursery:
        for n in range(50):
            nursery.start_soon(partial(hold, accounts, 1, affinity=str(n)))
        await trio.testing.wait_all_tasks_blocked()
        assert (a.in_flight, b.in_flight) == (1, 49)
    a.record_success("m", 61.0)
    seen: list[Any] = []
    for n in range(50):
        await hold(accounts, 0, seen, affinity=str(n))
    assert {row[0] for row in seen} == {"a", "b"}


WISHES = st.tuples(
    st.sampled_from("mno"), st.floats(0, 3), st.floats(0, 2), st.booleans(), st.integers(0, 40)
)


@given(st.lists(WISHES, max_size=25), st.integers(1, 3), st.none() | st.integers(1, 60))
def test_queue_invariants(wishes, places, rpm):
    """For any arrivals and cancellations: limits hold, no request waits too long, and all ends empty."""
    one = account(
        "a", models=("m", "n"), max_in_flight=places, rate_limiter=AccountRateLimiter(rpm=rpm, tpm=60)
    )
    two = account("b", models=("n", "o"), max_in_flight=places)
    accounts = AccountPool([one, two], queue_timeout=1.0, max_queue_size=5)
    granted, refused = [], []

    async def ask(model, start, seconds, disconnects, tokens):
        await trio.sleep(start)
        with trio.move_on_after(seconds / 2 if disconnects else math.inf):
            try:
                async with accounts.lease(model, tokens=tokens, used=lambda: tokens // 2) as leased:
                    assert trio.current_time() <= start + 1.001
                    assert leased.supports(model)
                    assert leased.in_flight <= places
                    granted.append(leased)
                    await trio.sleep(seconds)
            except QproxyError as error:
                refused.append(
                    (error.status, error.retry_after is not None, trio.current_time() <= start + 1.001)
                )

    async def main():
        async with trio.open_nursery() as nursery:
            for wish in wishes:
                nursery.start_soon(ask, *wish)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert accounts.queue_size == one.in_flight == two.in_flight == 0
    assert rpm is None or granted.count(one) <= rpm * (1 + 6 / 60) + 1
    assert set(refused) <= {(429, True, True), (503, True, True)}


def test_excessive_reported_usage_costs_a_minute():
    """However many tokens an upstream reports, its account is available a minute later."""
    pace = AccountRateLimiter(tpm=1000)
    pace.acquire(pace.reserved(500), 0.0)
    pace.release(500 - 100_000_000, 0.0)
    assert 0 < pace.wait(1000, 0.0) <= 120
    assert pace.wait(1000, 120.0) == 0
    assert pace.released == {"tokens": -1000}
