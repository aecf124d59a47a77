"""The emulated realtime API: a WebSocket, and what may go wrong with one, each under a model's name.

`realtime_session` makes the responses. A model that is called `fault-rt-…` plays the fault of its name at its
first response.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import h11
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from qproxy.emulator.faults import FAULTS, ScriptedReply, json_reply
from qproxy.emulator.realtime_session import Event, RealtimeModel
from qproxy.wire import json_codec
from qproxy.wire.realtime.urls import PATH

CLOSE_REASON = {"type": "server_error", "code": "the_reason", "message": "m"}
CLOSE = {
    "fault-rt-full": (1013, "too many sessions"),
    "fault-rt-close": (1011, "internal"),
    "fault-rt-bye": (1000, ""),
    "fault-rt-words": (1008, ""),
}
FAULT = "fault-rt-"
MAX_DEPTH = 128
QUIET = ("fault-rt-silent", "fault-rt-deaf", "fault-rt-stuck")
"""They say nothing more; the second one does not even answer pings, the third one reads nothing."""
ENDLESS = {
    "type": "response.audio.delta",
    "response_id": "r",
    "item_id": "i",
    "output_index": 0,
    "content_index": 0,
}


class HandshakeRequest(Protocol):
    """A received session, the counterpart of `server.ReceivedRequest`."""

    method: str
    path: str
    headers: dict[str, str]
    query: dict[str, str]
    disconnected: trio.Event


@dataclass(eq=False)
class RecordedSession:
    """One session, as it was heard."""

    model: str
    headers: dict[str, str]
    events: list[Any] = field(default_factory=list)
    sent_events: int = 0
    closed: trio.Event = field(default_factory=trio.Event)
    code: int | None = None
    """Of the close frame that came."""


def is_realtime(seen: HandshakeRequest) -> bool:
    """Return whether a request opens a session."""
    upgrade = seen.headers.get("upgrade", "").lower()
    return seen.method == "GET" and seen.path == PATH and upgrade == "websocket"


def rejection(model: str) -> ScriptedReply | None:
    """The HTTP answer in place of a session."""
    if model in FAULTS:
        return FAULTS[model][1]
    if "realtime" not in model and not model.startswith(FAULT):
        message = f"The model `{model}` does not exist or you do not have access to it."
        return json_reply({"error": {"message": message, "code": "model_not_found"}}, 404)
    return None


async def serve(
    stream: trio.abc.Stream, http: h11.Connection, seen: HandshakeRequest, sessions: list[RecordedSession]
) -> None:
    """Hold a session over a connection whose first request has been read."""
    heard = RecordedSession(seen.query.get("model", ""), seen.headers)
    sessions.append(heard)
    again = _resume(seen) + http.trailing_data[0]
    try:
        async with trio.open_nursery() as nursery:
            replayed = _ReplayStream(stream, again)
            request = await wrap_server_stream(nursery, replayed)
            socket = await request.accept()
            await _hang(replayed, socket, heard)
            await socket.aclose()
            nursery.cancel_scope.cancel()
    finally:
        heard.closed.set()
        seen.disconnected.set()


async def _hang(stream: _ReplayStream, socket: WebSocketConnection, heard: RecordedSession) -> None:
    speaker = RealtimeModel(heard.model)
    try:
        if heard.model == "fault-rt-early":
            error = {
                "type": "server_error",
                "code": "Throttling.RateQuota",
                "message": "Requests rate limit exceeded",
            }
            await _say(socket, heard, [{"type": "error", "event_id": "e", "error": error}])
            return
        await _say(socket, heard, speaker.start())
        while not speaker.finished:
            event = _parse_message(await socket.get_message())
            heard.events.append(event)
            asks = isinstance(event, dict) and event.get("type") == "response.create"
            if heard.model.startswith(FAULT) and asks:
                await _play_fault(stream, socket, heard)
                return
            await _say(socket, heard, speaker.handle(event))
    except ConnectionClosed as closed:
        heard.code = closed.reason.code if closed.reason else None


def _parse_message(message: str | bytes) -> Any:
    """The event in a message; None, which is no event, for what is not JSON or nests too deeply to be
    repeated."""
    try:
        event = json_codec.loads(message)
    except ValueError:
        return None
    return None if json_codec.exceeds_depth(event, MAX_DEPTH) else event


async def _say(socket: WebSocketConnection, heard: RecordedSession, events: Iterable[Event]) -> None:
    for event in events:
        await socket.send_message(json_codec.dumps(event).decode())
        heard.sent_events += 1


async def _play_fault(stream: _ReplayStream, socket: WebSocketConnection, heard: RecordedSession) -> None:
    model = heard.model
    if model == "fault-rt-words":
        await _say(socket, heard, [{"type": "error", "event_id": "e", "error": CLOSE_REASON}])
    if model in CLOSE:
        await socket.aclose(*CLOSE[model])
    elif model == "fault-rt-garbage":
        await socket.send_message("this is no JSON")
        await socket.send_message('{"type": 1}')
        await trio.sleep_forever()
    elif model == "fault-rt-binary":
        await socket.send_message(b"\x00\x01")
        await trio.sleep_forever()
    elif model == "fault-rt-flood":
        event = json_codec.dumps({**ENDLESS, "delta": "A" * 64_000}).decode()
        while True:
            await socket.send_message(event)
            heard.sent_events += 1
    elif model in QUIET:
        stream.deaf, stream.blocked = model == "fault-rt-deaf", model == "fault-rt-stuck"
        await trio.sleep_forever()
    else:
        await trio.aclose_forcefully(stream)


def _resume(seen: HandshakeRequest) -> bytes:
    """The head of a request that has been read, for a reader of its own."""
    query = "&".join(f"{name}={value}" for name, value in seen.query.items())
    fields = "".join(f"{name}: {value}\r\n" for name, value in seen.headers.items())
    return f"GET {seen.path}?{query} HTTP/1.1\r\n{fields}\r\n".encode()


class _ReplayStream(trio.abc.Stream):
    """A stream with bytes in front of what comes."""

    def __init__(self, stream: trio.abc.Stream, first: bytes) -> None:
        self._stream = stream
        self._first = first
        self.deaf = False
        """Whether what comes is dropped."""
        self.blocked = False
        """Whether it is not even read."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.blocked:
            await trio.sleep_forever()
        if self._first:
            first, self._first = self._first, b""
            return first
        data = await self._stream.receive_some(max_bytes)
        while self.deaf and data:
            data = await self._stream.receive_some(max_bytes)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
