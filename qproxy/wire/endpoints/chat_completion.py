"""The `chat.completion` object: the fold of an answer's events, and the objects that chunks share with it.

OpenAPI `CreateChatCompletionResponse`, `CompletionUsage`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qproxy.wire.endpoints import tool_reports
from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    EncryptedReasoning,
    Event,
    ReasoningDelta,
    RefusalDelta,
    SearchInfo,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Turn,
    Usage,
)


def logprobs_object(value: JSON) -> JSON:
    """`choices[].logprobs` with both of its required keys."""
    if not isinstance(value, dict):
        return None
    return {"content": value.get("content"), "refusal": value.get("refusal")}


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `CompletionUsage`; Qwen's further details stay beside OpenAI's own."""
    writes = sum(usage.cache_writes)
    written = {"cache_write_tokens": writes} if writes else {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, **written, **_without_nulls(usage.prompt_details)},
        "completion_tokens_details": {"reasoning_tokens": 0, **_without_nulls(usage.completion_details)},
    }


def _without_nulls(details: dict[str, JSON]) -> dict[str, JSON]:
    return {name: value for name, value in details.items() if value is not None}


class _Choice:
    """What the events of one choice add up to."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.ciphertext: list[str] = []
        self.refusal: list[str] = []
        self.calls: list[tuple[ToolCallStart, list[str]]] = []
        self.logprobs: list[JSON] = []
        self.reason = "stop"


def response(turn: Turn, events: Iterable[Event]) -> dict[str, Any]:
    """The `chat.completion` that the events add up to; raises the error of a `StreamFailed`."""
    choices: dict[int, _Choice] = {}
    usage, found = Usage(), None
    events = list(events)
    for event in events:
        if isinstance(event, Usage):
            usage = event
        elif isinstance(event, SearchInfo):
            found = event.info
        elif isinstance(event, StreamFailed):
            raise event.error
        elif hasattr(event, "choice"):
            _add(choices.setdefault(event.choice, _Choice()), event)
    return {
        "id": turn.id,
        "object": "chat.completion",
        "created": turn.created,
        "model": turn.model,
        "choices": [_choice_object(turn, number, choices[number]) for number in sorted(choices)],
        "usage": usage_object(usage),
        **({} if found is None else {"search_info": found}),
        **({"qproxy": tool_reports.build_report(events)} if turn.include_tool_reports else {}),
    }


def _add(choice: _Choice, event: Event) -> None:
    match event:
        case TextDelta(text, _, logprobs):
            choice.text.append(text)
            if isinstance(logprobs, dict):
                choice.logprobs.extend(logprobs.get("content") or ())
        case ReasoningDelta(text):
            choice.reasoning.append(text)
        case EncryptedReasoning(text):
            choice.ciphertext.append(text)
        case RefusalDelta(text):
            choice.refusal.append(text)
        case ToolCallStart():
            choice.calls.append((event, []))
        case ToolCallArgumentsDelta(index, text):
            choice.calls[index][1].append(text)
        case ChoiceFinished(reason):
            choice.reason = reason


def _choice_object(turn: Turn, number: int, choice: _Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(choice.text) if choice.text or not choice.calls else None,
        "refusal": "".join(choice.refusal) or None,
    }
    if choice.reasoning:
        message["reasoning_content"] = "".join(choice.reasoning)
    if choice.ciphertext:
        message["encrypted_content"] = "".join(choice.ciphertext)
    reason = choice.reason
    if choice.calls and turn.legacy_functions:
        call, pieces = choice.calls[0]
        message["function_call"] = {"name": call.name, "arguments": "".join(pieces)}
        reason = "function_call" if reason == "tool_calls" else reason
    elif choice.calls:
        message["tool_calls"] = [_call_object(call, "".join(pieces)) for call, pieces in choice.calls]
    logprobs = {"content": choice.logprobs, "refusal": None} if choice.logprobs else None
    return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": reason}


def _call_object(call: ToolCallStart, arguments: str) -> dict[str, Any]:
    if call.custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
