"""Subscriptions: messages, what may have been lost, and the time without messages."""

import logging
from contextlib import asynccontextmanager

import pytest
import trio

from qproxy.backends.redis import subscriber as module
from qproxy.backends.redis.address import Address
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.subscriber import Changes, Subscriber
from tests.backends.redis.engine import FakeEngine

LOST = Changes(True, frozenset())
QUIET = Changes(False, frozenset())


def of(*messages):
    return Changes(False, frozenset(messages))


@asynccontextmanager
async def subscribed(engine, *names, **options):
    """A client, a subscriber, and its subscriptions once the server has confirmed them."""
    async with trio.open_nursery() as nursery:
        engine.nursery = nursery
        client = RedisClient(
            options.pop("address", Address("fake", 1)),
            prefix="q",
            timeout=0.25,
            connect_timeout=1.0,
            open_stream=engine.open,
        )
        subscriber = Subscriber(client)
        nursery.start_soon(client.run)
        nursery.start_soon(subscriber.run)
        await client.wait_connected()
        subscriptions = [subscriber.subscribe(name) for name in names]
        await trio.testing.wait_all_tasks_blocked()
        yield client, subscriber, *subscriptions
        nursery.cancel_scope.cancel()


async def test_a_follower_gets_everything_and_then_what_is_published(autojump_clock):
    """The same message twice is one; another channel's are not seen; without any, time passes."""
    engine = FakeEngine()
    async with subscribed(engine, "one", "other") as (_, subscriber, one, other):
        assert await one.wait() == LOST
        for message in (b"a", b"b", b"a"):
            await engine.publish(subscriber.channel("one").encode(), message)
        await trio.testing.wait_all_tasks_blocked()
        assert await one.wait() == of("a", "b")
        started = trio.current_time()
        assert await one.wait() == QUIET
        assert trio.current_time() - started == module.READ_BACK_SECONDS
        assert await other.wait() == LOST
        assert await other.wait() == QUIET


async def test_a_message_ends_the_wait(autojump_clock):
    """The follower hears of it at once."""
    engine = FakeEngine()
    async with subscribed(engine, "one") as (_, _, one):
        await one.wait()
        async with trio.open_nursery() as nursery:

            async def publish_later():
                await trio.sleep(0.3)
                await engine.publish(b"q1:one", b"news")

            nursery.start_soon(publish_later)
            started = trio.current_time()
            assert await one.wait() == of("news")
            assert trio.current_time() - started == pytest.approx(0.3)


async def test_after_a_lost_connection_everything_may_have_changed(autojump_clock):
    """Also for a channel that was subscribed to over the running connection; commands are not disturbed."""
    engine = FakeEngine()
    async with subscribed(engine, "one") as (client, subscriber, one):
        late = subscriber.subscribe("late")
        await trio.testing.wait_all_tasks_blocked()
        assert [await one.wait(), await late.wait()] == [LOST, LOST]
        assert [await one.wait(), await late.wait()] == [QUIET, QUIET]
        await engine.subscribers[-1][1].aclose()
        assert await one.wait(60) == LOST
        assert await late.wait(0) == LOST
        await engine.publish(b"q1:late", b"x")
        assert await late.wait(60) == of("x")
        assert client.is_connected
        assert engine.connections == 3


async def test_a_silent_connection_is_left(autojump_clock):
    """A connection over which no message can come any more is found by its PING."""
    engine = FakeEngine()
    async with subscribed(engine, "one") as (_, _, one):
        await one.wait()
        engine.is_silent = lambda command: command[0] == b"PING"
        assert await one.wait(60) == LOST
        assert engine.connections == 3


async def test_a_flood_of_messages_is_bounded(autojump_clock, monkeypatch):
    """A follower that is slow reads everything, instead of messages without end."""
    monkeypatch.setattr(module, "MAX_MESSAGES", 3)
    engine = FakeEngine()
    async with subscribed(engine, "one") as (_, _, one):
        await one.wait()
        for number in range(4):
            await engine.publish(b"q1:one", b"%d" % number)
        await trio.testing.wait_all_tasks_blocked()
        assert await one.wait() == LOST


async def test_without_messages_time_still_passes(autojump_clock, caplog):
    """A user without the right to subscribe: one line in the log, few connections, a read-back a second."""
    engine = FakeEngine()
    engine.on_subscribe = lambda channel: b"-NOPERM no permissions to access a channel\r\n"
    async with subscribed(engine, "one") as (client, _, one):
        await one.wait()
        for _ in range(20):
            assert await one.wait() == QUIET
        assert client.is_connected
        assert engine.connections < 25
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "NOPERM" in record.getMessage()


async def test_a_subscription_authenticates(autojump_clock, caplog):
    """Its connection has the user and a name of its own; no log has the password."""
    engine = FakeEngine()
    address = Address("fake", 1, user="me", password="topsecret")
    async with subscribed(engine, "one", address=address) as (client, _, _):
        assert engine.handshake[-3:] == [
            [b"AUTH", b"me", b"topsecret"],
            [b"HELLO", b"3"],
            [b"CLIENT", b"SETNAME", f"qproxy-{client.process}-events".encode()],
        ]
        assert "topsecret" not in caplog.text


async def test_a_real_server_pushes(valkey):
    """A published message arrives; after CLIENT KILL everything may have changed."""
    client = RedisClient(valkey.address, prefix="q", timeout=5, connect_timeout=5)
    subscriber = Subscriber(client)
    one = subscriber.subscribe("one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscriber.run)
        await one.wait()
        with trio.fail_after(20):
            assert await one.wait(20) == LOST
            valkey.execute("PUBLISH", subscriber.channel("one"), "news")
            assert await one.wait(20) == of("news")
            valkey.execute("CLIENT", "KILL", "TYPE", "pubsub")
            assert await one.wait(20) == LOST
        nursery.cancel_scope.cancel()
