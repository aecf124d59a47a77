"""The second connection of a process, over which the server pushes what is published.

It carries SUBSCRIBE and PING alone, so that a flood of messages delays no request. Published messages are
lost while a process is not connected: they are hints. The follower of a channel reads everything after each
subscription, then what messages name, and each second a version, which finds what no message named:

    subscription = subscriber.subscribe("keys")
    while True:
        changes = await subscription.wait()
        if changes.everything or await read_version() != version:
            await read_everything()
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import trio

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Connection, first_error
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.node import BEAT_SECONDS
from qproxy.backends.redis.reconnection import Reconnection

READ_BACK_SECONDS = 1.0
"""After which the follower of a channel reads a version, with or without a message."""
MAX_MESSAGES = 1000
"""Different messages that wait for the follower of a channel; with more, it reads everything."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes that may have happened since the last `Subscription.wait`."""

    everything: bool
    """Messages may have been lost."""
    messages: frozenset[str]
    """Empty, and not `everything`, where only time has passed."""


class Subscription:
    """One channel, with one follower."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self._messages: set[str] = set()
        self._everything = True
        self._changed = trio.Event()
        self._changed.set()

    def __repr__(self) -> str:
        return f"<Subscription {self.channel}>"

    async def wait(self, seconds: float = READ_BACK_SECONDS) -> Changes:
        """Return what has changed, after `seconds` at most; the first time everything has."""
        with trio.move_on_after(seconds):
            await self._changed.wait()
        changes = Changes(self._everything, frozenset(self._messages))
        self._messages, self._everything, self._changed = set(), False, trio.Event()
        return changes

    def receive(self, message: str) -> None:
        """Record a message for the follower."""
        if len(self._messages) >= MAX_MESSAGES:
            self.reset()
        else:
            self._messages.add(message)
            self._changed.set()

    def reset(self) -> None:
        """Record that everything may have changed."""
        self._messages.clear()
        self._everything = True
        self._changed.set()


class Subscriber:
    """The subscriptions of a process, which `run` keeps on one connection."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._by_channel: dict[str, Subscription] = {}
        self._connection: Connection | None = None
        self._wanted = trio.Event()
        self._reconnection = Reconnection()

    def __repr__(self) -> str:
        return f"<Subscriber {', '.join(self._by_channel)}>"

    def subscribe(self, name: str) -> Subscription:
        """Subscribe to a channel of this installation, from now on; it has one follower in a process."""
        channel = self.channel(name)
        assert channel not in self._by_channel, f"{channel} has a follower"
        subscription = self._by_channel[channel] = Subscription(channel)
        self._wanted.set()
        if self._connection is not None and not self._connection.closed:
            self._connection.send_unanswered(("SUBSCRIBE", channel))
        return subscription

    def channel(self, name: str) -> str:
        """Return the full name of a channel, for PUBLISH."""
        return f"{self._client.prefix}:{name}"

    async def run(self) -> None:
        """Stay connected while there are subscriptions, until cancelled."""
        await self._wanted.wait()
        await self._reconnection.run(self._serve, self._fail)

    async def _serve(self) -> None:
        """Connect and subscribe, and return when the connection has ended. Raises a RedisError."""
        connection = await self._client.open_connection(self._receive)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                self._start(connection)
                while True:
                    await connection.request("PING")
                    await trio.sleep(BEAT_SECONDS)
        except* RedisError as group:
            raise first_error(group) from None
        finally:
            self._connection = None

    def _start(self, connection: Connection) -> None:
        """Send all that starts a connection in one write."""
        name = f"qproxy-{self._client.process}-events"
        for command in (*self._client.authentication(), ("HELLO", 3), ("CLIENT", "SETNAME", name)):
            connection.send(command, lambda reply: None)  # an error reply ends the connection
        connection.send_unanswered(("SUBSCRIBE", *self._by_channel))
        self._connection = connection

    def _receive(self, push: list[Any]) -> None:
        match push:
            case [b"message", bytes(channel), bytes(message)]:
                self._by_channel[channel.decode()].receive(message.decode(errors="replace"))
            case [b"subscribe", bytes(channel), *_]:
                self._by_channel[channel.decode()].reset()

    def _fail(self, error: RedisError) -> None:
        level = logging.ERROR if self._client.is_connected else logging.DEBUG  # which the client reports
        self._reconnection.log(level, f"no messages from {self._client.address}: {error}")
