"""One request over HTTP/1.1 and its response, between the connection and the app.

Stock Hypercorn creates an event object for every step, passes it through three objects, and sends the app its
messages via a memory channel. Here a message from the app becomes bytes in one step (see `response_writer`)
and leaves in one write: a head waits for the body that comes with it.

`on_disconnect` cancels an app when its client disconnects, without a task that waits for the disconnect
message: the server invokes the callback once.
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
"""Bytes of a request body that are buffered for the app before the client is blocked."""
MAX_PIECES = 1024
"""Chunks of a body that are buffered for the app: each takes some hundred bytes, even if it is empty."""
SLICE = 64
"""Chunks that are processed before other tasks run. A read of 64 KiB may hold ten thousand chunks or
frames."""
EXTENSION = "qproxy.http_stream"
"""The name in the ASGI scope's extensions under which an app finds its `HTTPStream`."""


class DisconnectNotifier:
    """A base class that invokes a callback when the client disconnects."""

    closed = False
    """Whether the client has disconnected or the exchange is complete."""
    _callback: Callable[[], object] | None = None

    @property
    def on_disconnect(self) -> Callable[[], object] | None:
        """The callback for the client's disconnect; setting it after the disconnect invokes it at once."""
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
    """One HTTP/1.1 exchange, in the role of Hypercorn's class of this name."""

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
        """The connection, an `h11.H11Protocol`."""
        self.writer = framing
        self._received: list[dict[str, Any]] = []
        self._buffered = 0
        self._pieces = 0
        self._changed: trio.Event | None = None
        """Set on a new message, for which the app waits, or on a consumed one, for which the reader waits."""
        self._held_head = b""
        """The head of a response with a length, held back to leave in one write with the body."""
        self.response_started = False
        """Whether the response head is written."""
        self._ended = False
        self.request_complete = False
        """Whether the request is complete."""
        self._method, self._version = method, version
        self._target, self._headers = target, headers

    def __repr__(self) -> str:
        started, closed = " started" if self.response_started else "", " closed" if self.closed else ""
        return f"<HTTPStream {self._method}{started}{closed}>"

    @property
    def complete(self) -> bool:
        """Return whether the response is written to its end."""
        return self._ended

    def scope(self) -> dict[str, Any]:
        """Return the ASGI scope. The stream holds no reference to it, which would be a cycle."""
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
        """Call the app in a task of the connection; an exception is logged and ends the response."""
        protocol, scope = self._protocol, self.scope()
        spawn, call = trio.to_thread.run_sync, trio.from_thread.run
        await run_app(protocol.app, protocol.config, scope, self.receive, self.send, spawn, call)  # type: ignore[arg-type]

    # From the client

    async def handle(self, event: Any) -> None:
        """Process an event from h11: part of the request, or the client's disconnect."""
        if isinstance(event, Body):
            await self.has_more(bytes(event.data), complete=False)
            self._pieces += 1
            if not self._pieces % SLICE:
                await trio.lowlevel.checkpoint()
        elif isinstance(event, EndBody):
            await self.has_more(b"", complete=True)
        elif isinstance(event, StreamClosed):
            self.disconnected()

    async def has_more(self, data: bytes, *, complete: bool) -> None:
        """Buffer part of the request body, and wait while the buffer for the app is full."""
        if self.closed:
            return
        self._received.append({"type": "http.request", "body": data, "more_body": not complete})
        self._buffered += len(data)
        self.request_complete = complete
        self._write_trace()
        while (self._buffered > MAX_BUFFERED or len(self._received) > MAX_PIECES) and not self.closed:
            await self._wait()

    def disconnected(self) -> None:
        """Close the stream after the client's disconnect, and invoke the callback."""
        if not self.closed:
            self.end()
            self._notify()

    def end(self) -> None:
        """Close the stream."""
        self.closed = True
        self._write_trace()

    async def receive(self) -> dict[str, Any]:
        """Return the next message, as ASGI's `receive`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._received:
            if self.closed:
                return {"type": "http.disconnect"}
            await self._protocol.send_continue()
            if not self._received:
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
        """Send a message of the app, as ASGI's `send`; None means that the app has returned."""
        if message is None:
            await self._on_app_finished()
        elif message["type"] == "http.response.start" and not self.response_started:
            await self._start(message)
        elif message["type"] == "http.response.body" and self.response_started and not self._ended:
            await self._body(message)
        elif not self.closed:
            raise UnexpectedMessageError(self._state(), message["type"])

    def _state(self) -> Any:
        return "complete" if self._ended else "started" if self.response_started else "not started"

    async def _start(self, message: Any) -> None:
        protocol = self._protocol
        headers = [
            (bytes(name).strip().lower(), bytes(value).strip()) for name, value in message.get("headers", ())
        ]
        has_length = any(name == b"content-length" for name, _ in headers)
        headers += protocol.server_headers()
        if protocol.in_last_exchange or not self.request_complete:  # what is left of the request is discarded
            headers.append((b"connection", b"close"))
        self.response_started = True
        head = self.writer.head(int(message["status"]), headers)
        if has_length:
            self._held_head = head
        else:
            await protocol.send(RawData(data=head))

    async def _body(self, message: Any) -> None:
        data, more = bytes(message.get("body", b"")), message.get("more_body", False)
        framed = self.writer.data(data) if data else b""
        if not more:
            self._ended = True
            framed += self.writer.end()
        if framed or not more:
            framed, self._held_head = self._held_head + framed, b""
        if framed:
            await self._protocol.send(RawData(data=framed))
        if not more:
            await self._protocol.finished()

    async def _on_app_finished(self) -> None:
        if self.closed:
            return
        if not self.response_started:
            await self._start(
                {"status": 500, "headers": [(b"content-length", b"0"), (b"connection", b"close")]}
            )
            await self._body({})
        else:  # closing the connection signals the truncated response
            await self._protocol.finished()
