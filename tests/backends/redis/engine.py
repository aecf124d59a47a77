"""A scripted fake of the engine for faults: it replies over a memory stream as a test wants."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import hiredis
import trio
from trio.testing import memory_stream_pair

INFO = b"valkey_version:9.0.0\r\nrun_id:%s\r\nuptime_in_seconds:5\r\n"


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(value), value)


def push(*values: bytes) -> bytes:
    return b">%d\r\n" % len(values) + b"".join(map(bulk, values))


class FakeEngine:
    """Answers the handshake; other commands go to `on_command`, which returns bytes, or None for silence."""

    def __init__(self) -> None:
        self.commands: list[list[bytes]] = []
        """All but those of the handshake and the beats."""
        self.role = b"master"
        self.run_id = b"a"
        self.connections = 0
        self.streams: list[trio.abc.Stream] = []
        self.on_command: Callable[[list[bytes]], bytes | None] = lambda command: bulk(command[-1])
        self.is_silent: Callable[[list[bytes]], bool] = lambda command: False
        """Of any command, whether it gets no reply."""
        self.accept: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.delay: Callable[[], float] = lambda: 0.0
        """Seconds before a reply is sent."""
        self.handshake: list[list[bytes]] = []
        self.on_subscribe: Callable[[bytes], bytes] = lambda channel: push(b"subscribe", channel, b"1")
        self.subscribers: list[tuple[bytes, trio.abc.Stream]] = []
        self.nursery: trio.Nursery | None = None

    async def open(self) -> trio.abc.Stream:
        """Return the client's end of a new connection."""
        await self.accept()
        client, server = memory_stream_pair()
        self.connections += 1
        self.streams.append(server)
        assert self.nursery is not None
        self.nursery.start_soon(self._serve, server)
        return client

    async def publish(self, channel: bytes, message: bytes) -> None:
        """Push a message to the connections that have subscribed."""
        for subscribed, stream in self.subscribers:
            if subscribed == channel:
                await stream.send_all(push(b"message", channel, message))

    async def _serve(self, stream: Any) -> None:
        reader = hiredis.Reader()
        try:
            async for data in stream:
                reader.feed(bytes(data))
                while (command := reader.gets()) is not False:
                    if command[0] == b"SUBSCRIBE":
                        self.subscribers += [(channel, stream) for channel in command[1:]]
                    reply = self._reply(command)
                    if reply and not self.is_silent(command):
                        await trio.sleep(self.delay())
                        await stream.send_all(reply)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.subscribers = [entry for entry in self.subscribers if entry[1] is not stream]

    def _reply(self, command: list[bytes]) -> bytes | None:
        match command[0]:
            case b"ROLE":
                return b"*1\r\n" + bulk(self.role)
            case b"INFO":
                return bulk(INFO % self.run_id)
            case b"TIME":
                return b"*2\r\n" + bulk(b"1764500000") + bulk(b"0")
            case b"SUBSCRIBE":
                return b"".join(map(self.on_subscribe, command[1:]))
            case b"PING":
                return b"+PONG\r\n"
            case b"AUTH" | b"SELECT" | b"CLIENT" | b"HELLO":
                self.handshake.append(command)
                return b"+OK\r\n"
            case b"SCRIPT":
                return bulk(b"digest")
            case b"EVALSHA" if command[3].endswith(b":processes"):
                return b":2\r\n"
            case b"EVALSHA" if command[3].endswith(b":meta"):
                return b"*2\r\n:1\r\n:1\r\n"
        self.commands.append(command)
        return self.on_command(command)
