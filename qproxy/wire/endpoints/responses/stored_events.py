"""The end of a stream that is read from stored events.

A process that stops leaves events without an end; then the stored response has the state that the last event
reports.
"""

from __future__ import annotations

from collections.abc import Mapping

from qproxy.wire.endpoints.responses.encoder import encode_events, error_event
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import JSON

_LAST_EVENTS = tuple(
    f"event: {name}\n".encode()
    for name in ("response.completed", "response.failed", "response.incomplete", "error")
)


def is_last_event(frame: bytes) -> bool:
    """Return whether a frame is the last of a stream; `error` may follow `response.failed`."""
    return frame.startswith(_LAST_EVENTS)


def last_events(response: Mapping[str, JSON], number: int) -> list[bytes]:
    """Return the frames that report the end of a response; the first one has the given number."""
    status, error = response["status"], response["error"]
    name = f"response.{status}" if status in ("completed", "failed") else "response.incomplete"
    frames = encode_events([(name, {"response": response})], number)
    if status != "failed":
        return frames
    failure = QproxyError(error["message"], code=error.get("type"), param=error.get("param"))
    return [*frames, *error_events(failure, number + 1)]


def error_events(error: QproxyError, number: int) -> list[bytes]:
    """Return the frame of an error of the stream itself."""
    return encode_events([error_event(error)], number)
