"""Canonical items as chat messages.

What the model said in one go is several items here and one message there: a thought, its text and its calls are
gathered until somebody else speaks.  A text after a text begins a new message, unless calls have been gathered,
which must stand right before their results.  Thoughts travel as `reasoning_content`, where Qwen's
`preserve_thinking` looks for them; a thought with nothing after it is left out, because no server takes it.
A tool that this server ran (`mcp_call`) is a call and its result in one.
"""

from __future__ import annotations

from collections.abc import Iterable

from qproxy.wire import json_codec as jsontext
from qproxy.wire.endpoints.responses import content_parts as parts
from qproxy.wire.endpoints.responses import namespaces
from qproxy.wire.endpoints.responses.objects import OWN_TOOLS
from qproxy.wire.events import JSON


def messages(items: Iterable[JSON]) -> list[JSON]:
    """The chat messages that the items of a conversation amount to."""
    out: list[JSON] = []
    said = _Said()
    for item in items:
        if said.takes(item):
            continue
        out += said.messages()
        said = _Said()
        if not said.takes(item):
            out.append(_others(item))
    return out + said.messages()


def _others(item: JSON) -> JSON:
    """The message of an item that the model did not say."""
    if item["type"] == "message":
        return {"role": item["role"], "content": parts.chat(item["content"], item["role"])}
    output = item["output"]
    content = output if isinstance(output, str) else parts.chat(output, "tool")
    return {"role": "tool", "tool_call_id": item["call_id"], "content": content}


class _Said:
    """One message of the model, as it is gathered."""

    def __init__(self) -> None:
        self._thoughts: list[str] = []
        self._texts: list[str] = []
        self._calls: list[JSON] = []
        self._results: list[JSON] = []

    def takes(self, item: JSON) -> bool:
        """Add an item of the model; False for one that is not part of this message."""
        kind = item["type"]
        full = bool(self._results or (self._texts and not self._calls))
        if kind == "reasoning" and not full:
            self._thoughts += [entry["text"] for entry in item["summary"]]
        elif kind == "message" and item["role"] == "assistant" and not full:
            self._texts.append(parts.chat(item["content"], "assistant"))
        elif kind in ("function_call", "custom_tool_call"):
            self._calls.append(_call(item))
        elif kind == "mcp_call":
            self._calls.append(_own_call(item))
            self._results.append(_own_result(item))
        else:
            return False
        return True

    def messages(self) -> list[JSON]:
        """The message and the results of our own tools; none when nothing was said."""
        if not self._texts and not self._calls:
            return []
        message: dict[str, JSON] = {
            "role": "assistant",
            "content": "".join(self._texts) if self._texts else None,
        }
        if self._thoughts:
            message["reasoning_content"] = "\n\n".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = self._calls
        return [message, *self._results]


def _call(item: JSON) -> JSON:
    name = namespaces.joined(item.get("namespace"), item["name"])
    if item["type"] == "custom_tool_call":
        custom = {"name": name, "input": item["input"]}
        return {"id": item["call_id"], "type": "custom", "custom": custom}
    function = {"name": name, "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _own_call(item: JSON) -> JSON:
    label, name = item["server_label"], item["name"]
    function = {"name": name if label == OWN_TOOLS else f"{label}__{name}", "arguments": item["arguments"]}
    return {"id": item["id"], "type": "function", "function": function}


def _own_result(item: JSON) -> JSON:
    output = item["output"] if item["error"] is None else jsontext.dumps(item["error"]).decode()
    return {"role": "tool", "tool_call_id": item["id"], "content": output or ""}
