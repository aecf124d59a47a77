"""The client: pipelined replies, cancellation at any point, faults of the server, reconnection."""

import logging
import random
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from qproxy.backends.redis.address import Address
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.errors import OutcomeUnknown, RedisError, RedisReplyError, RedisUnavailable
from qproxy.backends.redis.script import Script
from tests.backends.redis.engine import FakeEngine, bulk


@asynccontextmanager
async def connected(engine, **options):
    """A client of a fake engine, once it has connected."""
    settings = {"prefix": "q", "timeout": 0.25, "connect_timeout": 1.0, **options}
    async with trio.open_nursery() as nursery:
        engine.nursery = nursery
        client = RedisClient(settings.pop("address", Address("fake", 1)), open_stream=engine.open, **settings)
        nursery.start_soon(client.run)
        await client.wait_connected()
        yield client
        nursery.cancel_scope.cancel()


async def test_commands_of_one_tick_leave_together_and_replies_come_in_order(autojump_clock):
    """Every caller gets the reply to its own command."""
    engine = FakeEngine()
    replies = {}

    async def ask(client, value):
        replies[value] = await client.request("ECHO", value)

    async with connected(engine) as client, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(ask, client, f"{number}")
    assert replies == {f"{number}": f"{number}".encode() for number in range(50)}
    assert client.processes == 2


@given(st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 0.4)), max_size=40), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_no_cancellation_mixes_up_replies(plan, seed):
    """Callers that start and are cancelled at any time: the others get their own replies, nothing is left."""

    async def main():
        engine, chance = FakeEngine(), random.Random(seed)
        delivered = []

        async def ask(client, number, start, patience):
            await trio.sleep(start)
            with trio.move_on_after(patience):
                try:
                    reply = await client.request("ECHO", f"{number}")
                except OutcomeUnknown:
                    return
                assert reply == f"{number}".encode()
                delivered.append(number)

        async with connected(engine) as client:
            engine.delay = lambda: chance.choice((0, 0, 0.01))
            async with trio.open_nursery() as nursery:
                for number, (start, patience) in enumerate(plan):
                    nursery.start_soon(ask, client, number, start, patience)
            await trio.sleep(61)  # between two beats
            assert await client.request("ECHO", "end") == b"end"
            assert "0 unanswered" in repr(client)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_late_reply_is_dropped(autojump_clock):
    """After the time limit the outcome is unknown; the next command gets its own reply."""
    engine = FakeEngine()
    engine.on_command = lambda command: None
    async with connected(engine) as client:
        with pytest.raises(OutcomeUnknown, match="shared_state_timeout"):
            await client.request("ECHO", "late")
        engine.on_command = lambda command: bulk(b"late") + bulk(command[-1])
        assert await client.request("ECHO", "next") == b"next"
        assert engine.connections == 1


async def test_a_silent_server_is_left(autojump_clock):
    """The connection whose oldest command has no reply is closed, whatever else is sent, and another one is
    made."""
    engine = FakeEngine()
    engine.on_command = lambda command: None
    failures: list[object] = []
    async with connected(engine) as client:
        client.send(("ECHO", "x"), failures.append)
        for _ in range(3):
            with pytest.raises(OutcomeUnknown):
                await client.request("ECHO", "y")
        await trio.sleep(1)
        assert "shared_state_connect_timeout" in str(failures[0])
        await client.wait_connected()
        assert engine.connections == 2


ERRORS = ("NOSCRIPT No matching script", "READONLY replica", "LOADING dataset", "OOM maxmemory", "NOPERM no")


@pytest.mark.parametrize("error", ERRORS)
async def test_an_error_reply_starts_the_connection_again(error, autojump_clock, caplog):
    """After a pause that grows, with few log lines; all callers hear of it at once."""
    engine = FakeEngine()
    engine.on_command = lambda command: f"-{error}\r\n".encode()
    async with connected(engine) as client:
        with pytest.raises(RedisReplyError, match=error[:6]):
            await client.request("ECHO", "x")
        for _ in range(30):
            with trio.move_on_after(1.0):
                await client.wait_connected()
                with pytest.raises(RedisError):
                    await client.request("ECHO", "x")
            await trio.sleep(0.1)
        assert engine.connections < 40
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


async def test_a_replica_is_not_used(autojump_clock):
    """The server is tried again until it is a primary."""
    engine = FakeEngine()
    engine.role = b"slave"
    async with trio.open_nursery() as nursery:
        engine.nursery = nursery
        client = RedisClient(
            Address("fake", 1), prefix="q", timeout=1, connect_timeout=1, open_stream=engine.open
        )
        nursery.start_soon(client.run)
        await trio.sleep(5)
        with pytest.raises(RedisUnavailable, match="not a primary"):
            await client.request("PING")
        engine.role = b"master"
        await client.wait_connected()
        nursery.cancel_scope.cancel()


async def test_a_connection_that_cannot_be_made_has_a_time_limit(autojump_clock):
    """Neither a connect nor a handshake waits for longer."""
    engine = FakeEngine()
    engine.accept = trio.sleep_forever
    async with trio.open_nursery() as nursery:
        engine.nursery = nursery
        client = RedisClient(
            Address("fake", 1), prefix="q", timeout=1, connect_timeout=1, open_stream=engine.open
        )
        nursery.start_soon(client.run)
        await trio.sleep(1.01)
        with pytest.raises(RedisUnavailable, match="shared_state_connect_timeout"):
            await client.request("PING")
        nursery.cancel_scope.cancel()


async def test_who_waits_for_a_connection_gets_one_after_many_attempts(autojump_clock):
    """Each failure between leaves the waiting tasks waiting."""
    engine = FakeEngine()
    async with connected(engine) as client:

        async def refuse():
            raise OSError("refused")

        accept, engine.accept = engine.accept, refuse
        await engine.streams[-1].aclose()
        await trio.sleep(0.01)
        assert not client.is_connected
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.wait_connected)
                await trio.sleep(10)
                engine.accept = accept
        assert client.is_connected


async def test_a_new_start_of_the_server_is_known(autojump_clock):
    """A server with another run id has forgotten; the same one has not."""
    engine = FakeEngine()
    async with connected(engine) as client:
        for run_id, forgot in ((b"a", False), (b"b", True)):
            engine.run_id = run_id
            await engine.streams[-1].aclose()
            await trio.sleep(3)
            assert bool(client.forgot_at) == forgot


async def test_commands_are_bounded(autojump_clock, monkeypatch):
    """A server that is slower than its callers gets no endless queue."""
    engine = FakeEngine()
    engine.on_command = lambda command: None
    async with connected(engine) as client:
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr("qproxy.backends.redis.connection.MAX_UNANSWERED", 3)
        for _ in range(3):
            client.send(("ECHO", "x"), lambda reply: None)
        with pytest.raises(RedisUnavailable, match="no reply"):
            client.send(("ECHO", "x"), lambda reply: None)


async def test_the_handshake_names_user_and_database_and_no_log_the_password(autojump_clock, caplog):
    """What is sent before anything else, and what is shown of it."""
    engine = FakeEngine()
    address = Address("fake", 1, user="me", password="topsecret", database=3)
    async with connected(engine, address=address) as client:
        assert engine.handshake[:2] == [[b"AUTH", b"me", b"topsecret"], [b"SELECT", b"3"]]
        assert "topsecret" not in f"{client!r} {client.address!r} {client.address} {caplog.text}"


# A real server


@asynccontextmanager
async def client_of(server, *scripts, **options):
    async with trio.open_nursery() as nursery:
        settings = {"prefix": "q", "timeout": 5, "connect_timeout": 5, "scripts": scripts, **options}
        client = RedisClient(settings.pop("address", server.address), **settings)
        nursery.start_soon(client.run)
        with trio.fail_after(20):
            await client.wait_connected()
        yield client
        nursery.cancel_scope.cancel()


async def test_a_real_server_runs_scripts_and_forgets_them(valkey):
    """A script is called by its digest; after SCRIPT FLUSH it is loaded again with the next connection."""
    script = Script("return ARGV[1]")
    async with client_of(valkey, script) as client:
        command = client.script_command(script, "k", "x")
        assert await client.request(*command) == b"x"
        valkey.execute("SCRIPT", "FLUSH")
        with pytest.raises(RedisReplyError, match="NOSCRIPT"):
            await client.request(*command)
        with trio.fail_after(20):
            while not client.is_connected:
                await client.wait_connected()
        assert await client.request(*command) == b"x"


async def test_real_replies_belong_to_their_commands(valkey):
    """A thousand concurrent commands, every third of them cancelled."""
    async with client_of(valkey) as client:

        async def ask(number):
            with trio.CancelScope() as scope:
                if number % 3 == 0:
                    scope.cancel()
                assert await client.request("ECHO", f"{number}") == f"{number}".encode()

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(ask, number)
        assert "0 unanswered" in repr(client)


async def test_a_wrong_password_is_an_error_with_the_servers_words(valkey):
    """It names the reason and not the password."""
    valkey.execute("CONFIG", "SET", "requirepass", "right-one")
    try:
        async with trio.open_nursery() as nursery:
            address = Address("", 0, valkey.path, password="wrong-one")
            client = RedisClient(address, prefix="q", timeout=5, connect_timeout=5)
            nursery.start_soon(client.run)
            with trio.fail_after(20):
                while "WRONGPASS" not in repr(client):
                    await trio.lowlevel.checkpoint()
            assert "wrong-one" not in repr(client)
            nursery.cancel_scope.cancel()
    finally:
        with_password = partial(RedisClient, Address("", 0, valkey.path, password="right-one"))
        async with trio.open_nursery() as nursery:
            client = with_password(prefix="q", timeout=5, connect_timeout=5)
            nursery.start_soon(client.run)
            with trio.fail_after(20):
                await client.wait_connected()
            await client.request("CONFIG", "SET", "requirepass", "")
            nursery.cancel_scope.cancel()


async def test_commands_are_counted_by_outcome(autojump_clock):
    """With a reply, with an error, without a reply, and not sent."""
    engine = FakeEngine()
    async with connected(engine) as client:
        counts = client.statistics
        await client.request("ECHO", "x")
        before = counts.outcomes()
        engine.delay = lambda: 0.125
        await client.request("ECHO", "x")
        assert (counts.ok, counts.seconds) == (before["ok"] + 1, 0.125)
        engine.on_command = lambda command: b"-ERR no\r\n"
        with pytest.raises(RedisReplyError):
            await client.request("ECHO", "x")
        with pytest.raises(RedisUnavailable):
            await client.request("ECHO", "x")
        assert (counts.error, counts.unavailable) == (1, 1)
        await trio.sleep(1)
        engine.on_command = lambda command: None
        with pytest.raises(OutcomeUnknown):
            await client.request("ECHO", "x")
        await trio.sleep(2)
        assert counts.unknown == 1
