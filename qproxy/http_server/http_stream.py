"""One request over HTTP/1.1 and its answer, between the connection and the app.

Stock makes an event object for every step, passes it through three objects, and gives the app its messages by a
memory channel.  Here a message of the app becomes bytes in one step (`response_writer` says how), and leaves in one write: a
head waits for the body that comes with it.

`on_disconnect` is for an app that wants to be cancelled when its client leaves without a task of its own that waits for it:
the server calls what is set there, once, instead of leaving that to a message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import trio
from hypercorn.events import RawData
from hypercorn.protocol.events import Body, EndBody, StreamClosed
from hypercorn.trio.task_group import _handle as run_app
from hypercorn.utils import UnexpectedMessageError

from qproxy.http_server.response_writer import ResponseWriter
from qproxy.wire.http1 import HeaderList

MAX_BUFFERED = 256 * 1024
"""Bytes of a request's body that wait for the app; then the client has to."""
MAX_PIECES = 1024
"""Chunks of a body that wait for the app: each takes some hundred bytes, even if it is empty."""
SLICE = 64
"""Chunks that are processed before other tasks run.  A read of 64 KiB may hold ten thousand chunks or frames."""
EXTENSION = "qproxy.http_stream"
"""The name in the ASGI scope's extensions under which an app finds its `HTTPStream`."""


class DisconnectNotifier:
    """The client's leaving, which an app may hear of."""

    closed = False
    """The client has left, or all is said."""
    _callback: Callable[[], object] | None = None

    @property
    def on_disconnect(self) -> Callable[[], object] | None:
        """What is called when the client leaves; at once, when it has left before anybody asked."""
        return self._callback

    @on_disconnect.setter
    def on_disconnect(self, call: Callable[[], object]) -> None:
        self._callback = call
        if self.closed:
            call()

    def _notify(self) -> None:
        if self._callback is not None:
            self._callback()


class HTTPStream(DisconnectNotifier):
    """What h11's protocol calls its stream."""

    idle = False

    def __init__(
        self,
        protocol: Any,
        framing: ResponseWriter,
        method: str,
        version: str,
        target: bytes,
        headers: HeaderList,
    ) -> None:
        self._protocol = protocol
        """Its `h11.H11Protocol`."""
        self.writer = framing
        self._received: list[dict[str, Any]] = []
        self._buffered = 0
        self._pieces = 0
        self._changed: trio.Event | None = None
        """What the app waits for when there is no message, or the reader when the app is behind."""
        self._response_started = b""
        """Of a response whose body comes at once: they leave in one write."""
        self.began = False
        """The head of its response is written."""
        self._ended = False
        self.whole = False
        """All of the request has come."""
        self._method, self._version = method, version
        self._target, self._headers = target, headers

    def __repr__(self) -> str:
        began, closed = " begun" if self.began else "", " closed" if self.closed else ""
        return f"<Exchange {self._method}{began}{closed}>"

    def scope(self) -> dict[str, Any]:
        """ASGI's scope.  It holds the exchange, which does not hold it: nothing is left for the garbage collector."""
        protocol = self._protocol
        path, _, query = self._target.partition(b"?")
        return {
            "type": "http",
            "http_version": self._version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": self._method,
            "scheme": "https" if protocol.ssl else "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": protocol.config.root_path,
            "headers": self._headers,
            "client": protocol.client,
            "server": protocol.server,
            "state": protocol.connection_state.copy(),
            "extensions": {EXTENSION: self},
        }

    async def run(self) -> None:
        """Call the app, in a task of the connection; what it raises is logged and ends its answer."""
        protocol, scope = self._protocol, self.scope()
        spawn, call = trio.to_thread.run_sync, trio.from_thread.run
        await run_app(protocol.app, protocol.config, scope, self.receive, self.send, spawn, call)  # type: ignore[arg-type]

    # From the client

    async def handle(self, event: Any) -> None:
        """What h11 made of it: a part of the request, or its client's end."""
        if isinstance(event, Body):
            await self.has_more(bytes(event.data), whole=False)
            self._pieces += 1
            if not self._pieces % SLICE:
                await trio.lowlevel.checkpoint()
        elif isinstance(event, EndBody):
            await self.has_more(b"", whole=True)
        elif isinstance(event, StreamClosed):
            self.disconnected()

    async def has_more(self, data: bytes, *, whole: bool) -> None:
        """Some of the request's body; when the app is behind with it, return when it is not."""
        if self.closed:
            return
        self._received.append({"type": "http.request", "body": data, "more_body": not whole})
        self._buffered += len(data)
        self.whole = whole
        self._write_trace()
        while (self._buffered > MAX_BUFFERED or len(self._received) > MAX_PIECES) and not self.closed:
            await self._wait()

    def disconnected(self) -> None:
        """The client has left."""
        if not self.closed:
            self.end()
            self._notify()

    def end(self) -> None:
        """All is said."""
        self.closed = True
        self._write_trace()

    async def receive(self) -> dict[str, Any]:
        """ASGI's `receive`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._received:
            if self.closed:
                return {"type": "http.disconnect"}
            await self._wait()
        message = self._received.pop(0)
        if "body" in message:
            self._buffered -= len(message["body"])
            self._write_trace()
        return message

    async def _wait(self) -> None:
        self._changed = self._changed or trio.Event()
        await self._changed.wait()

    def _write_trace(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # From the app

    async def send(self, message: Any) -> None:
        """ASGI's `send`; None when the app is over."""
        if message is None:
            await self._on_app_finished()
        elif message["type"] == "http.response.start" and not self.began:
            await self._start(message)
        elif message["type"] == "http.response.body" and self.began and not self._ended:
            await self._body(message)
        elif not self.closed:
            raise UnexpectedMessageError(self._state(), message["type"])

    def _state(self) -> Any:
        return "over" if self._ended else "under way" if self.began else "not begun"

    async def _start(self, message: Any) -> None:
        protocol = self._protocol
        headers = [
            (bytes(name).strip().lower(), bytes(value).strip()) for name, value in message.get("headers", ())
        ]
        has_length = any(name == b"content-length" for name, _ in headers)
        headers += protocol.server_headers()
        if protocol.in_last_exchange:
            headers.append((b"connection", b"close"))
        self.began = True
        head = self.writer.head(int(message["status"]), headers)
        if has_length:
            self._response_started = head
        else:
            await protocol.send(RawData(data=head))

    async def _body(self, message: Any) -> None:
        data, more = bytes(message.get("body", b"")), message.get("more_body", False)
        framed = self.writer.data(data) if data else b""
        if not more:
            self._ended = True
            framed += self.writer.end()
        if framed or not more:
            framed, self._response_started = self._response_started + framed, b""
        if framed:
            await self._protocol.send(RawData(data=framed))
        if not more:
            await self._protocol.finished()

    async def _on_app_finished(self) -> None:
        if self.closed:
            return
        if not self.began:
            await self._start(
                {"status": 500, "headers": [(b"content-length", b"0"), (b"connection", b"close")]}
            )
            await self._body({})
        else:  # in the middle of its answer: the connection's end says so
            await self._protocol.finished()
