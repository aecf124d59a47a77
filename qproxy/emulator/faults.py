"""Faults on demand: what a model server may do wrong, each under a model's name.

Ask for the model `fault-cut` (through qproxy or directly) and the answer is cut in the middle.  Tests queue their
own `Reply` instead (`Emulator.script`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Pause:
    """Silence for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection closes here, in the middle of the body."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that go out as they are, past HTTP's framing."""

    data: bytes


Step: TypeAlias = bytes | Pause | Cut | Raw
HANG = Pause(3600.0)
SSE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: status, header fields, and the body step by step."""

    steps: tuple[Step, ...] = ()
    status: int = 200
    content_type: str = SSE
    headers: tuple[tuple[str, str], ...] = field(default=())


def json_reply(body: Any, status: int = 200, **headers: str) -> Reply:
    """A whole JSON answer."""
    fields = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply((json.dumps(body).encode(),), status, "application/json", fields)


def event(body: Any) -> bytes:
    """One chunk of a stream."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def chunk(delta: Any = None, finish: str | None = None, **extra: Any) -> bytes:
    """One chat chunk of a stream."""
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": finish}]
    return event(
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": choices,
            **extra,
        }
    )


DONE = b"data: [DONE]\n\n"


def _error(code: str, message: str, kind: str = "invalid_request_error") -> Any:
    return {
        "error": {"message": message, "type": kind, "param": None, "code": code},
        "request_id": "emu-fault",
    }


_HELLO = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hello"})

FAULTS: dict[str, tuple[str, Reply]] = {
    "fault-401": ("the key is refused", json_reply(_error("invalid_api_key", "Incorrect API key provided."), 401)),
    "fault-token": ("the access token is refused", json_reply(_error("invalid_api_key", "invalid access token or token expired"), 401)),
    "fault-429": ("requests a minute are used up", json_reply(_error("limit_requests", "Requests rate limit exceeded, please try again later."), 429, retry_after="7")),
    "fault-quota": ("the plan is used up", json_reply(_error("insufficient_quota", "month allocated quota exceeded."), 429)),
    "fault-500": ("an internal error", json_reply(_error("internal_error", "An internal error has occurred."), 500)),
    "fault-503": ("overload", json_reply(_error("ServiceUnavailable", "The service is unavailable."), 503)),
    "fault-html": ("a firewall's page with status 200", Reply((b"<html>blocked</html>",), 200, "text/html")),
    "fault-filter": ("content inspection", json_reply(_error("data_inspection_failed", "Input data may contain inappropriate content."), 400)),
    "fault-empty": ("a stream with nothing in it", Reply(())),
    "fault-cut": ("the connection closes in mid-answer", Reply((_HELLO, Pause(0.05), Cut()))),
    "fault-end": ("the stream ends without finish_reason or [DONE]", Reply((_HELLO,))),
    "fault-hang": ("silence in mid-answer", Reply((_HELLO, HANG))),
    "fault-silent": ("no answer at all", Reply((HANG,))),
    "fault-garbage": ("a chunk that is not JSON", Reply((_HELLO, b"data: {oops\n\n", DONE))),
    "fault-error-first": ("an error as the first event", Reply((event(_error("limit_burst_rate", "Request rate increased too quickly.")), ))),
    "fault-error-late": ("an error in mid-answer", Reply((_HELLO, event(_error("internal_error", "An internal error has occurred.")), ))),
    "fault-error-finish": ("error_finish with its text as content", Reply((_HELLO, chunk({"content": '{"error":{"code":"429","message":"Throttling: TPM(10/10)"}}'}, "error_finish"), DONE))),
    "quirk-index": ("two calls on one index", Reply((chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "one", "arguments": "{}"}}]}), chunk({"tool_calls": [{"index": 0, "id": "b", "function": {"name": "two", "arguments": "{}"}}]}), chunk({}, "stop"), DONE))),
}  # fmt: skip
