"""The app without a socket, for Trio programs: ASGI called directly, in real time.

Leaving a response early is a disconnect: the app receives it, and is cancelled if it does not finish within a
second. A chunk of the response is passed on when it is received, so a slow reader slows the upstream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias
from urllib.parse import unquote

import trio

from qproxy.http_server.shutdown import Shutdown, current_shutdown
from qproxy.server.httpx_transport import make_transport
from qproxy.server.in_process_response import DISCONNECT_TIMEOUT, AsgiApp, InProcessResponse

Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]


class InProcessClient:
    """Sends requests to one app, whose lifespan is running."""

    def __init__(self, app: AsgiApp, nursery: trio.Nursery | None = None) -> None:
        """`nursery` runs the requests of `transport`; those of `request` run in the caller's task."""
        self._app = app
        self._nursery = nursery
        self._running = 0
        self._ended = trio.lowlevel.ParkingLot()

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        while self._running:
            await self._ended.park()

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, headers: Headers = (), body: bytes | str = b""
    ) -> AsyncIterator[InProcessResponse]:
        """Send a request and return its response; leaving the block ends it. Raises InProcessError."""
        async with trio.open_nursery() as nursery:
            response = self.send(nursery, method, path, headers=headers, body=body)
            try:
                await response.start()
                yield response
            finally:
                response.disconnect()

    def send(
        self,
        nursery: trio.Nursery,
        method: str,
        path: str,
        *,
        headers: Headers = (),
        body: bytes | str = b"",
        extensions: Mapping[str, Any] | None = None,
    ) -> InProcessResponse:
        """Send a request that the nursery runs; the caller starts, reads and closes the response."""
        raw = body.encode() if isinstance(body, str) else body
        scope = _scope(method, path, headers)
        scope["extensions"].update(extensions or {})
        response = InProcessResponse(self._app, scope, raw)
        nursery.start_soon(self._run, response)
        self._running += 1
        return response

    def transport(self, library: ModuleType) -> Any:
        """Return a transport for an `AsyncClient` of the library, which is `httpx2` or `httpx`."""
        if self._nursery is None:
            raise ValueError("this client has no nursery: use the client of qproxy.in_process")
        return make_transport(library, partial(self.send, self._nursery))

    async def _run(self, response: InProcessResponse) -> None:
        try:
            await response.run()
        finally:
            self._running -= 1
            self._ended.unpark_all()


def _scope(method: str, target: str, headers: Headers) -> dict[str, Any]:
    path, _, query = target.partition("?")
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    fields = [(_to_bytes(name).lower(), _to_bytes(value)) for name, value in pairs]
    if all(name != b"host" for name, _ in fields):
        fields.insert(0, (b"host", b"in-process"))
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
        "headers": fields,
        "client": ("127.0.0.1", 0),
        "server": None,
        "state": {},
        "extensions": {},
    }


def _to_bytes(text: str | bytes) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else text


@asynccontextmanager
async def in_process(app: AsgiApp) -> AsyncIterator[InProcessClient]:
    """Return a client for an ASGI app whose lifespan is the block.

    At the end of the block the app shuts down like a server: requests of other tasks have its
    `graceful_timeout`.
    """
    to_app, inbox = trio.open_memory_channel[Any](2)
    outbox, from_app = trio.open_memory_channel[Any](2)
    shutdown, is_stopped = Shutdown(), False

    async def stop() -> None:
        await to_app.send({"type": "lifespan.shutdown"})
        await from_app.receive()

    async with trio.open_nursery() as nursery:
        token = current_shutdown.set(shutdown)  # for the app's lifespan
        nursery.start_soon(
            app, {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, inbox.receive, outbox.send
        )
        current_shutdown.reset(token)
        await to_app.send({"type": "lifespan.startup"})
        started = await from_app.receive()
        if started["type"] == "lifespan.startup.complete":
            client = InProcessClient(app, nursery)
            try:
                yield client
                shutdown.started.set()
                deadline = trio.current_time() + shutdown.timeout
                with trio.move_on_at(deadline):
                    await client.wait_idle()
                with trio.move_on_at(deadline + DISCONNECT_TIMEOUT):  # for responses in the background
                    await stop()
                is_stopped = True
            finally:
                if not is_stopped:  # the app's own shutdown must run even if cancelled
                    with trio.move_on_after(DISCONNECT_TIMEOUT, shield=True):
                        await stop()
                nursery.cancel_scope.cancel()
            return
        nursery.cancel_scope.cancel()
    raise RuntimeError(f"the app did not start: {started.get('message', '')}")
