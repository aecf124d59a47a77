"""Breakpoints of explicit caches in a request: whether it has any, without them, or with planned ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from qproxy.wire.events import JSON

MARKS = ("cache_control", "prompt_cache_breakpoint")
OPTIONS = "prompt_cache_options"
EPHEMERAL = {"type": "ephemeral"}


def has_markers(messages: Sequence[JSON], tools: Sequence[JSON], params: Mapping[str, JSON]) -> bool:
    """Return whether a client has set breakpoints or cache options."""
    if OPTIONS in params or any(mark in tool for tool in tools for mark in MARKS):
        return True
    return any(_is_marked(message) for message in messages)


def _is_marked(message: JSON) -> bool:
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return any(mark in item for item in (message, *parts) if isinstance(item, dict) for mark in MARKS)


def without_markers(items: Sequence[JSON]) -> Sequence[JSON]:
    """Return messages or tools without breakpoints; the same sequence if there are none."""
    if not any(_is_marked(item) for item in items):
        return items
    return [unmarked(item) if _is_marked(item) else item for item in items]


def unmarked(message: JSON) -> JSON:
    """Return a message or a tool without breakpoints."""
    plain = _without(message)
    if isinstance(plain.get("content"), list):
        plain["content"] = [_without(part) if isinstance(part, dict) else part for part in plain["content"]]
    return plain


def _without(item: Mapping[str, JSON]) -> dict[str, JSON]:
    return {name: value for name, value in item.items() if name not in MARKS}


def is_markable(message: JSON) -> bool:
    """Return whether a message has a last part of text, where a breakpoint is valid."""
    content = message.get("content")
    if isinstance(content, list):
        last = content[-1] if content else None
        return isinstance(last, dict) and last.get("type") == "text" and bool(last.get("text"))
    return isinstance(content, str) and bool(content)


def place_markers(messages: Sequence[JSON], places: Collection[int]) -> list[JSON]:
    """Return the messages with a breakpoint at the end of each of these; the text stays as it is."""
    return [_marked(message) if number in places else message for number, message in enumerate(messages)]


def _marked(message: JSON) -> JSON:
    content = message["content"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return {**message, "content": [*parts[:-1], {**parts[-1], "cache_control": EPHEMERAL}]}
