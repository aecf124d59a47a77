"""The `chat.completion` object as the fold of a response's events, and the objects that chunks share with it.

OpenAPI `CreateChatCompletionResponse`, `CompletionUsage`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qproxy.wire.endpoints import tool_reports
from qproxy.wire.endpoints.extra_fields import fold_fields
from qproxy.wire.endpoints.search_sources import chat_annotations, requested_results
from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    EncryptedReasoning,
    Event,
    ExtraFields,
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
from qproxy.wire.search_results import SearchResult


def logprobs_object(value: JSON) -> JSON:
    """Return `choices[].logprobs` with both required keys."""
    if not isinstance(value, dict):
        return None
    return {"content": value.get("content"), "refusal": value.get("refusal")}


def usage_object(usage: Usage | None) -> dict[str, Any] | None:
    """Return OpenAI's `CompletionUsage` with the upstream's further fields; None if it reported no usage."""
    if usage is None:
        return None
    writes = sum(usage.cache_writes)
    written = {"cache_write_tokens": writes} if writes else {}
    return {
        **usage.extra,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, **written, **_without_nulls(usage.prompt_details)},
        "completion_tokens_details": {"reasoning_tokens": 0, **_without_nulls(usage.completion_details)},
    }


def _without_nulls(details: dict[str, JSON]) -> dict[str, JSON]:
    return {name: value for name, value in details.items() if value is not None}


class _Choice:
    """The accumulated events of one choice."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.ciphertext: list[str] = []
        self.refusal: list[str] = []
        self.calls: list[tuple[ToolCallStart, list[str]]] = []
        self.logprobs: list[JSON] = []
        self.message_fields: list[dict[str, JSON]] = []
        """Further fields of the message, by delta."""
        self.choice_fields: list[dict[str, JSON]] = []
        """Further fields of the choice, by chunk."""
        self.sources: list[SearchResult] = []
        """The results of a web search."""
        self.reason = "stop"


def response(turn: Turn, events: Iterable[Event]) -> dict[str, Any]:
    """Return the `chat.completion` of some events. Raises the error of a `StreamFailed`."""
    choices: dict[int, _Choice] = {}
    usage: Usage | None = None
    extra: dict[str, JSON] = {}
    events = list(events)
    for event in events:
        if isinstance(event, Usage):
            usage = event
        elif isinstance(event, SearchInfo):
            extra["search_info"] = event.info
            if sources := requested_results(turn, event):
                choices.setdefault(0, _Choice()).sources = sources
        elif isinstance(event, ExtraFields) and event.level == "chunk":
            extra |= event.fields
        elif isinstance(event, StreamFailed):
            raise event.error
        elif hasattr(event, "choice"):
            _add(choices.setdefault(event.choice, _Choice()), event)
    return {
        **extra,
        "id": turn.id,
        "object": "chat.completion",
        "created": turn.created,
        "model": turn.model,
        "choices": [_choice_object(turn, number, choices[number]) for number in sorted(choices)],
        "usage": usage_object(usage),
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
        case ExtraFields(fields, level):
            (choice.message_fields if level == "delta" else choice.choice_fields).append(fields)
        case ChoiceFinished(reason):
            choice.reason = reason


def _choice_object(turn: Turn, number: int, choice: _Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        **fold_fields(choice.message_fields),
        "role": "assistant",
        "content": "".join(choice.text) if choice.text or not choice.calls else None,
        "refusal": "".join(choice.refusal) or None,
    }
    if choice.sources:
        message["annotations"] = chat_annotations("".join(choice.text), choice.sources)
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
    return {
        **fold_fields(choice.choice_fields),
        "index": number,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": reason,
    }


def _call_object(call: ToolCallStart, arguments: str) -> dict[str, Any]:
    if call.custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
