"""Tools rendered into the prompt, for a server without a tool parser.

The tools are added to the system message in the model's own format (`hermes` or `qwen_coder`), calls of the
history become the text that the model wrote, results become `<tool_response>` in a user message; the request
declares no tools. The response's calls are then parsed from its text as usual.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

from qproxy.wire.dialects import message_rules
from qproxy.wire.events import JSON, Turn
from qproxy.wire.models import ModelSpec
from qproxy.wire.tool_calls import hermes, qwen_coder

TOOL_FORMATS: dict[str, ModuleType] = {"hermes": hermes, "coder": qwen_coder}
_DROPPED = ("parallel_tool_calls",)


def tool_format(setting: str, spec: ModelSpec) -> ModuleType:
    """Return the module of a format; "auto" selects the model's own."""
    return TOOL_FORMATS[spec.tool_format or "hermes" if setting == "auto" else setting]


def render_tools(turn: Turn, setting: str, spec: ModelSpec) -> Turn:
    """Return the turn without declared tools, which are rendered into its messages."""
    form = tool_format(setting, spec)
    messages: list[Any] = []
    for message in turn.messages:
        if message.get("role") == "tool":
            _result(messages, message)
        else:
            messages.append(_render_calls(message, form))
    prompt = form.render(turn.tools) if turn.tools_enabled else ""
    if prompt:
        messages = list(message_rules.append_system(messages, prompt + _forced_tool_prompt(turn.tool_choice)))
    params = {name: value for name, value in turn.params.items() if name not in _DROPPED}
    return replace(turn, messages=messages, tools=(), tool_choice=None, params=params)


def _result(messages: list[Any], message: JSON) -> None:
    """Add a tool's result to those before it; its text cannot close the element, and pictures follow it."""
    text = message_rules.text_of(message).replace("</tool_response>", "<\\/tool_response>")
    block = f"<tool_response>\n{text}\n</tool_response>"
    others = message_rules.other_parts(message)
    before = messages.pop() if messages and isinstance(messages[-1], _Results) else None
    if others or (before and isinstance(before["content"], list)):
        parts = [] if before is None else message_rules.parts_of(before["content"])
        joined: JSON = [*parts, {"type": "text", "text": block}, *others]
    else:
        joined = block if before is None else f"{before['content']}\n{block}"
    messages.append(_Results(role="user", content=joined))


class _Results(dict[str, Any]):
    """A user message with results."""


def _render_calls(message: JSON, form: ModuleType) -> JSON:
    calls = message.get("tool_calls") if message.get("role") == "assistant" else None
    if not calls:
        return message
    functions = [call["function"] for call in calls if isinstance(call.get("function"), dict)]
    blocks = [form.render_call(one.get("name") or "", one.get("arguments") or "") for one in functions]
    said = message_rules.text_of(message)
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join([*([said] if said else []), *blocks])}


def _forced_tool_prompt(choice: JSON) -> str:
    if choice == "required":
        return "\n\nAnswer with a function call now."
    if isinstance(choice, dict):
        return f"\n\nAnswer with a call of the function {choice['function']['name']} now."
    return ""
