"""A network between one process and a real server, with faults: it can be cut, or frozen and thawed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from tests.backends.redis.server import BlockingStream, Server


class Link:
    """The streams of one process; time is a test's."""

    def __init__(self, server: Server, clock: Callable[[], float] = trio.current_time) -> None:
        self.server = server
        self.commands = 0
        """Scripts that were sent, without the beats."""
        self.sent = bytearray()
        self._clock = clock
        self._cut = False
        self._frozen: list[tuple[LinkStream, bytes]] | None = None
        self._streams: list[LinkStream] = []

    async def open(self) -> trio.abc.Stream:
        """Return a new stream."""
        await trio.lowlevel.checkpoint()
        if self._cut:
            raise OSError("no route")
        stream = LinkStream(self)
        self._streams.append(stream)
        return stream

    async def cut(self) -> None:
        """Break every connection, and allow no other one."""
        self._cut = True
        for stream in self._streams:
            await stream.aclose()

    def restore(self) -> None:
        """Allow connections again."""
        self._cut = False

    def freeze(self) -> None:
        """Keep what is sent, as a stopped server does."""
        self._frozen = []

    async def thaw(self) -> None:
        """Execute what was sent; nobody reads the replies on connections that are closed."""
        frozen, self._frozen = self._frozen or [], None
        for stream, data in frozen:
            await stream.execute(data)


class LinkStream(BlockingStream):
    """A stream over a link."""

    def __init__(self, link: Link) -> None:
        super().__init__(link.server.path, link._clock)
        self._link = link
        self._closed = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed.is_set():
            raise trio.BrokenResourceError
        signs_of_life = bytes(data).count(b":processes") + bytes(data).count(b":meta")
        self._link.sent += data
        self._link.commands += bytes(data).count(b"EVALSHA") - signs_of_life
        if self._link._frozen is not None:
            self._link._frozen.append((self, bytes(data)))
            await trio.lowlevel.checkpoint()
        else:
            await self.execute(bytes(data))

    async def execute(self, data: bytes) -> None:
        """Run commands on the server, whether or not their sender is still there."""
        try:
            await super().send_all(data)
        except OSError:
            await self.aclose()
            raise trio.BrokenResourceError from None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = b""
        async with trio.open_nursery() as nursery:

            async def wait_closed() -> None:
                await self._closed.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_closed)
            data = await super().receive_some(max_bytes)
            nursery.cancel_scope.cancel()
        return data

    def pull(self) -> None:
        if self._link._frozen is None:
            with suppress(OSError):  # found by what is sent next
                super().pull()

    async def aclose(self) -> None:
        self._subscribed.pop(self, None)
        self._closed.set()
        await trio.lowlevel.checkpoint()

    def __del__(self) -> None:
        self._sock.close()
