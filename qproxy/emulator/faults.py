"""Faults on demand: what a model server may do wrong, each under a model's name.

Ask for the model `fault-cut` (through qproxy or directly) and the answer is cut in the middle. Tests queue
their own `ScriptedReply` instead (`Emulator.script`). Here is only what is sent; `server` sends it.

A reply is a list of steps.  One without a status has no head: its steps are everything that is sent, and so
it may be anything, HTTP or not.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qproxy.wire import json_codec


@dataclass(frozen=True, slots=True)
class PauseStep:
    """Silence for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """The connection closes here, in the middle of the body."""


@dataclass(frozen=True, slots=True)
class RawBytes:
    """Bytes that go out as they are, past HTTP's framing."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ResetConnection:
    """The connection is reset here: what was sent before may be lost on the way."""


@dataclass(frozen=True, slots=True)
class RepeatSteps:
    """Some steps again and again, for ever unless a number of times is given."""

    steps: tuple[Step, ...]
    times: int | None = None


Step: TypeAlias = "bytes | PauseStep | CloseConnection | RawBytes | ResetConnection | RepeatSteps"
HANG = PauseStep(3600.0)
SSE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """An answer: status, header fields, and the body step by step."""

    steps: tuple[Step, ...] = ()
    status: int | None = 200
    """None sends no head: the steps are all there is."""
    content_type: str = SSE
    headers: tuple[tuple[str, str], ...] = field(default=())
    early: bool = False
    """Answer when the request's head is there, and read no more of it."""


def expand_repeats(steps: tuple[Step, ...]) -> Iterator[Step]:
    """The steps with their repetitions written out, as far as one asks for them."""
    for step in steps:
        if isinstance(step, RepeatSteps):
            times = 0
            while step.times is None or times < step.times:
                yield from expand_repeats(step.steps)
                times += 1
        else:
            yield step


def non_http(*steps: bytes | Step) -> ScriptedReply:
    """Bytes in place of an HTTP answer, and then the end of the connection."""
    return ScriptedReply(
        tuple(RawBytes(step) if isinstance(step, bytes) else step for step in steps), status=None
    )


def json_reply(body: Any, status: int = 200, **headers: str) -> ScriptedReply:
    """A whole JSON answer."""
    fields = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return ScriptedReply((json.dumps(body).encode(),), status, "application/json", fields)


def event(body: Any) -> bytes:
    """One chunk of a stream."""
    return b"data: " + json_codec.dumps(body) + b"\n\n"


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


_GREETING_BODY = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hello"})

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
_CHUNKED = _HEAD + b"transfer-encoding: chunked\r\n\r\n"
_HTML_PAGE = b"<html><body>It works!</body></html>"


def _framed(data: bytes) -> bytes:
    """One chunk of HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


FAULTS: dict[str, tuple[str, ScriptedReply]] = {
    "fault-401": ("the key is refused",
        json_reply(_error("invalid_api_key", "Incorrect API key provided."), 401)),
    "fault-429": ("requests a minute are used up", json_reply(_error("limit_requests",
        "Requests rate limit exceeded, please try again later."), 429, retry_after="7")),
    "fault-quota": ("the plan is used up", json_reply(_error("insufficient_quota", "month allocated quota "
                                                                                   "exceeded."), 429)),
    "fault-500": ("an internal error",
        json_reply(_error("internal_error", "An internal error has occurred."), 500)),
    "fault-503": ("overload", json_reply(_error("ServiceUnavailable", "The service is unavailable."), 503)),
    "fault-html": ("a firewall's page with status 200",
        ScriptedReply((b"<html>blocked</html>",), 200, "text/html")),
    "fault-filter": ("content inspection",
        json_reply(_error("data_inspection_failed", "Input data may contain inappropriate content."), 400)),
    "fault-empty": ("a stream with nothing in it", ScriptedReply(())),
    "fault-cut": ("the connection closes in mid-answer",
        ScriptedReply((_GREETING_BODY, PauseStep(0.05), CloseConnection()))),
    "fault-end": ("the stream ends without finish_reason or [DONE]", ScriptedReply((_GREETING_BODY,))),
    "fault-hang": ("silence in mid-answer", ScriptedReply((_GREETING_BODY, HANG))),
    "fault-silent": ("no answer at all", ScriptedReply((HANG,))),
    "fault-garbage": ("a chunk that is not JSON", ScriptedReply((_GREETING_BODY, b"data: {oops\n\n", DONE))),
    "fault-error-first": ("an error as the first event",
        ScriptedReply((event(_error("limit_burst_rate", "Request rate increased too quickly.")), ))),
    "fault-error-late": ("an error in mid-answer", ScriptedReply((_GREETING_BODY,
        event(_error("internal_error", "An internal error has occurred.")), ))),
    "fault-error-finish": ("error_finish with its text as content",
        ScriptedReply((_GREETING_BODY,
            chunk({"content": '{"error":{"code":"429","message":"Throttling: TPM(10/10)"}}'}, "error_finish"),
            DONE))),
    "fault-reset": ("the connection is reset in mid-answer",
        ScriptedReply((_GREETING_BODY, PauseStep(0.05), ResetConnection()))),
    "fault-reset-first": ("the connection is reset before it answers", non_http(ResetConnection())),
    "fault-drop": ("the connection closes before it answers", non_http(CloseConnection())),
    "fault-drip": ("a byte every ten seconds, for ever",
        ScriptedReply((_GREETING_BODY, RepeatSteps((PauseStep(10.0), b":"))))),
    "fault-drip-head": ("a head of one byte every ten seconds, for ever",
        non_http(b"HTTP/1.1 200 OK\r\nx: ", RepeatSteps((PauseStep(10.0), RawBytes(b"y"))))),
    "fault-not-http": ("not HTTP at all", non_http(b"SSH-2.0-OpenSSH_9.6\r\n")),
    "fault-interim": ("1xx answers before the real one",
        non_http(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", _CHUNKED,
            _framed(_GREETING_BODY + chunk({}, "stop") + DONE), b"0\r\n\r\n")),
    "fault-interim-flood": ("1xx answers for ever", non_http(RepeatSteps((RawBytes(b"HTTP/1.1 102 Processing\r\n\r\n"),)))),
    "fault-header-flood": ("ten thousand header fields", non_http(_HEAD, b"".join(b"x-%d: y\r\n" % n for n in range(10_000)), b"\r\n")),
    "fault-endless-head": ("a head that never ends", non_http(_HEAD, RepeatSteps((RawBytes(b"x-a: " + b"y" * 1000 + b"\r\n"),)))),
    "fault-truncated": ("fewer bytes than content-length promised", non_http(_HEAD + b"content-length: 100000\r\n\r\n", _GREETING_BODY)),
    "fault-surplus": ("more bytes than content-length promised", non_http(_HEAD + b"content-length: "
                                                                                  b"%d\r\n\r\n" % len(_GREETING_BODY), _GREETING_BODY, chunk({"content": " more"}), DONE)),
    "fault-length": ("a content-length that is no number", non_http(_HEAD + b"content-length: many\r\n\r\n", _GREETING_BODY)),
    "fault-chunking": ("chunked coding that breaks in mid-answer", non_http(_CHUNKED, _framed(_GREETING_BODY), b"zz\r\noops")),
    "fault-gzip": ("a compressed answer although none was asked for", ScriptedReply((gzip.compress(_GREETING_BODY + chunk({}, "stop") + DONE, mtime=0),), headers=(("content-encoding", "gzip"),))),
    "fault-type": ("a stream that calls itself a page", ScriptedReply((_GREETING_BODY, chunk({}, "stop"), DONE), content_type="text/html")),
    "fault-page-error": ("a gateway's page with status 502", ScriptedReply((_HTML_PAGE,), 502, "text/html")),
    "fault-json-cut": ("a whole answer that ends in mid-JSON", ScriptedReply((b'{"choices": [{"message": '
                                                                              b'{"content": "Hel',), 200, "application/json")),
    "fault-json-odd": ("JSON that is no answer", json_reply([1, 2, 3])),
    "fault-flood": ("a hundred megabytes of answer", ScriptedReply((_GREETING_BODY, RepeatSteps((chunk({"content": "x" * 65_000}),), 1600), chunk({}, "stop"), DONE))),
    "fault-flood-whole": ("a hundred megabytes of whole answer", ScriptedReply((RepeatSteps((b" " * 65_536,), 1600), b"{}"), 200, "application/json")),
    "fault-flood-event": ("a hundred megabytes without the end of an event", ScriptedReply((b"data: ", RepeatSteps((b"x" * 65_536,), 1600)))),
    "quirk-index": ("two calls on one index", ScriptedReply((chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "one", "arguments": "{}"}}]}), chunk({"tool_calls": [{"index": 0, "id": "b", "function": {"name": "two", "arguments": "{}"}}]}), chunk({}, "stop"), DONE))),
}  # fmt: skip
