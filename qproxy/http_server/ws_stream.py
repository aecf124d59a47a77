"""A WebSocket over HTTP/1.1 or over an HTTP/2 stream (RFC 6455, 8441), between its protocol and the app.

Stock Hypercorn stops the whole server when a client sends a byte before the WebSocket is accepted (#225) or
after its end. It counts buffered messages but not their size, inflates without a limit, accepts oversized and
invalid messages without closing, and pings without requiring a pong.

Here input is buffered up to a bound until the app receives it; at that bound reading stops. There is no
compression: a kilobyte could become a megabyte. `on_disconnect` is invoked when the client disconnects, as
for an `HTTPStream`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import trio
from hypercorn.protocol.events import Body, Data, EndBody, EndData, Request, Response, StreamClosed
from hypercorn.protocol.ws_stream import Handshake
from hypercorn.trio.task_group import _handle as run_app
from hypercorn.utils import UnexpectedMessageError
from wsproto.connection import Connection, ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

from qproxy.http_server.http_stream import EXTENSION, MAX_BUFFERED, MAX_PIECES, SLICE, DisconnectNotifier
from qproxy.wire import json_codec
from qproxy.wire.endpoints.openai_api import OPENAI
from qproxy.wire.errors import RequestError

MAX_EARLY_BYTES = 64 * 1024
"""Bytes that a client may send before it is accepted."""
MAX_PARTS = 64 * 1024
"""Non-empty parts of a message: 16 MiB in reads of 256 bytes."""
CLOSE_TIMEOUT = 1.0
"""Seconds for the client to return a close frame: closing with unread data would reset the socket and lose
ours."""
NORMAL, ABNORMAL, MESSAGE_TOO_BIG, INTERNAL_ERROR = 1000, 1006, 1009, 1011


class WSStream(DisconnectNotifier):
    """One WebSocket, in the role of Hypercorn's class of this name."""

    def __init__(
        self,
        app: Any,
        config: Any,
        context: Any,
        task_group: Any,
        ssl: bool,
        client: Any,
        server: Any,
        send: Callable[[Any], Awaitable[None]],
        stream_id: int,
    ) -> None:
        self._app = app
        self._config = config
        self._task_group = task_group
        self._tls_and_addresses = {"scheme": "wss" if ssl else "ws", "client": client, "server": server}
        self._send = send
        self._id = stream_id
        self._handshake: Handshake
        self._connection: Connection | None = None
        """The WebSocket connection; None until it is accepted."""
        self._early_data = b""
        self.max_message_bytes: int = config.websocket_max_message_size
        """The app may set another limit before it accepts."""
        self._message_parts: list[Any] = []
        self._size = 0
        """Bytes of the incomplete message."""
        self._received: deque[dict[str, Any]] = deque()
        self._buffered = 0
        self._changed = trio.lowlevel.ParkingLot()
        """Unparked on a new message, for which the app waits, or on a consumed one, for which the reader
        waits."""
        self._blocked = False
        self._last_received = 0.0
        self._rejection: Any = None
        """The head of the HTTP response that rejects the handshake."""
        self._handshake_done = False
        self._failed = False
        self._close_sent = trio.Event()
        self._keepalive_scope = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<WSStream {'closed' if self.closed else 'open' if self._connection else 'connecting'}>"

    @property
    def idle(self) -> bool:
        """Return whether the connection may be closed as idle."""
        return self.closed or (self._handshake_done and self._connection is None)

    # From the client

    async def handle(self, event: Any) -> None:
        """Process an event from the HTTP connection."""
        if self.closed:
            return
        if isinstance(event, Request):
            await self._start(event)
        elif isinstance(event, Body | Data):
            await self._receive(bytes(event.data))
        elif isinstance(event, EndBody):
            await self._send(StreamClosed(stream_id=self._id))
        elif isinstance(event, StreamClosed):
            self._close()

    async def _start(self, request: Any) -> None:
        self._handshake = _read_handshake(request)
        if not self._handshake.is_valid():
            await self._reject_with_message()
            return
        path, _, query = request.raw_path.partition(b"?")
        scope = {
            "type": "websocket",
            "asgi": {"spec_version": "2.3", "version": "3.0"},
            "http_version": request.http_version,
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": self._config.root_path,
            "headers": request.headers,
            "subprotocols": self._handshake.subprotocols or [],
            "state": request.state.copy(),
            "extensions": {"websocket.http.response": {}, EXTENSION: self},
            **self._tls_and_addresses,
        }
        self._received.append({"type": "websocket.connect"})
        spawn, call = trio.to_thread.run_sync, trio.from_thread.run
        self._task_group.spawn(run_app, self._app, self._config, scope, self.receive, self.send, spawn, call)

    async def _reject_with_message(self) -> None:
        error = RequestError(
            "Invalid WebSocket handshake (RFC 6455 4.1): check its headers.", code="bad_handshake"
        )
        body = json_codec.dumps(OPENAI.error_body(error, ""))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self._send_handshake({"status": error.status, "headers": headers})
        await self._send(Body(stream_id=self._id, data=body))
        await self._send(EndBody(stream_id=self._id))
        await self._send(StreamClosed(stream_id=self._id))

    async def _receive(self, data: bytes) -> None:
        connection = self._connection
        if connection is None:
            self._early_data += data
            if len(self._early_data) > MAX_EARLY_BYTES:
                await self._send(StreamClosed(stream_id=self._id))
            return
        self._last_received = trio.current_time()
        if connection.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            connection.receive_data(data)
            for number, event in enumerate(connection.events(), 1):
                await self._handle_frame(connection, event)
                if not number % SLICE:
                    await trio.lowlevel.checkpoint()
                    await self._wait_for_app()
        await self._wait_for_app()

    async def _wait_for_app(self) -> None:
        """Wait while the buffer for the app is full."""
        self._blocked = True
        while (self._buffered > MAX_BUFFERED or len(self._received) > MAX_PIECES) and not (
            self.closed or self._failed
        ):
            await self._changed.park()
        self._blocked = False

    async def _handle_frame(self, connection: Connection, event: Any) -> None:
        if isinstance(event, Message):
            if connection.state is ConnectionState.OPEN:
                await self._handle_message(event)
        elif isinstance(event, Ping):
            await self._frame(event.response())
        elif isinstance(event, CloseConnection):
            if connection.state is ConnectionState.OPEN:  # wsproto reports a protocol error this way
                await self._fail(int(event.code), event.reason)
                return
            if connection.state is ConnectionState.REMOTE_CLOSING:
                await self._frame(event.response())
            await self._on_closed()

    async def _handle_message(self, event: Any) -> None:
        data = event.data
        self._size += (
            len(data) if isinstance(data, bytes | bytearray) or data.isascii() else len(data.encode())
        )
        limit = self.max_message_bytes
        if self._size > limit or len(self._message_parts) >= MAX_PARTS:
            await self._fail(
                MESSAGE_TOO_BIG, f"A message may have at most {limit} bytes in {MAX_PARTS} parts."
            )
            return
        if data or not self._message_parts:
            self._message_parts.append(data)
        if not event.message_finished:
            return
        text = isinstance(event, TextMessage)
        whole: Any = "".join(self._message_parts) if text else b"".join(self._message_parts)
        message = {
            "type": "websocket.receive",
            "text": whole if text else None,
            "bytes": None if text else whole,
        }
        self._received.append({**message, "size": self._size})
        self._buffered += self._size
        self._message_parts, self._size = [], 0
        self._changed.unpark_all()

    async def _on_closed(self) -> None:
        """Close the stream after both sides have sent a close frame."""
        self._close_sent.set()
        await self._end()

    async def _fail(self, code: int, reason: str | None) -> None:
        """Send a close frame for invalid input, and end the app. Input is dropped from then on."""
        await self._frame(CloseConnection(code=code, reason=reason))
        self._failed = True
        self._changed.unpark_all()
        self._notify()

    async def _end(self) -> None:
        if not self.closed:
            await self._send(EndData(stream_id=self._id))
            await self._send(StreamClosed(stream_id=self._id))

    def _close(self) -> None:
        self.closed = True
        self._close_sent.set()
        self._keepalive_scope.cancel()
        self._changed.unpark_all()
        self._notify()

    async def receive(self) -> dict[str, Any]:
        """Return the next message, as ASGI's `receive`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._received:
            if self.closed or self._failed:
                return {"type": "websocket.disconnect", "code": ABNORMAL}
            await self._changed.park()
        message = self._received.popleft()
        self._buffered -= message.pop("size", 0)
        self._changed.unpark_all()
        return message

    # From the app

    async def send(self, message: Any) -> None:
        """Send a message of the app, as ASGI's `send`; None means that the app has returned."""
        if self.closed:
            return
        kind = None if message is None else message["type"]
        if kind is None:
            await self._on_app_finished()
        elif kind == "websocket.accept" and not self._handshake_done:
            await self._accept(message)
        elif kind == "websocket.send" and self._connection is not None:
            data = message.get("bytes")
            await self._frame(TextMessage(data=message["text"]) if data is None else BytesMessage(data=data))
        elif kind == "websocket.close" and self._connection is not None:
            code, reason = int(message.get("code") or NORMAL), message.get("reason") or None
            await self._frame(CloseConnection(code=code, reason=reason))
        elif kind == "websocket.close" and not self._handshake_done:
            await self._send_handshake({"status": 403, "headers": [(b"content-length", b"0")]})
            await self._send(EndBody(stream_id=self._id))
        elif kind == "websocket.http.response.start" and not self._handshake_done:
            self._rejection = message
        elif kind == "websocket.http.response.body" and self._rejection is not None:
            await self._reject(message)
        else:
            raise UnexpectedMessageError(str(self), kind)  # type: ignore[arg-type]

    async def _accept(self, message: Any) -> None:
        self._handshake.extensions = None
        status, headers, self._connection = self._handshake.accept(
            message.get("subprotocol"), message.get("headers", ())
        )
        await self._send_handshake({"status": status, "headers": headers})
        self._last_received = trio.current_time()
        if self._config.websocket_ping_interval is not None:
            self._task_group.spawn(self._ping_loop, self._config.websocket_ping_interval)
        early, self._early_data = self._early_data, b""
        if early:
            await self._receive(early)

    async def _send_handshake(self, head: Any) -> None:
        self._handshake_done = True
        headers = [(bytes(name).lower(), bytes(value)) for name, value in head["headers"]]
        # A rejection closes an HTTP/1.1 connection; an HTTP/2 connection continues with its other streams.
        if self._connection is None and self._handshake.http_version == "1.1":
            headers = [*(field for field in headers if field[0] != b"connection"), (b"connection", b"close")]
        await self._send(Response(stream_id=self._id, status_code=int(head["status"]), headers=headers))

    async def _reject(self, message: Any) -> None:
        if not self._handshake_done:
            await self._send_handshake(self._rejection)
        body = bytes(message.get("body", b""))
        if body:
            await self._send(Body(stream_id=self._id, data=body))
        if not message.get("more_body", False):
            await self._send(EndBody(stream_id=self._id))

    async def _frame(self, event: Any) -> None:
        if self._connection is None:
            return
        try:
            data = self._connection.send(event)
        except LocalProtocolError:  # the WebSocket is closed
            return
        await self._send(Data(stream_id=self._id, data=data))

    async def _on_app_finished(self) -> None:
        connection = self._connection
        if not self._handshake_done:
            await self._send_handshake({"status": 500, "headers": [(b"content-length", b"0")]})
            await self._send(EndBody(stream_id=self._id))
        if connection is None:
            await self._send(StreamClosed(stream_id=self._id))
            return
        if connection.state is ConnectionState.OPEN:
            await self._frame(CloseConnection(code=INTERNAL_ERROR))
        with trio.move_on_after(CLOSE_TIMEOUT):
            await self._close_sent.wait()
        await self._end()

    async def _ping_loop(self, interval: float) -> None:
        """Ping a silent client, and close the stream if it returns no pong."""
        with self._keepalive_scope:
            pinged = False
            while True:
                await trio.sleep_until(self._last_received + interval * (2 if pinged else 1))
                quiet = trio.current_time() - self._last_received
                if self._blocked:  # reading is paused here, so a pong could not arrive
                    self._last_received, pinged = trio.current_time(), False
                elif pinged and quiet >= interval * 2:
                    with trio.CancelScope(shield=True):
                        await self._send(StreamClosed(stream_id=self._id))
                    return
                elif quiet >= interval:
                    pinged = True
                    await self._frame(Ping())
                else:
                    pinged = False


def _read_handshake(request: Any) -> Handshake:
    """Return the handshake of a request; headers that are not text yield an empty, invalid one."""
    try:
        return Handshake(request.headers, request.http_version)
    except ValueError:
        return Handshake([], request.http_version)
