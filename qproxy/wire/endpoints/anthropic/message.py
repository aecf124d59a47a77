"""The message object and its stop reason, which whole responses and streams share.

    finish reason        stop_reason
    stop                 end_turn; stop_sequence where the server names one of the client's
    tool_calls           tool_use
    length               max_tokens
    content_filter       refusal, and so is any response with refusal text

A tool's input is always an object: any other value becomes one with the key `arguments`.

Anthropic's API reference, the Message object.
"""

from __future__ import annotations

from typing import Any

from qproxy.wire import json_codec
from qproxy.wire.endpoints.anthropic.request import request_of
from qproxy.wire.events import ChoiceFinished, Turn

STOP_REASONS = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "content_filter": "refusal",
}
REFUSAL_DETAILS = {"type": "refusal", "category": None, "explanation": None}


def message_object(
    turn: Turn, content: list[Any], usage: dict[str, Any], stop: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return Anthropic's `Message`; without `stop` it has just started."""
    return {
        "id": turn.id,
        "type": "message",
        "role": "assistant",
        "model": turn.model,
        "content": content,
        **(stop or {"stop_reason": None, "stop_sequence": None}),
        "usage": usage,
    }


def stop_fields(turn: Turn, finish: ChoiceFinished | None, *, is_refusal: bool) -> dict[str, Any]:
    """Return `stop_reason` and its companions for the end of a response."""
    reason = "stop" if finish is None else finish.reason
    matched = None if finish is None or reason != "stop" else finish.matched
    if is_refusal or reason == "content_filter":
        return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": dict(REFUSAL_DETAILS)}
    if matched is not None and matched in request_of(turn).stop_sequences:
        return {"stop_reason": "stop_sequence", "stop_sequence": matched}
    return {"stop_reason": STOP_REASONS.get(reason, "end_turn"), "stop_sequence": None}


def tool_input(arguments: str, *, truncated: bool) -> dict[str, Any]:
    """Return a call's arguments as an object; an empty one where it was truncated."""
    try:
        value = json_codec.loads(arguments.strip() or "{}")
    except ValueError:
        return {} if truncated and arguments.lstrip().startswith("{") else {"arguments": arguments}
    return value if isinstance(value, dict) else {"arguments": arguments}
