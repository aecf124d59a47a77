"""A whole response: the fold of the same events that are streamed.

A stream of them, accumulated as a client does, equals this message (`tests/wire/endpoints/anthropic`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qproxy.wire.endpoints import tool_reports
from qproxy.wire.endpoints.anthropic import message, signatures, tool_ids, usage
from qproxy.wire.endpoints.anthropic.request import request_of
from qproxy.wire.events import (
    ChoiceFinished,
    EncryptedReasoning,
    Event,
    ReasoningDelta,
    RefusalDelta,
    ServerToolCall,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Turn,
    Usage,
)
from qproxy.wire.token_estimate import text_bytes


@dataclass(slots=True)
class _Block:
    """A content block and the pieces of its text."""

    kind: type
    call: ToolCallStart | None = None
    pieces: list[str] = field(default_factory=list)
    ciphertext: list[str] = field(default_factory=list)


class _Message:
    """An accumulator of a response's events."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.finish: ChoiceFinished | None = None
        self.usage: Usage | None = None
        self.is_refusal = False
        self._open: type | None = None

    def add(self, event: Event) -> None:
        match event:
            case TextDelta(text) | RefusalDelta(text):
                self.is_refusal = self.is_refusal or isinstance(event, RefusalDelta)
                self._add_text(TextDelta, text)
            case ReasoningDelta(text):
                self._add_text(ReasoningDelta, text)
            case EncryptedReasoning(text):
                self._open_text(ReasoningDelta)
                self.blocks[-1].ciphertext.append(text)
            case ToolCallStart():
                self._open = ToolCallStart
                self.blocks.append(_Block(ToolCallStart, event))
            case ToolCallArgumentsDelta(_, text):
                self.blocks[-1].pieces.append(text)
            case ServerToolCall():
                self._open = None
            case ChoiceFinished():
                self.finish = event
            case Usage():
                self.usage = event
            case StreamFailed(error):
                raise error

    def _add_text(self, kind: type, text: str) -> None:
        if text:
            self._open_text(kind)
            self.blocks[-1].pieces.append(text)

    def _open_text(self, kind: type) -> None:
        if self._open is not kind:
            self._open = kind
            self.blocks.append(_Block(kind))


def response(turn: Turn, events: Iterable[Event]) -> dict[str, Any]:
    """Fold events into a `Message`. Raises the error of a failed response."""
    fold, events = _Message(), list(events)
    for event in events:
        if not getattr(event, "choice", False):  # no request here has further choices
            fold.add(event)
    truncated = fold.finish is not None and fold.finish.reason == "length"
    content = [_block_object(turn, block, truncated) for block in fold.blocks]
    stop = message.stop_fields(turn, fold.finish, is_refusal=fold.is_refusal)
    body = message.message_object(turn, content, _usage(turn, fold), stop)
    if turn.include_tool_reports:
        body["qproxy"] = tool_reports.build_report(events)
    return body


def _block_object(turn: Turn, block: _Block, truncated: bool) -> dict[str, Any]:
    text = "".join(block.pieces)
    if block.call is not None:
        id, name = tool_ids.client_id(block.call.id), block.call.name
        return {
            "type": "tool_use",
            "id": id,
            "name": name,
            "input": message.tool_input(text, truncated=truncated),
        }
    if block.kind is TextDelta:
        return {"type": "text", "text": text}
    omits_text = request_of(turn).omits_thinking
    if block.ciphertext:
        signature = signatures.seal("".join(block.ciphertext))
    else:
        signature = signatures.sign(text, omits_text=omits_text)
    return {"type": "thinking", "thinking": "" if omits_text else text, "signature": signature}


def _usage(turn: Turn, fold: _Message) -> dict[str, Any]:
    sent = sum(text_bytes(piece) for block in fold.blocks for piece in block.pieces)
    return usage.final_usage(fold.usage, turn.token_estimate, sent)
