"""The app without a socket, for Trio programs: ASGI called directly, in real time.

Leaving a response early is a disconnect: the app receives it, and is cancelled if it does not finish within a
second. A chunk of the response is passed on when it is received, so a slow reader slows the upstream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import unquote

import trio

from qproxy.http_server.shutdown import Shutdown, current_shutdown

DISCONNECT_TIMEOUT = 1.0


class InProcessResponse:
    """The head of a response, and its body chunk by chunk."""

    def __init__(self, pieces: trio.MemoryReceiveChannel[Any]) -> None:
        self._chunks = pieces
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    async def start(self) -> None:
        head = await self._chunks.receive()
        self.status, self.headers = head["status"], list(head.get("headers", ()))

    async def receive(self) -> bytes:
        """Return the next bytes of the body; b"" at the end."""
        while True:
            try:
                message = await self._chunks.receive()
            except trio.EndOfChannel:
                return b""
            if message.get("body"):
                return bytes(message["body"])
            if not message.get("more_body"):
                return b""

    async def read(self) -> bytes:
        """Return the rest of the body."""
        pieces = []
        while piece := await self.receive():
            pieces.append(piece)
        return b"".join(pieces)


class InProcessClient:
    """Sends requests to one app."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._running = 0
        self._ended = trio.lowlevel.ParkingLot()

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        while self._running:
            await self._ended.park()

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, headers: Iterable[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> AsyncIterator[InProcessResponse]:
        """Send a request and return its response; leaving the block ends the request."""
        sender, receiver = trio.open_memory_channel[Any](0)
        gone = trio.Event()
        inbox = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if inbox:
                return inbox.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            with suppress(trio.BrokenResourceError):  # as in ASGI: messages after a disconnect are dropped
                await sender.send(message)

        async def run() -> None:
            async with sender:
                await self._app(_scope(method, path, headers), receive, send)

        self._running += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                response = InProcessResponse(receiver)
                await response.start()
                try:
                    yield response
                finally:
                    gone.set()
                    nursery.cancel_scope.deadline = trio.current_time() + DISCONNECT_TIMEOUT
                    receiver.close()
        finally:
            self._running -= 1
            self._ended.unpark_all()


def _scope(method: str, target: str, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"in-process"), *headers],
        "client": ("127.0.0.1", 0),
        "server": None,
        "state": {},
        "extensions": {},
    }


@asynccontextmanager
async def in_process(app: Any) -> AsyncIterator[InProcessClient]:
    """Return a client for an ASGI app whose lifespan is the block.

    At the end of the block the app shuts down like a server: requests of other tasks have its
    `graceful_timeout`.
    """
    to_app, inbox = trio.open_memory_channel[Any](2)
    outbox, from_app = trio.open_memory_channel[Any](2)
    shutdown, client = Shutdown(), InProcessClient(app)
    async with trio.open_nursery() as nursery:
        token = current_shutdown.set(shutdown)  # for the app's lifespan
        nursery.start_soon(
            app, {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, inbox.receive, outbox.send
        )
        current_shutdown.reset(token)
        await to_app.send({"type": "lifespan.startup"})
        started = await from_app.receive()
        if started["type"] != "lifespan.startup.complete":
            raise RuntimeError(f"the app did not start: {started.get('message', '')}")
        try:
            yield client
            shutdown.started.set()
            with trio.move_on_after(shutdown.timeout):
                await client.wait_idle()
        finally:
            with trio.move_on_after(
                DISCONNECT_TIMEOUT, shield=True
            ):  # the app's own shutdown must run even if cancelled
                await to_app.send({"type": "lifespan.shutdown"})
                await from_app.receive()
            nursery.cancel_scope.cancel()
