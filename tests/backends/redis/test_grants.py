"""Grants of two machines on a real server: bounded, and decided by each machine alone while it is away."""

import pytest
import trio

from qproxy.access.grants import GrantStoreError
from qproxy.backends.local.grants import SqliteGrants
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.grants import RedisGrants
from tests.backends.redis.link import Link
from tests.backends.redis.members import open_grants


class Clock:
    """A clock that a test sets."""

    now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
async def machines(valkey, nursery):
    """Return links and stores of two machines, and the wall clock; at most ten grants of a kind are kept."""
    clock = Clock()
    links = [Link(valkey, clock), Link(valkey, clock)]
    return links, [await open_grants(link, nursery, clock, limit=10) for link in links], clock


async def test_no_grant_is_kept_forever(machines, valkey, autojump_clock):
    """Beyond the bound those that expire first are dropped; the last one ends the hash."""
    _, (one, two), clock = machines
    for number in range(11):
        await one.add("key", b"%d" % number, clock.now + 100 - number)
    found = [await two.has("key", b"%d" % number) for number in range(11)]
    assert found == [True] * 9 + [False] * 2
    assert 0 < valkey.execute("TTL", "q1:{g:key}") <= 100
    await one.add("key", b"past", clock.now)
    assert not await two.has("key", b"past")


async def test_each_machine_knows_its_own_grants_while_the_server_is_away(machines, caplog, autojump_clock):
    """A session of this machine goes on and a login counts here; a revocation cannot be complete."""
    (link, _), (one, two), clock = machines
    await one.add("session", b"mine", clock.now + 1000)
    await two.add("session", b"theirs", clock.now + 1000)
    await link.cut()
    await trio.testing.wait_all_tasks_blocked()
    await one.add("session", b"now", clock.now + 1000)
    assert "on this machine only" in caplog.text
    known = [await one.has("session", digest) for digest in (b"mine", b"theirs", b"now")]
    assert known == [True, False, True]
    with pytest.raises(GrantStoreError, match=r"shared_state\)"):
        await one.revoke("session", b"mine")
    assert not await one.has("session", b"mine")
    link.restore()
    await trio.sleep(5)
    assert await one.has("session", b"theirs")
    assert not await one.has("session", b"now")


async def test_only_the_first_attempt_to_connect_is_waited_for(valkey, nursery, autojump_clock):
    """A server that was never there costs no request its time."""
    link = Link(valkey)
    await link.cut()
    client = RedisClient(valkey.address, prefix="q", timeout=0.25, connect_timeout=1.0, open_stream=link.open)
    store = RedisGrants(client, SqliteGrants(None))
    assert not await store.has("key", b"a")
    assert trio.current_time() == pytest.approx(0.25)
    nursery.start_soon(client.run)
    await trio.testing.wait_all_tasks_blocked()
    assert not await store.has("key", b"a")
    assert trio.current_time() == pytest.approx(0.25)
