"""Answers of `/v1/messages` as a client reads them: added up, with what is wrong noted on the way.

Nothing is guessed and nothing is repaired: a block begins with its `content_block_start`, and only deltas of
its own kind add to it, as in Anthropic's SDKs.  A stream that is right adds up to the very message that a
whole answer is.

Standard: Anthropic's API reference, the Message object and streaming messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from qproxy.wire import json_codec
from qproxy.wire.conformance.rules import Violation
from qproxy.wire.events import JSON

RULES: dict[str, str] = {
    "json": "what cannot be read ends the client's request with an exception",
    "event-name": "SDKs skip an event whose name is not its type",
    "message-start": "SDKs build the message from it, and refuse a second one",
    "block-order": "SDKs add a delta to the block of its index: with two open, one is mixed into the other",
    "block-index": "anthropic-python keeps the blocks in a list: a gap is an IndexError",
    "block-kind": "a delta of another kind than its block is dropped or ends the client",
    "block-empty": "an empty text block cannot be sent back: Anthropic and others refuse it",
    "signature": "clients drop a thought without one, and some the whole turn",
    "tool-id": "results are matched to calls by id; clients check its characters",
    "tool-input": "clients parse the input as a JSON object",
    "stop-reason": "agents run tools exactly when stop_reason is tool_use; null ends some of them",
    "usage": "clients decide by it when to compact a conversation",
    "message-stop": "a silent end is a broken answer: clients ask again",
    "error": "clients read error.type and error.message, and decide by them whether to ask again",
    "envelope": "SDKs build typed objects from id, type, role and model",
}
"""By name: what a client does with it, so what a violation costs."""
STOP_REASONS = (
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "refusal",
    "model_context_window_exceeded",
)
DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("thinking", "signature"),
    "input_json_delta": ("tool_use", "partial_json"),
}
"""By type: the kind of its block, and where its text is."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


@dataclass(slots=True)
class ParsedMessage:
    """The content of a response, and its violations of the contract."""

    message: dict[str, Any] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    error: dict[str, Any] | None = None
    """The error in place of a response, or of its rest."""
    pings: int = 0

    def note(self, rule: str, text: str) -> None:
        """A violation, noted once."""
        if (violation := Violation(rule, text)) not in self.violations:
            self.violations.append(violation)


def check_message(body: JSON) -> ParsedMessage:
    """A whole answer."""
    parsed = ParsedMessage()
    if not isinstance(body, dict):
        parsed.note("json", "it is not an object")
        return parsed
    if body.get("type") == "error":
        _error(body, parsed)
        return parsed
    parsed.message = body
    _envelope(body, parsed)
    _finished(body, parsed)
    return parsed


def check_stream(frames: Iterable[tuple[str, str]]) -> ParsedMessage:
    """A streamed answer, by the names and data of its events."""
    reader = _StreamReader()
    for name, data in frames:
        reader.read(name, data)
    return reader.ended()


class _StreamReader:
    """Reads one stream."""

    def __init__(self) -> None:
        self.parsed = ParsedMessage()
        self._open: dict[str, Any] | None = None
        self._json = ""
        self._over: str | None = None
        """What ended the stream."""

    def read(self, name: str, data: str) -> None:
        parsed = self.parsed
        try:
            event = json_codec.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            parsed.note("json", f"an event is no JSON object: {data[:60]!r}")
            return
        kind = event.get("type")
        if name != kind:
            parsed.note("event-name", f"an event of the type {kind!r:.40} is named {name!r:.40}")
        if self._over is not None:
            parsed.note("message-stop", f"{name!r:.40} follows {self._over}")
        if not parsed.message and kind not in ("message_start", "error"):
            parsed.note("message-start", f"{kind!r:.40} comes before it")
        read = _READERS.get(str(kind))
        if read is None:
            parsed.note("event-name", f"{kind!r:.40} is no event")
        else:
            read(self, event)

    def ended(self) -> ParsedMessage:
        if self.parsed.error is None and self._over is None:
            self.parsed.note("message-stop", "the stream ends without it")
        elif self.parsed.error is None:
            _finished(self.parsed.message, self.parsed)
        return self.parsed

    def _start(self, event: dict[str, Any]) -> None:
        if self.parsed.message:
            self.parsed.note("message-start", "there is a second one")
        message = event.get("message")
        self.parsed.message = dict(message) if isinstance(message, dict) else {}
        _envelope(self.parsed.message, self.parsed)
        if self.parsed.message.get("content") != [] or self.parsed.message.get("stop_reason") is not None:
            self.parsed.note("message-start", "it has content or an end already")
        _usage(self.parsed.message.get("usage"), self.parsed)

    def _block_start(self, event: dict[str, Any]) -> None:
        content: list[Any] = self.parsed.message.setdefault("content", [])
        if self._open is not None:
            self.parsed.note("block-order", f"block {event.get('index')} begins in block {len(content) - 1}")
        if event.get("index") != len(content):
            self.parsed.note("block-index", f"block {len(content)} has the index {event.get('index')!r:.40}")
        block = event.get("content_block")
        self._open = dict(block) if isinstance(block, dict) else {}
        self._json = ""
        content.append(self._open)

    def _delta(self, event: dict[str, Any]) -> None:
        delta = event.get("delta")
        kind = delta.get("type") if isinstance(delta, dict) else None
        if self._open is None or event.get("index") != len(self.parsed.message["content"]) - 1:
            self.parsed.note(
                "block-order", f"a delta for block {event.get('index')!r:.40}, which is not open"
            )
            return
        block, key = DELTAS.get(str(kind), ("", ""))
        text = delta.get(key) if isinstance(delta, dict) else None
        if block != self._open.get("type") or not isinstance(text, str):
            self.parsed.note("block-kind", f"{kind!r:.40} in a block of {self._open.get('type')!r:.40}")
            return
        if key == "partial_json":
            self._json += text
            return
        if self._open.get("signature"):
            self.parsed.note("signature", f"{kind!r:.40} follows it")
        self._open[key] = self._open.get(key, "") + text

    def _block_stop(self, event: dict[str, Any]) -> None:
        if self._open is None or event.get("index") != len(self.parsed.message["content"]) - 1:
            self.parsed.note("block-order", f"block {event.get('index')!r:.40} ends, which is not open")
            return
        if self._open.get("type") == "tool_use":
            self._open["input"] = _input(self._json, self.parsed)
        self._open = None

    def _message_delta(self, event: dict[str, Any]) -> None:
        if self._open is not None:
            self.parsed.note("block-order", "the message ends in a block")
        if self.parsed.message.get("stop_reason") is not None:
            self.parsed.note("stop-reason", "there are two")
        delta = event.get("delta")
        self.parsed.message.update(delta if isinstance(delta, dict) else {})
        self.parsed.message["usage"] = event.get("usage")

    def _stop(self, event: dict[str, Any]) -> None:
        self._over = "message_stop"

    def _ping(self, event: dict[str, Any]) -> None:
        self.parsed.pings += 1

    def _failed(self, event: dict[str, Any]) -> None:
        self._over = "error"
        _error(event, self.parsed)


_READERS: dict[str, Callable[[_StreamReader, dict[str, Any]], None]] = {
    "message_start": _StreamReader._start,
    "content_block_start": _StreamReader._block_start,
    "content_block_delta": _StreamReader._delta,
    "content_block_stop": _StreamReader._block_stop,
    "message_delta": _StreamReader._message_delta,
    "message_stop": _StreamReader._stop,
    "ping": _StreamReader._ping,
    "error": _StreamReader._failed,
}


def _input(text: str, parsed: ParsedMessage) -> Any:
    try:
        return json_codec.loads(text)
    except ValueError:
        parsed.note("tool-input", f"it is not JSON: {text[:60]!r}")
        return {}


def _envelope(message: dict[str, Any], parsed: ParsedMessage) -> None:
    for key, value in (("type", "message"), ("role", "assistant")):
        if message.get(key) != value:
            parsed.note("envelope", f"{key} is {message.get(key)!r:.40} instead of {value!r}")
    for key in ("id", "model"):
        if not isinstance(message.get(key), str):
            parsed.note("envelope", f"{key} is {message.get(key)!r:.40}")
    if "stop_sequence" not in message:
        parsed.note("envelope", "stop_sequence is absent (it may be null)")


def _finished(message: dict[str, Any], parsed: ParsedMessage) -> None:
    """The rules for a message that is whole."""
    content = message.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    if not isinstance(content, list) or len(blocks) != len(content):
        parsed.note("envelope", "content is not a list of blocks")
    ids = [block.get("id") for block in blocks if block.get("type") == "tool_use"]
    if not all(isinstance(id, str) and _ID.match(id) for id in ids) or len(set(ids)) != len(ids):
        parsed.note("tool-id", f"{ids!r:.60}")
    for block in blocks:
        _block(block, parsed)
    reason = message.get("stop_reason")
    if reason not in STOP_REASONS:
        parsed.note("stop-reason", f"it is {reason!r:.40}")
    if (reason == "tool_use" and not ids) or (reason in ("end_turn", "stop_sequence") and ids):
        parsed.note("stop-reason", f"it is {reason} with {len(ids)} calls")
    if (reason == "stop_sequence") != (message.get("stop_sequence") is not None):
        parsed.note("stop-reason", f"it is {reason} with the sequence {message.get('stop_sequence')!r:.40}")
    _usage(message.get("usage"), parsed)


def _block(block: dict[str, Any], parsed: ParsedMessage) -> None:
    kind = block.get("type")
    if kind == "text" and not (isinstance(block.get("text"), str) and block["text"]):
        parsed.note("block-empty", "a text block has no text")
    elif kind == "thinking" and not (isinstance(block.get("signature"), str) and block["signature"]):
        parsed.note("signature", "a thinking block has none")
    elif kind == "tool_use" and not (
        isinstance(block.get("name"), str) and isinstance(block.get("input"), dict)
    ):
        parsed.note("tool-input", f"that of {block.get('name')!r:.60} is no object")
    elif kind not in ("text", "thinking", "tool_use"):
        parsed.note("block-kind", f"a block of {kind!r:.40}")


def _usage(usage: Any, parsed: ParsedMessage) -> None:
    counts = [usage.get(name) for name in _COUNTS] if isinstance(usage, dict) else [None]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        parsed.note("usage", f"{', '.join(_COUNTS)} are not counts: {usage!r:.80}")


def _error(body: dict[str, Any], parsed: ParsedMessage) -> None:
    error = body.get("error")
    parsed.error = error if isinstance(error, dict) else {}
    for key in ("type", "message"):
        if not isinstance(parsed.error.get(key), str) or not parsed.error[key]:
            parsed.note("error", f"error.{key} is {parsed.error.get(key)!r:.40}")
