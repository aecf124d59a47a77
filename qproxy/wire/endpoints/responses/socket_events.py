"""The messages of `/v1/responses` over a WebSocket, whose one connection carries many responses.

A client sends `response.create` with the body of `POST /v1/responses`; the server sends the events of its
stream, each as one message. A `stream_id` names a *lane*: responses of one lane follow each other, those of
several run concurrently, and every event of a lane names it.

A response ends with one event here: after `response.failed` no `error` follows, since the next message would
belong to the lane's next response.

OpenAI's guide "WebSocket mode"; openai-python `ResponsesClientEvent`, `ResponsesServerEvent`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qproxy.wire import json_codec
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.responses import objects, request
from qproxy.wire.endpoints.responses.encoder import Encoder
from qproxy.wire.endpoints.responses.item_event import ItemEvent
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON, Turn, Usage

MAX_LANES = 32
"""Named lanes of one connection; the one without a name is not counted."""
MAX_IN_FLIGHT = 16
"""Responses of one connection at a time; further ones wait for their turn."""
CREATE, STEER = "response.create", "response.steer"
_ENVELOPE = frozenset(("type", "stream_id", "generate", "stream"))
"""Fields of a message that are not those of a body; `stream` is implied."""
_ERROR = b"event: error\n"
_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}\Z")


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """One message of a client."""

    type: str
    stream_id: str | None
    data: bytes
    """Its text."""
    previous_id: str | None = None
    """The response that it continues."""
    generate: bool = True
    """Whether the client wants a response, and not only to prepare the next one."""
    input: JSON = None

    async def read(self) -> bytes:
        """Return its text, as the body of a request is read."""
        return self.data


def parse_message(data: bytes) -> ClientMessage:
    """Return a client's message.  Raises RequestError if it is none, or names its lane in a wrong way."""
    try:
        fields = json_codec.loads(data)
    except ValueError as error:
        raise RequestError(f"The message is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError("The message is not a JSON object.", code="invalid_json")
    previous, generate = fields.get("previous_response_id"), fields.get("generate")
    cache = fields.get("prompt_cache_options")
    prewarms = isinstance(cache, dict) and cache.get("prewarm") is True
    kind = fields.get("type")
    return ClientMessage(
        kind if isinstance(kind, str) else "",
        _stream_id(fields.get("stream_id")),
        data,
        previous if isinstance(previous, str) else None,
        generate is not False and not prewarms,
        fields.get("input"),
    )


def _stream_id(value: JSON) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _STREAM_ID.match(value):
        message = (
            "The 'stream_id' field must be a string of 1 to 256 letters, numbers, underscores, hyphens and "
            "periods."
        )
        raise RequestError(message, param="stream_id", code="invalid_stream_id")
    return value


def unknown_type(kind: str) -> RequestError:
    """Return the error for a message of another type."""
    message = f"Unknown message type {kind[:100]!r}: expected '{CREATE}'."
    return RequestError(message, param="type", code="unknown_message_type")


def too_many_lanes() -> RequestError:
    """Return the error for another lane on a connection that has as many as it may."""
    message = (
        f"This WebSocket connection has reached its maximum number of distinct stream IDs ({MAX_LANES}). "
        "Reuse an existing stream_id or open a new WebSocket connection."
    )
    return RequestError(message, param="stream_id", code="websocket_stream_limit_reached")


def queue_full(max_bytes: int) -> RequestError:
    """Return the error for a message on a connection whose waiting messages are too large together."""
    message = (
        f"The messages that wait on this connection are larger than {max_bytes:,} bytes (max_body_bytes). "
        "Send this one again when responses have ended."
    )
    return RequestError(message, status=413, code="request_too_large")


def connection_expired(seconds: float) -> RequestError:
    """Return the error that ends a connection after its lifetime, for which clients open another one."""
    message = (
        f"The WebSocket connection has reached its limit of {seconds:g} s (responses_socket_timeout). "
        "Create a new WebSocket connection to continue."
    )
    return RequestError(message, code="websocket_connection_limit_reached")


def decode(body: JSON, **arguments: Any) -> Turn:
    """Return the turn of a `response.create`.  Raises RequestError naming the invalid field."""
    body = validation.body(body)
    if body.get("background"):
        message = "'background' is not supported over WebSocket."
        raise RequestError(message, param="background", code="unsupported_parameter")
    fields = {name: value for name, value in body.items() if name not in _ENVELOPE}
    if body.get("generate") is False:
        fields.setdefault("input", [])
    return request.decode({**fields, "stream": True}, **arguments)


class SocketEncoder(Encoder):
    """An encoder from events to messages, one a line; what is kept of the stream are server-sent events."""

    def _frames(self, happenings: Iterable[ItemEvent]) -> list[bytes]:
        frames = super()._frames(happenings)
        return [_line(frame) for frame in frames if not frame.startswith(_ERROR)]


def _line(frame: bytes) -> bytes:
    """Return the data of a server-sent event, which is JSON and has no line breaks, as a line."""
    return frame.partition(b"\ndata: ")[2].removesuffix(b"\n")


def prepared_response(turn: Turn) -> tuple[dict[str, JSON], bytes]:
    """Return the response to a turn that is only prepared, and its messages, one a line."""
    echo = request.request_of(turn).echo
    started = objects.response_object(turn, echo, "in_progress")
    response = objects.response_object(turn, echo, "completed", usage=Usage())
    states = (("created", started), ("in_progress", started), ("completed", response))
    events = (
        {"type": f"response.{state}", "sequence_number": number, "response": value}
        for number, (state, value) in enumerate(states)
    )
    return response, b"".join(json_codec.dumps(event) + b"\n" for event in events)


def error_message(status: int, error: Mapping[str, JSON], headers: Mapping[str, str]) -> bytes:
    """Return the message for a request that has no response; `headers` are those of its HTTP response."""
    details = {**error, "headers": dict(headers)} if headers else error
    return json_codec.dumps({"type": "error", "status": status, "error": details})


def steer_failed(message: ClientMessage) -> bytes:
    """Return the event that gives back the input of a `response.steer`: no Qwen model reads it in between."""
    error = {
        "type": "invalid_request_error",
        "code": "steering_not_supported",
        "message": "Responses cannot be steered here: send the input with the next 'response.create'.",
    }
    steer = {"previous_response_id": message.previous_id or "", "input": message.input or ""}
    return json_codec.dumps(
        {"type": "response.steer.failed", "sequence_number": 0, "error": error, "steer": steer}
    )


def on_lane(lines: bytes, stream_id: str | None) -> Iterable[str]:
    """Yield each message of some lines with the name of its lane."""
    head = "{" if stream_id is None else f'{{"stream_id":"{stream_id}",'
    for line in lines.splitlines():
        yield head + line[1:].decode()
