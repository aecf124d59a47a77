"""Repairs of a conversation's messages for Qwen: the functions behind the rules about messages.

Each takes the messages and returns a new list with new messages for the changed ones, or the same list if
nothing changed.

`features` inspects the messages once for all rules: most do not apply to most conversations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from qproxy.wire import json_codec
from qproxy.wire.events import JSON

Messages: TypeAlias = Sequence[Any]
ChangeMessages: TypeAlias = Callable[[Messages], Messages]
Feature: TypeAlias = str | type
LOST = ("audio", "annotations")
"""Keys of an earlier answer that no message to Qwen has a place for."""
CACHE_MARKS = ("cache_control", "prompt_cache_breakpoint")
EXTRAS = frozenset(("refusal", "function_call", "reasoning", *LOST))


def features(messages: Messages) -> frozenset[Feature]:
    """Return the features of the messages: keys, roles and types of content."""
    roles = [message.get("role") for message in messages]
    contents = [type(message.get("content")) for message in messages]
    return frozenset().union(roles, contents, *messages)


def _each(messages: Messages, change: Callable[[dict[str, JSON]], dict[str, JSON]]) -> Messages:
    changed = [change(message) for message in messages]
    same = all(new is old for new, old in zip(changed, messages, strict=True))
    return messages if same else changed


def text_of(message: dict[str, JSON]) -> str:
    """Return the text of a message, its parts joined; that of a refusal is text too."""
    content = message.get("content")
    if isinstance(content, list):
        texts = (part.get("text") or part.get("refusal") for part in content)
        return "\n\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def other_parts(message: dict[str, JSON]) -> list[JSON]:
    """Return the parts of a message that are no text."""
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return [part for part in parts if "text" not in part and part.get("type") != "refusal"]


def developer_to_system(messages: Messages) -> Messages:
    return _each(messages, lambda m: {**m, "role": "system"} if m.get("role") == "developer" else m)


def merge_system(messages: Messages) -> Messages:
    """Join the system messages at the start; parts (with their cache markers) stay parts."""
    places = [number for number, message in enumerate(messages) if message.get("role") == "system"]
    if not places or places == [0]:
        return messages
    systems = [messages[number] for number in places]
    rest = [message for message in messages if message.get("role") != "system"]
    return [{**systems[0], "content": join_contents(systems)}, *rest]


def join_contents(messages: Messages) -> JSON:
    """Return the contents of some messages as one; parts (with their cache markers) stay parts."""
    if any(isinstance(message.get("content"), list) for message in messages):
        return [part for message in messages for part in parts_of(message.get("content"))]
    return "\n\n".join(text_of(message) for message in messages)


def parts_of(content: JSON) -> list[JSON]:
    """Return a content as parts."""
    return content if isinstance(content, list) else [{"type": "text", "text": content or ""}]


def append_system(messages: Messages, text: str) -> Messages:
    """Return the messages with `text` appended to their system message, or as a new one."""
    if messages and messages[0].get("role") == "system":
        first = messages[0]
        content = first.get("content")
        joined = (
            [*content, {"type": "text", "text": text}]
            if isinstance(content, list)
            else f"{content}\n\n{text}"
        )
        return [{**first, "content": joined}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def function_to_tool(messages: Messages) -> Messages:
    """Return deprecated function calls as tool calls, each result with the id of the call before it."""
    if not any(m.get("role") == "function" or m.get("function_call") for m in messages):
        return messages
    out, pending = [], "call_0"
    for number, message in enumerate(messages):
        call = message.get("function_call")
        if message.get("role") == "assistant" and call:
            pending = f"call_{number}"
            message = {key: value for key, value in message.items() if key != "function_call"}
            message["tool_calls"] = [{"id": pending, "type": "function", "function": call}]
        elif message.get("role") == "function":
            message = {"role": "tool", "tool_call_id": pending, "content": message.get("content") or ""}
        out.append(message)
    return out


def repair_calls(messages: Messages) -> Messages:
    return _each(messages, _repair_message_calls)


def _repair_message_calls(message: dict[str, JSON]) -> dict[str, JSON]:
    calls = message.get("tool_calls")
    if calls is None or message.get("role") != "assistant":
        return message
    if not calls:  # an empty list is rejected everywhere
        return {key: value for key, value in message.items() if key != "tool_calls"}
    mended = [_repair_call(call) for call in calls]
    same = all(new is old for new, old in zip(mended, calls, strict=True))
    return message if same else {**message, "tool_calls": mended}


def _repair_call(call: dict[str, JSON]) -> dict[str, JSON]:
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    value = _parse_arguments(arguments)
    if isinstance(arguments, str) and isinstance(value, dict):
        return call if "type" in call else {**call, "type": "function"}
    if isinstance(value, str) and isinstance(inner := _parse_arguments(value), dict):
        value = inner  # encoded twice
    if not isinstance(
        value, dict
    ):  # chat templates iterate over the arguments, and servers require an object
        value = {} if value is None else {"arguments": value}
    text = json_codec.dumps(value).decode()
    return {**call, "type": "function", "function": {**function, "arguments": text}}


def _parse_arguments(arguments: JSON) -> JSON:
    """Return the value of arguments: parsed if they are JSON text, None if they are empty."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json_codec.loads(arguments) if arguments.strip() else None
    except ValueError:
        return arguments


def null_content(messages: Messages) -> Messages:
    def change(message: dict[str, JSON]) -> dict[str, JSON]:
        if message.get("role") == "assistant" and message.get("content") is None:
            return {**message, "content": ""}
        return message

    return _each(messages, change)


def assistant_extras(messages: Messages) -> Messages:
    def change(message: dict[str, JSON]) -> dict[str, JSON]:
        message = _with_refusals_as_text(message)
        extra = message.keys() & EXTRAS
        if message.get("role") != "assistant" or not extra:
            return message
        kept = {key: value for key, value in message.items() if key not in extra}
        if isinstance(message.get("reasoning"), str):
            kept.setdefault("reasoning_content", message["reasoning"])
        if message.get("function_call"):
            kept["function_call"] = message["function_call"]
        if not kept.get("content") and isinstance(message.get("refusal"), str) and not kept.get("tool_calls"):
            kept["content"] = message["refusal"]
        return kept if kept != message else message

    return _each(messages, change)


def _with_refusals_as_text(message: dict[str, JSON]) -> dict[str, JSON]:
    """Return an answer with its refusal parts as text parts, which every server reads."""
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, list):
        return message
    if not any(part.get("type") == "refusal" for part in content):
        return message
    parts = [
        {"type": "text", "text": part.get("refusal") or ""} if part.get("type") == "refusal" else part
        for part in content
    ]
    return {**message, "content": parts}


def lost_extras(messages: Messages) -> list[str]:
    """Return the keys of earlier answers that carry something and are left out."""
    answers = [message for message in messages if message.get("role") == "assistant"]
    return [name for name in LOST if any(answer.get(name) for answer in answers)]


def without_ciphertext(messages: Messages) -> Messages:
    """Leave out the ciphertext of earlier reasoning."""
    return without_key(messages, "encrypted_content")


def without_key(messages: Messages, name: str) -> Messages:
    """Leave a key out of all messages."""
    return _each(
        messages,
        lambda message: (
            {key: value for key, value in message.items() if key != name} if name in message else message
        ),
    )


def tool_content(messages: Messages) -> Messages:
    """Return tool results as strings; other parts follow in a user message after the results."""
    if not any(m.get("role") == "tool" and isinstance(m.get("content"), list) for m in messages):
        return messages
    out: list[Any] = []
    moved: list[JSON] = []
    for message in messages:
        if message.get("role") != "tool" and moved:
            out.append({"role": "user", "content": moved})
            moved = []
        if message.get("role") == "tool" and isinstance(message.get("content"), list):
            moved = moved + other_parts(message)
            message = {**message, "content": _tool_text(message)}
        out.append(message)
    return [*out, {"role": "user", "content": moved}] if moved else out


def _tool_text(message: dict[str, JSON]) -> JSON:
    """Return the text of a tool's result; as one part if it has cache markers."""
    text = text_of(message)
    marks = {mark: part[mark] for part in message["content"] for mark in CACHE_MARKS if part.get(mark)}
    return [{"type": "text", "text": text, **marks}] if marks and text else text


def place_cache_markers(messages: Messages) -> Messages:
    """A cache marker of a message in its last part, where DashScope looks; of one without text, nowhere."""
    return _each(messages, _place_cache_marker)


def _place_cache_marker(message: dict[str, JSON]) -> dict[str, JSON]:
    if "cache_control" not in message:
        return message
    placed = {key: value for key, value in message.items() if key != "cache_control"}
    if placed.get("content"):
        *before, last = parts_of(placed["content"])
        placed["content"] = [*before, {**last, "cache_control": message["cache_control"]}]
    return placed


def audio_uris(messages: Messages) -> Messages:
    return _each(messages, _audio_message)


def _audio_message(message: dict[str, JSON]) -> dict[str, JSON]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [_audio_part(part) for part in content]
    same = all(new is old for new, old in zip(parts, content, strict=True))
    return message if same else {**message, "content": parts}


def _audio_part(part: JSON) -> JSON:
    audio = part.get("input_audio") if isinstance(part, dict) else None
    if not isinstance(audio, dict) or not isinstance(audio.get("data"), str):
        return part
    if audio["data"].startswith(("data:", "http://", "https://", "oss://")):
        return part
    uri = f"data:audio/{audio.get('format') or 'wav'};base64,{audio['data']}"
    return {**part, "input_audio": {**audio, "data": uri}}


def cache_breakpoints(messages: Messages, *, explicit: bool) -> Messages:
    """Return OpenAI's cache breakpoints as the older `cache_control`, or without them."""
    return _each_part(messages, lambda part: _cache_part(part, explicit))


def breakpoint_ttls(messages: Messages, names: Mapping[str, str] | None = None) -> Messages:
    """Return OpenAI's cache breakpoints with their times to live as `names` has them; without names, without
    any.
    """

    def change(part: JSON) -> JSON:
        mark = part.get("prompt_cache_breakpoint") if isinstance(part, dict) else None
        if not isinstance(mark, dict):
            return part
        ttl = mark.get("ttl")
        if not isinstance(ttl, str) or (names is not None and ttl not in names):
            return part
        rest = {name: mark[name] for name in mark if name != "ttl"}
        return {**part, "prompt_cache_breakpoint": rest if names is None else {**rest, "ttl": names[ttl]}}

    return _each_part(messages, change)


def _each_part(messages: Messages, change_part: Callable[[JSON], JSON]) -> Messages:
    def change(message: dict[str, JSON]) -> dict[str, JSON]:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        changed = [change_part(part) for part in content]
        same = all(new is old for new, old in zip(changed, content, strict=True))
        return message if same else {**message, "content": changed}

    return _each(messages, change)


def _cache_part(part: JSON, explicit: bool) -> JSON:
    if not isinstance(part, dict) or "prompt_cache_breakpoint" not in part:
        return part
    kept = {key: value for key, value in part.items() if key != "prompt_cache_breakpoint"}
    return {"cache_control": {"type": "ephemeral"}, **kept} if explicit else kept


_RANGE_PATTERN = re.compile(r"\[\s*\d+\s*,\s*(\d+)\s*\]")


def allowed_maximum(message: str) -> int | None:
    """Return N of an error's "[1, N]"."""
    match = _RANGE_PATTERN.search(message)
    return int(match[1]) if match else None
