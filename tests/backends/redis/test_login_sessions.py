"""Logins that one process runs and another one reads and cancels."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from qproxy.auth.background import RefreshTasks
from qproxy.backends.redis.login_sessions import LIVE_SECONDS, RedisLoginSessions
from qproxy.backends.redis.subscriber import Subscriber
from qproxy.wire.errors import OverloadedError
from tests.auth.helpers import signed
from tests.backends.redis.link import Link
from tests.backends.redis.process import LOGINS, open_login_sessions, start_client
from tests.backends.redis.server import Exchange


class Process:
    """A process with logins of its own."""

    def __init__(self, setup, logins: RedisLoginSessions, tasks: RefreshTasks, link: Link) -> None:
        self.logins = logins
        self.source = setup.source(keep=False)
        self.tasks = tasks
        self.link = link


async def start(setup, server) -> Process:
    tasks, link = RefreshTasks(), Link(server)
    setup.nursery.start_soon(tasks.run)
    client = await start_client(link, setup.nursery, [LOGINS])
    return Process(setup, open_login_sessions(client, setup.nursery, tasks), tasks, link)


async def test_a_login_is_read_and_cancelled_elsewhere(valkey, tmp_path, autojump_clock):
    """Another process sees code and seconds left, attaches to the login, and ends it within a second."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey), await start(setup, valkey)
        begun, new = await one.logins.start(one.source)
        assert (begun.state, new) == ("pending", True)
        await trio.sleep(10)
        seen = await two.logins.progress("me")
        assert seen is not None
        assert (seen.state, seen.user_code, seen.verification_uri) == (
            "pending",
            begun.user_code,
            begun.verification_uri,
        )
        assert seen.seconds_left == pytest.approx(begun.seconds_left - 10, abs=1.5)
        attached, new = await two.logins.start(two.source)
        assert (attached.user_code, new) == (begun.user_code, False)
        before = trio.current_time()
        cancelled = await two.logins.cancel("me")
        assert cancelled is not None
        assert cancelled.state == "cancelled"
        assert trio.current_time() - before < 1.5
        again = await one.logins.progress("me")
        assert again is not None
        assert again.state == "cancelled"
        begun, new = await two.logins.start(two.source)
        assert (begun.state, new) == ("pending", True)
        seen = await one.logins.progress("me")
        assert seen is not None
        assert seen.user_code == begun.user_code
        assert setup.emulator.identity.decide(begun.user_code)
        await trio.sleep(20)
        for process in (one, two):
            done = await process.logins.progress("me")
            assert done is not None
            assert done.state == "signed_in"
        await trio.sleep(400)
        assert await one.logins.progress("me") is None


async def test_a_cancellation_is_followed_at_once(valkey, tmp_path):
    """It is published, and a message makes the process that runs the login look."""
    async with signed(tmp_path) as setup:
        one = await start(setup, valkey)
        client = await start_client(Link(valkey), setup.nursery, [LOGINS])
        tasks, subscriber = RefreshTasks(), Subscriber(client)
        setup.nursery.start_soon(tasks.run)
        two = open_login_sessions(client, setup.nursery, tasks, subscriber)
        await two.start(setup.source(keep=False))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(valkey.path)
            listener = Exchange(sock)
            listener.execute("SUBSCRIBE", "q1:logins")
            setup.nursery.start_soon(one.logins.cancel, "me")
            await trio.testing.wait_all_tasks_blocked()
            message = listener.read()
        subscriber._receive(message)
        await trio.testing.wait_all_tasks_blocked()
        progress = await two.progress("me")
        assert progress is not None
        assert progress.state == "cancelled"


async def test_a_login_ends_with_its_process(valkey, tmp_path, autojump_clock):
    """Others see it end within seconds, and may start another one."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey), await start(setup, valkey)
        await one.logins.start(one.source)
        await one.link.cut()
        ended = await two.logins.cancel("me")
        assert ended is not None
        assert (ended.state, ended.message) == ("failed", "The process of this login has ended.")
        await trio.sleep(LIVE_SECONDS)
        assert await two.logins.progress("me") is None
        _, new = await two.logins.start(two.source)
        assert new


async def test_without_the_server_a_login_is_one_of_its_process(valkey, tmp_path, autojump_clock):
    """It can be read and cancelled there, and is published once the server is back, also if it was lost."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey), await start(setup, valkey)
        await one.link.cut()
        begun, new = await one.logins.start(one.source)
        assert (begun.state, new) == ("pending", True)
        assert await two.logins.progress("me") is None
        one.link.restore()
        for _ in range(2):
            await trio.sleep(5)
            seen = await two.logins.progress("me")
            assert seen is not None
            assert seen.user_code == begun.user_code
            valkey.execute("FLUSHALL")
        await one.link.cut()
        await trio.sleep(1)
        cancelled = await one.logins.cancel("me")
        assert cancelled is not None
        assert cancelled.state == "cancelled"


async def test_a_login_that_cannot_start_blocks_no_other_process(valkey, tmp_path, autojump_clock):
    """A process with too many logins leaves no record in progress."""
    async with signed(tmp_path) as setup:
        one, two = await start(setup, valkey), await start(setup, valkey)
        for number in range(4):
            await one.logins.start(setup.source(f"a{number}", keep=False))
        with pytest.raises(OverloadedError):
            await one.logins.start(one.source)
        _, new = await two.logins.start(two.source)
        assert new
