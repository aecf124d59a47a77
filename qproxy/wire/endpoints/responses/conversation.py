"""Canonical items as chat messages.

One turn of the model is several items here and one message in chat: reasoning, text and calls are collected
until another role follows. A text after a text begins a new message, unless calls have been collected, which
must stand right before their results. Reasoning is sent as `reasoning_content`, where Qwen's
`preserve_thinking` reads it; reasoning with nothing after it is left out, because servers reject it. A tool
that this server ran (`mcp_call`) is a call and its result in one.

A compaction item stands for what is before it, but for the instructions, and for the user's messages unless
the summary is whole (`wire.compaction`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from qproxy.wire import compaction, json_codec
from qproxy.wire.endpoints.responses import approvals, content_parts, namespaces, tool_items
from qproxy.wire.events import JSON

SETTINGS = ("configuration_update", "additional_tools", "tool_search_output")
"""Types of items that change the request and are no messages."""
UNSENT_TYPES = ("web_search_call", "mcp_list_tools")
"""Items that show clients what was done, and mean nothing to a model."""


class ModelInput(NamedTuple):
    """The items of a conversation, as a model gets them."""

    messages: list[JSON]
    """Chat messages."""
    settings: list[JSON]
    """The items that change the request."""


def parse_conversation(items: Sequence[JSON], unseal: Callable[[str], str]) -> ModelInput:
    """Return a conversation by its canonical items; `unseal` returns the text of a compaction item."""
    items = approvals.resolve(items)
    last = max((number for number, item in enumerate(items) if item["type"] == "compaction"), default=None)
    if last is None:
        return ModelInput(_messages(items), _settings(items))
    summary = compaction.summary_from_json(unseal(items[last]["encrypted_content"]))
    roles = compaction.INSTRUCTION_ROLES if summary.is_whole else (*compaction.INSTRUCTION_ROLES, "user")
    before, after = items[:last], items[last + 1 :]
    stay = [item for item in before if item["type"] == "message" and item["role"] in roles]
    return ModelInput(
        [*_messages(stay), *summary.messages(), *_messages(after)],
        [*_settings(before), *summary.settings, *_settings(after)],
    )


def _settings(items: Iterable[JSON]) -> list[JSON]:
    return [item for item in items if item["type"] in SETTINGS]


def _messages(items: Iterable[JSON]) -> list[JSON]:
    out: list[JSON] = []
    message = _AssistantMessage()
    for item in items:
        if item["type"] in (*SETTINGS, *UNSENT_TYPES) or message.accepts(item):
            continue
        out += message.messages()
        message = _AssistantMessage()
        if not message.accepts(item):
            out.append(_other_message(item))
    return out + message.messages()


def _other_message(item: JSON) -> JSON:
    """Return the message of an item that is not the model's."""
    if item["type"] == "message":
        return {"role": item["role"], "content": content_parts.to_chat_content(item["content"], item["role"])}
    if item["type"] in tool_items.OUTPUTS:
        content = tool_items.to_chat_content(item)
        return {"role": "tool", "tool_call_id": item["call_id"], "content": content}
    output = item["output"]
    content = output if isinstance(output, str) else content_parts.to_chat_content(output, "tool")
    return {"role": "tool", "tool_call_id": item["call_id"], "content": content}


class _AssistantMessage:
    """One message of the model while its items are collected."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._ciphertext = ""
        self._texts: list[str] = []
        self._calls: list[JSON] = []
        self._results: list[JSON] = []

    def accepts(self, item: JSON) -> bool:
        """Add an item of the model; return False for one that is not part of this message."""
        kind = item["type"]
        full = bool(self._results or (self._texts and not self._calls))
        if kind == "reasoning" and (not full or self._is_own_ciphertext(item)):
            self._reasoning += [entry["text"] for entry in item["summary"]]
            self._ciphertext = item.get("encrypted_content") or self._ciphertext
        elif kind == "message" and item["role"] == "assistant" and not full:
            self._texts.append(content_parts.to_chat_content(item["content"], "assistant"))
        elif kind in ("function_call", "custom_tool_call"):
            self._calls.append(_call(item))
        elif kind in tool_items.CALLS:
            self._calls.append(tool_items.to_chat_call(item))
        elif kind == "mcp_call":
            self._calls.append(_mcp_call(item))
            self._results.append(_mcp_result(item))
        else:
            return False
        return True

    def _is_own_ciphertext(self, item: JSON) -> bool:
        """Return whether an item is the ciphertext of this message, which came after its text."""
        return not item["summary"] and "encrypted_content" in item and not self._ciphertext

    def messages(self) -> list[JSON]:
        """Return the message and the results of this server's tools; nothing if it is empty."""
        if not self._texts and not self._calls:
            return []
        message: dict[str, JSON] = {
            "role": "assistant",
            "content": "".join(self._texts) if self._texts else None,
        }
        if self._reasoning:
            message["reasoning_content"] = "\n\n".join(self._reasoning)
        if self._ciphertext:
            message["encrypted_content"] = self._ciphertext
        if self._calls:
            message["tool_calls"] = self._calls
        return [message, *self._results]


def _call(item: JSON) -> JSON:
    name = namespaces.qualified_name(item.get("namespace"), item["name"])
    if item["type"] == "custom_tool_call":
        custom = {"name": name, "input": item["input"]}
        return {"id": item["call_id"], "type": "custom", "custom": custom}
    function = {"name": name, "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _mcp_call(item: JSON) -> JSON:
    name = approvals.offered_name(item["server_label"], item["name"])
    function = {"name": name, "arguments": item["arguments"]}
    return {"id": item["id"], "type": "function", "function": function}


def _mcp_result(item: JSON) -> JSON:
    output = item["output"] if item["error"] is None else json_codec.dumps(item["error"]).decode()
    return {"role": "tool", "tool_call_id": item["id"], "content": output or ""}
