"""A streamed response: events in, Anthropic's server-sent events out.

    message_start, ping, (content_block_start, content_block_delta*, content_block_stop)*, message_delta,
    message_stop

Blocks come one at a time, with dense indices over all types: text, thinking, tool_use. The first delta opens
a block, so none is empty; a delta of another type closes it. A thinking block ends with its signature.
`message_delta` waits for the end, because usage comes last. An error after the first byte is one `error`
event, and nothing follows.

The constant part of a block's deltas is encoded once. Every event has its name: SDKs skip one without. Tools
that this server ran are comments; the text after them is a block of its own.

Anthropic's API reference, streaming messages.
"""

from __future__ import annotations

from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any

from qproxy.wire import json_codec, sse
from qproxy.wire.endpoints import tool_reports
from qproxy.wire.endpoints.anthropic import errors, message, signatures, tool_ids, usage
from qproxy.wire.endpoints.anthropic.request import request_of
from qproxy.wire.endpoints.anthropic.signatures import ReasoningSignature
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import (
    ChoiceFinished,
    EncryptedReasoning,
    Event,
    ReasoningDelta,
    RefusalDelta,
    ServerToolCall,
    ServerToolResult,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Turn,
    Usage,
)
from qproxy.wire.token_estimate import text_bytes

PING = sse.encode(b'{"type":"ping"}', "ping")
_START = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":'
_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_TEXT, _THINKING = b'{"type":"text","text":""}', b'{"type":"thinking","thinking":"","signature":""}'
_TOOL = b'{"type":"tool_use","id":%b,"name":%b,"input":{}}'


def _string(text: str) -> bytes:
    quoted: str = encode_basestring(text)
    try:
        return quoted.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json_codec.dumps(text)


class Encoder:
    """An encoder of one response; one `bytes` an event, the caller joins those of one read."""

    content_type = "text/event-stream"

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._request = request_of(turn)
        self._started = False
        self._finished = False
        self._index = -1
        self._kind: type | None = None
        """The type of event whose block is open."""
        self._delta = b""
        """A delta of the open block up to its text."""
        self._signature = ReasoningSignature()
        self._ciphertext: list[str] = []
        """Pieces of the open thinking block's ciphertext."""
        self._arguments: _Arguments | None = None
        self._finish: ChoiceFinished | None = None
        self._is_refusal = False
        self._usage: Usage | None = None
        self._sent_bytes = 0
        self._tool_report = tool_reports.ToolReport()

    def feed(self, event: Event) -> list[bytes]:
        """Return the server-sent events for an event."""
        encode = _ENCODERS.get(type(event))
        if encode is None or getattr(event, "choice", False):  # no request here has further choices
            return []
        if self._started or isinstance(event, StreamFailed):
            return encode(self, event)
        return [*self._start(), *encode(self, event)]

    def close(self) -> list[bytes]:
        """Return the end of the message; nothing after a failure."""
        if self._finished:
            return []
        self._finished = True
        out = [] if self._started else self._start()
        stop = message.stop_fields(self._turn, self._finish, is_refusal=self._is_refusal)
        body: dict[str, Any] = {"type": "message_delta", "delta": stop, "usage": self._final_usage()}
        if self._turn.include_tool_reports:
            body["qproxy"] = self._tool_report.to_json()
        out += self._close_block()
        out.append(sse.encode(json_codec.dumps(body), "message_delta"))
        return [*out, sse.encode(b'{"type":"message_stop"}', "message_stop")]

    def error_event(self, error: QproxyError) -> bytes:
        """Return the event that reports a failure in mid-stream."""
        self._finished = True
        return sse.encode(json_codec.dumps(errors.error_body(error, self._turn.request_id)), "error")

    def _start(self) -> list[bytes]:
        self._started = True
        estimate = usage.final_usage(None, self._turn.token_estimate, 0)
        body = {"type": "message_start", "message": message.message_object(self._turn, [], estimate)}
        return [sse.encode(json_codec.dumps(body), "message_start"), PING]

    def _final_usage(self) -> dict[str, Any]:
        return usage.final_usage(self._usage, self._turn.token_estimate, self._sent_bytes)

    def _open_block(self, kind: type, block: bytes, delta: bytes) -> list[bytes]:
        """Close the open block and open another, whose deltas begin with `delta`."""
        out = self._close_block()
        self._index += 1
        self._kind = kind
        self._delta = _DELTA % self._index + delta
        return [*out, _START % (self._index, block)]

    def _close_block(self) -> list[bytes]:
        kind, self._kind = self._kind, None
        if kind is None:
            return []
        out = []
        if kind is ReasoningDelta:
            sealed = signatures.seal("".join(self._ciphertext)) if self._ciphertext else None
            text = _string(sealed or self._signature.signature())
            out.append(_DELTA % self._index + b'"signature_delta","signature":%b}}\n\n' % text)
        elif self._arguments is not None:
            out += self._input(self._arguments.close())
            self._arguments = None
        return [*out, _STOP % self._index]

    def _text(self, event: TextDelta | RefusalDelta) -> list[bytes]:
        text = event.text
        if not text:
            return []
        out = [] if self._kind is TextDelta else self._open_block(TextDelta, _TEXT, b'"text_delta","text":')
        self._sent_bytes += text_bytes(text)
        out.append(b"%b%b}}\n\n" % (self._delta, _string(text)))
        return out

    def _refusal(self, event: RefusalDelta) -> list[bytes]:
        self._is_refusal = True
        return self._text(event)

    def _reasoning(self, event: ReasoningDelta) -> list[bytes]:
        text = event.text
        if not text:
            return []
        out = self._open_thinking()
        self._signature.update(text)
        self._sent_bytes += text_bytes(text)
        if not self._request.omits_thinking:
            out.append(b"%b%b}}\n\n" % (self._delta, _string(text)))
        return out

    def _encrypted(self, event: EncryptedReasoning) -> list[bytes]:
        out = self._open_thinking()
        self._ciphertext.append(event.text)
        return out

    def _open_thinking(self) -> list[bytes]:
        """Open a thinking block unless one is open."""
        if self._kind is ReasoningDelta:
            return []
        self._signature = ReasoningSignature(omits_text=self._request.omits_thinking)
        self._ciphertext = []
        return self._open_block(ReasoningDelta, _THINKING, b'"thinking_delta","thinking":')

    def _call(self, event: ToolCallStart) -> list[bytes]:
        block = _TOOL % (_string(tool_ids.client_id(event.id)), _string(event.name))
        out = self._open_block(ToolCallStart, block, b'"input_json_delta","partial_json":')
        self._arguments = _Arguments()
        return out

    def _call_arguments(self, event: ToolCallArgumentsDelta) -> list[bytes]:
        self._sent_bytes += text_bytes(event.text)
        return [] if self._arguments is None else self._input(self._arguments.feed(event.text))

    def _input(self, text: str) -> list[bytes]:
        return [b"%b%b}}\n\n" % (self._delta, _string(text))] if text else []

    def _server_call(self, event: ServerToolCall) -> list[bytes]:
        self._tool_report.add(event)
        return self._close_block()

    def _server_result(self, event: ServerToolResult) -> list[bytes]:
        self._tool_report.add(event)
        return [*self._close_block(), tool_reports.sse_comment(event)]

    def _usage_event(self, event: Usage) -> list[bytes]:
        self._usage = event
        return []

    def _finish_event(self, event: ChoiceFinished) -> list[bytes]:
        self._finish = event
        return []

    def _failed(self, event: StreamFailed) -> list[bytes]:
        return [self.error_event(event.error)]


_ENCODERS: dict[type, Callable[[Encoder, Any], list[bytes]]] = {
    TextDelta: Encoder._text,
    ReasoningDelta: Encoder._reasoning,
    ToolCallArgumentsDelta: Encoder._call_arguments,
    ToolCallStart: Encoder._call,
    RefusalDelta: Encoder._refusal,
    EncryptedReasoning: Encoder._encrypted,
    ChoiceFinished: Encoder._finish_event,
    Usage: Encoder._usage_event,
    StreamFailed: Encoder._failed,
    ServerToolCall: Encoder._server_call,
    ServerToolResult: Encoder._server_result,
}


class _Arguments:
    """A filter that makes a call's arguments an object: any other value is held back and wrapped."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._is_object: bool | None = None
        """None before the first character that is not white space."""

    def feed(self, text: str) -> str:
        """Return what can be sent."""
        if self._is_object:
            return text
        self._held.append(text)
        if self._is_object is None and (first := text.lstrip()[:1]):
            self._is_object = first == "{"
        if not self._is_object:
            return ""
        held, self._held = "".join(self._held), []
        return held

    def close(self) -> str:
        """Return what was held back, as an object."""
        if self._is_object:
            return ""
        text = "".join(self._held)
        return json_codec.dumps({} if self._is_object is None else {"arguments": text}).decode()
