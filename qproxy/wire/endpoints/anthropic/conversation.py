"""Anthropic's messages as chat messages.

    user         the results of tools first, one tool message each; then the rest as one user message
    assistant    one message: text, `reasoning_content`, `tool_calls`
    system       before the first user message part of the system prompt, later a reminder (`system_prompt`)

The shape of a message depends on that message alone, never on where a cache marker stands today: two requests
of one conversation must begin with the same prompt, or no prefix cache hits. A list of blocks stays a list of
parts; a marker on a tool result or an assistant message moves to the message, and a dialect's rule places it
where its servers look.
"""

from __future__ import annotations

from collections.abc import Sequence

from qproxy.wire import json_codec
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.anthropic import signatures, system_prompt, tool_ids, tool_results
from qproxy.wire.endpoints.anthropic.content_blocks import MARKER, BlockReader, text_of
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

ROLES = ("user", "assistant", "system")
_role = validation.one_of(ROLES)


def to_chat(system: JSON, messages: JSON, reader: BlockReader, limit: int) -> list[JSON]:
    """Return a request's system prompt and messages as chat messages."""
    entries = _entries(messages, limit)
    leading = next((number for number, (role, _) in enumerate(entries) if role != "system"), len(entries))
    contents = [(system, "system")] if system is not None else []
    contents += [(content, _path(number)) for number, (_, content) in enumerate(entries[:leading])]
    prompt = system_prompt.system_content(contents, reader)
    out: list[JSON] = [] if prompt is None else [{"role": "system", "content": prompt}]
    for number, (role, content) in enumerate(entries[leading:], leading):
        path = _path(number)
        if role == "user":
            out += _user(content, path, reader)
        elif role == "assistant":
            out.append(_assistant(content, path, reader))
        elif (message := system_prompt.reminder(content, path, reader)) is not None:
            out.append(message)
    return _with_prefill(out) if entries[-1][0] == "assistant" else out


def _entries(value: JSON, limit: int) -> list[tuple[str, JSON]]:
    """Return the roles and contents of the messages."""
    messages = validation.array(value, "messages")
    if not messages:
        message = "Invalid 'messages': empty array. Expected an array with minimum length 1."
        raise RequestError(message, param="messages", code="empty_array")
    if len(messages) > limit:
        message = f"Invalid 'messages': {len(messages)} messages, the limit is {limit} (max_messages)."
        raise RequestError(message, param="messages", code="array_above_max_length")
    roles = [_role_of(message, f"messages[{number}]") for number, message in enumerate(messages)]
    last_user = max((number for number, role in enumerate(roles) if role == "user"), default=-1)
    entries = []
    for number, (role, message) in enumerate(zip(roles, messages, strict=True)):
        content = message.get("content")
        if role == "system" and "output_config" in message:
            content = content or ""
        if role == "system" and message.get("clear_at") == "next_user_message" and number < last_user:
            content = ""
        if content is None:
            validation.missing(_path(number))
        entries.append((role, content))
    return entries


def _role_of(message: JSON, path: str) -> str:
    role = validation.object_(message, path).get("role")
    return validation.missing(f"{path}.role") if role is None else _role(role, f"{path}.role")


def turn_effort(messages: Sequence[JSON]) -> JSON:
    """Return the effort that a system message sets for the last user turn; None for none."""
    for message in reversed(messages):
        if message["role"] == "user":
            break
        config = message.get("output_config") if message["role"] == "system" else None
        if isinstance(config, dict) and config.get("effort") is not None:
            return config["effort"]
    return None


def _path(number: int) -> str:
    return f"messages[{number}].content"


def _user(content: JSON, path: str, reader: BlockReader) -> list[JSON]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    blocks = [(block, f"{path}[{number}]") for number, block in enumerate(reader.blocks(content, path))]
    results = [entry for entry in blocks if entry[0]["type"] == "tool_result"]
    out: list[JSON] = [tool_results.tool_message(block, place, reader) for block, place in results]
    parts = reader.parts([entry for entry in blocks if entry[0]["type"] != "tool_result"])
    if parts or not results:
        out.append({"role": "user", "content": parts or ""})
    return out


def _assistant(content: JSON, path: str, reader: BlockReader) -> JSON:
    texts: list[str] = []
    calls: list[JSON] = []
    thinking_blocks: list[JSON] = []
    has_marker = False
    for number, block in enumerate(reader.blocks(content, path)):
        kind, place = block["type"], f"{path}[{number}]"
        has_marker = has_marker or bool(block.get("cache_control"))
        if kind == "text":
            texts.append(text_of(block, place))
        elif kind == "tool_use":
            calls.append(_call(block, place))
        elif kind == "thinking":
            thinking_blocks.append(block)
        else:
            reader.ignore(kind)
    message: dict[str, JSON] = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    message.update(_reasoning(thinking_blocks, path))
    if calls:
        message["tool_calls"] = calls
    return {**message, "cache_control": MARKER} if has_marker else message


def _reasoning(blocks: Sequence[JSON], path: str) -> dict[str, JSON]:
    """Return the reasoning of an assistant message, and the ciphertext that its last signature carries."""
    if not blocks:
        return {}
    texts, ciphertexts = [], []
    for block in blocks:
        text = block.get("thinking")
        text = "" if text is None else validation.string(text, f"{path}.thinking")
        signature = block.get("signature") if isinstance(block.get("signature"), str) else ""
        texts.append(text or signatures.reasoning(signature) or "")
        ciphertexts.append(signatures.ciphertext(signature))
    fields: dict[str, JSON] = {"reasoning_content": "\n".join(texts)}
    known = [ciphertext for ciphertext in ciphertexts if ciphertext is not None]
    return {**fields, "encrypted_content": known[-1]} if known else fields


def _call(block: JSON, path: str) -> JSON:
    for key in ("id", "name"):
        if block.get(key) is None:
            validation.missing(f"{path}.{key}")
        validation.string(block[key], f"{path}.{key}")
    value = block.get("input")
    arguments = json_codec.dumps_spaced({} if value is None else validation.object_(value, f"{path}.input"))
    function = {"name": block["name"], "arguments": arguments}
    return {"id": tool_ids.upstream_id(block["id"]), "type": "function", "function": function}


def _with_prefill(messages: list[JSON]) -> list[JSON]:
    """Mark the assistant message at the end as one to continue."""
    last = messages[-1]
    if not last["content"] or "tool_calls" in last:
        return messages
    return [*messages[:-1], {**last, "content": last["content"].rstrip(), "partial": True}]
