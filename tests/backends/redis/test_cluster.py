"""The client of a cluster, on real processes: slots, redirections, and a replica that becomes a primary."""

from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from qproxy.accounts.shared_state import AccountStateDelta
from qproxy.backends.local.tool_rounds import MemoryToolRounds
from qproxy.backends.redis.account_state import ACCOUNTS, RedisAccountState
from qproxy.backends.redis.address import Address
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.cluster import ClusterClient, key_of, slot_of
from qproxy.backends.redis.connection import wait_reply
from qproxy.backends.redis.errors import RedisError, RedisUnavailable
from qproxy.backends.redis.exchange import BudgetLimit
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.stores import SCRIPTS, RedisStores
from qproxy.backends.redis.subjects import Subjects
from qproxy.backends.redis.subscriber import Subscriber
from qproxy.backends.stores import open_stores
from qproxy.config import Config
from tests.backends.redis.groups import HOST, free_ports, until
from tests.backends.redis.members import SEALER
from tests.backends.redis.test_responses import id_of, save_chain

OPTIONS: dict[str, Any] = {"prefix": "q", "timeout": 5.0, "connect_timeout": 5.0}
ECHO = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
LIMITS = load_script("limits")


@asynccontextmanager
async def connected(cluster, **options):
    """A client of the cluster, once it has connected."""
    async with trio.open_nursery() as nursery:
        client = ClusterClient(cluster.address, scripts=[ECHO, LIMITS, ACCOUNTS], **{**OPTIONS, **options})
        nursery.start_soon(client.run)
        await until(lambda: len([node for node in client.nodes if node.is_connected]) == 3)
        yield client
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("key", "tag"), [
    ("foo", "foo"), ("{user1000}.following", "user1000"), ("foo{}{bar}", "foo{}{bar}"),
    ("foo{{bar}}zap", "{bar"), ("foo{bar}{zap}", "bar"), ("foo{bar", "foo{bar"),
])  # fmt: skip
def test_the_slot_is_that_of_what_stands_in_braces(key, tag):
    """The cases of the specification of clusters, which also gives CRC16 of one text."""
    assert slot_of(key) == slot_of(tag.encode())
    assert slot_of("123456789") == 0x31C3


def test_the_key_of_a_command():
    """It is the first argument, after the digest and the count of keys for a script."""
    assert key_of(("EVALSHA", "d", 1, "k", "x")) == "k"
    assert key_of(("GET", b"k")) == b"k"
    assert key_of(("INFO", "server")) is None
    assert key_of(("PING",)) is None


async def test_account_states_are_shared_by_a_cluster(cluster):
    """Each account on the server of its slot; an event there reaches a process that listens to any server."""
    async with connected(cluster) as client, connected(cluster) as other, trio.open_nursery() as nursery:
        stores = []
        for each in (client, other):
            subscriber = Subscriber(each)
            nursery.start_soon(subscriber.run)
            stores.append(RedisAccountState(each, Subjects(each, LIMITS, "a", "share"), subscriber))
        one, two = stores
        names = [f"id{n}" for n in range(9)]
        await two.exchange({name: AccountStateDelta(name) for name in names})
        await two.wait_change(0.05)
        await until(lambda: two._subscriber._connection is not None)
        assert two._subscription is not None
        while (await two._subscription.wait(0.2)).everything:
            pass
        changes = {name: AccountStateDelta(name, quota=("gone",), requests=2) for name in names}
        await one.exchange(changes)
        with trio.fail_after(20):
            await two.wait_change(20)
        states = await two.exchange({name: AccountStateDelta(name) for name in names})
        assert {state.quota for state in states.values()} == {"gone"}
        assert sum(state.requests for state in (await one.load(names)).values()) == 18
        assert (await one.acquire("id1", {}, {"requests": 1}, 1)).granted
        assert (await two.acquire("id1", {}, {"requests": 1}, 1)).at_capacity
        nursery.cancel_scope.cancel()


async def test_commands_go_to_the_servers_of_their_keys(cluster):
    """Values and scripts on all servers, one count of processes, and messages from any of them."""
    async with connected(cluster) as client, connected(cluster) as other:
        for number in range(30):
            assert await client.request(*client.script_command(ECHO, f"k{number}", number)) == number
        sizes = [server.execute("DBSIZE") for server in cluster.servers if server.is_primary]
        assert min(sizes) > 0
        assert sum(sizes) == 32  # with the processes and the schema
        assert [await other.request("GET", f"k{number}") for number in (1, 2)] == [b"1", b"2"]
        client.presence.beat()
        await until(lambda: client.processes == 2)
        async with trio.open_nursery() as nursery:
            subscriber = Subscriber(client)
            changes = subscriber.subscribe("news")
            nursery.start_soon(subscriber.run)
            while not (await changes.wait(0.05)).everything or subscriber._connection is None:
                pass
            while "x" not in (await changes.wait(0.05)).messages:
                await other.request("PUBLISH", subscriber.channel("news"), "x")
            nursery.cancel_scope.cancel()


async def test_a_slot_that_moves_is_followed(cluster):
    """ASK while it moves, MOVED afterwards; every command is executed once."""
    key = "moving"
    slot = slot_of(key)
    primaries = [server for server in cluster.servers if server.is_primary]
    async with connected(cluster) as client:
        await client.request("SET", key, "1")
        source = next(server for server in primaries if server.execute("EXISTS", key) == 1)
        target = next(server for server in primaries if server is not source)
        target.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
        source.execute("MIGRATE", HOST, target.port, key, 0, 5000)
        assert await client.request(*client.script_command(ECHO, key, 1)) == 2
        for server in (target, *primaries):
            server.execute("CLUSTER", "SETSLOT", slot, "NODE", cluster.id_of(target))
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(client.request, *client.script_command(ECHO, key, 1))
        assert target.execute("GET", key) == b"22"
        assert all(node.is_connected for node in client.nodes)


async def test_a_promoted_replica_is_used(cluster):
    """A planned failover, then a crash: what was used is counted once, while requests hardly wait."""
    async with (
        connected(cluster, timeout=0.25, connect_timeout=1.0) as client,
        trio.open_nursery() as nursery,
    ):
        subjects = Subjects(client, LIMITS, "k", "open")
        nursery.start_soon(subjects.run)
        port = cluster.replicated.port
        keys = {f"{number}": f"q1:{{k:{number}}}" for number in range(99)}
        name = next(name for name in keys if client._route(("GET", keys[name])).address.port == port)
        subject = subjects.get(name, {}, [BudgetLimit("day", "requests", 0.0)])

        async def use(count):
            for _ in range(count):
                await subjects.reserve(subject, {"requests": 1})
                subject.hold({"requests": 1}, -1)
                subject.use({"requests": 1})
                subjects.settle(subject)

        await use(200)
        cluster.replica.execute("CLUSTER", "FAILOVER")
        await use(200)
        await until(lambda: subject.is_settled)
        crashed = cluster.replicated
        assert crashed.port != port
        replicated = await wait_reply(client._route(("GET", keys[name])).send, ("WAIT", 1, 5000))
        assert replicated == 1
        crashed.kill()
        await use(200)
        await until(lambda: subject.is_settled)
        assert float(await client.request("HGET", keys[name], "u:day:requests")) == 600
        crashed.start()
        nursery.cancel_scope.cancel()


def failed(client, hint):
    return hint in client.failure


async def test_a_server_of_the_other_kind_is_refused(cluster, valkey):
    """The message says what to write in the settings."""
    host, port = cluster.address.hosts[0]
    for client, hint in (
        (RedisClient(Address(host, port), **OPTIONS), "redis+cluster://"),
        (
            ClusterClient(Address(host, 1, kind="cluster", hosts=((host, free_ports(1)[0]),)), **OPTIONS),
            "all attempts to connect",
        ),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await until(partial(failed, client, hint))
            with pytest.raises(RedisUnavailable):
                await client.request("GET", "x")
            nursery.cancel_scope.cancel()


async def test_a_cluster_that_cannot_serve_is_reported(cluster):
    """A command for a slot without a server is an error at once."""
    async with connected(cluster) as client:
        client._slots[slot_of("x")] = None
        with pytest.raises(RedisError, match="slot"):
            await client.request("GET", "x")
        await until(lambda: client._slots[slot_of("x")] is not None)
        assert await client.request("GET", "x") is None


async def test_sealed_stores_are_spread_over_the_servers(cluster):
    """Every record, whose name decides its server, is found, listed and deleted with its owner."""
    local = open_stores(Config(store_responses=True))
    async with trio.open_nursery() as nursery:
        client = ClusterClient(cluster.address, scripts=SCRIPTS, **OPTIONS)
        nursery.start_soon(client.run)
        await until(lambda: len([node for node in client.nodes if node.is_connected]) == 3)
        shared = RedisStores(client, SEALER).open_responses(local, max_age=100.0, max_bytes=10**6)
        assert shared.responses is not None
        for root in range(20):
            await save_chain(shared.responses, [1, 2], root=f"{root:08x}")
        for root in range(20):
            assert len(await shared.responses.conversation("bob", id_of(2, f"{root:08x}"))) == 2
        sizes = [server.execute("DBSIZE") for server in cluster.servers if server.is_primary]
        assert min(sizes) > 0
        rounds = RedisStores(client, SEALER).open_tool_rounds(MemoryToolRounds(seconds=60.0), seconds=60.0)
        other = RedisStores(client, SEALER).open_tool_rounds(MemoryToolRounds(seconds=60.0), seconds=60.0)
        calls = [(f"call_{number}",) for number in range(20)]
        for each in calls:
            await rounds.save("place", each, [{"role": "tool", "content": each[0]}])
        assert set(await other.load("place", calls)) == set(calls)
        assert await shared.responses.delete_owner("bob") == 40
        nursery.cancel_scope.cancel()
