"""Sentinel, on real processes: the primary is found, also after a failover."""

import pytest
import trio

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.errors import RedisUnavailable
from qproxy.backends.redis.sentinel import find_primary
from tests.backends.redis.groups import HOST, free_ports, until


async def test_the_promoted_replica_is_found(sentinel):
    """After the primary's crash the client uses the other server, which has what was written."""
    client = RedisClient(sentinel.address, prefix="q", timeout=5, connect_timeout=2)
    primary = sentinel.primary
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await until(lambda: client.is_connected)
        await client.request("SET", "k", "v")
        await client.request("WAIT", 1, 1000)
        primary.kill()
        await until(lambda: not client.is_connected)
        await until(lambda: client.is_connected)
        assert await client.request("GET", "k") == b"v"
        assert sentinel.primary is not primary
        nursery.cancel_scope.cancel()


async def test_a_majority_names_the_primary(sentinel, nursery):
    """One Sentinel with an address of the past, and one that is gone, change nothing."""

    async def stale(stream):
        async for _ in stream:
            await stream.send_all(b"*2\r\n$9\r\n127.0.0.1\r\n$1\r\n9\r\n")

    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    nursery.start_soon(trio.serve_listeners, stale, [listener])
    past, gone = (HOST, listener.socket.getsockname()[1]), (HOST, free_ports(1)[0])
    (real,) = sentinel.hosts
    expected = (HOST, sentinel.primary.port)

    async def find(*hosts, service="main", user="", password=""):
        address = sentinel.address.at(*real)
        group = type(address)(
            HOST, 1, kind="sentinel", hosts=hosts, service=service, user=user, password=password
        )
        return await find_primary(group, None, 5.0)

    assert await find(past, real, real) == expected
    assert await find(gone, real, real, password="a Sentinel has none") == expected
    assert await find(real, user="me", password="a Sentinel has no users") == expected
    with pytest.raises(RedisUnavailable, match="no Sentinel names a primary"):
        await find(gone)
    with pytest.raises(RedisUnavailable, match="knows no primary 'other'"):
        await find(real, service="other")
    nursery.cancel_scope.cancel()
