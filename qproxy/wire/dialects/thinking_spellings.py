"""Other APIs' parameters about thinking, in Qwen's own.

    thinking               Anthropic, Zhipu, DeepSeek: {"type": "enabled", "budget_tokens": N}, or a boolean
    reasoning              OpenRouter, Responses: {"effort", "max_tokens", "enabled"}, or a boolean
    think                  Ollama: a boolean, or an effort
    chat_template_kwargs   vLLM, SGLang, llama.cpp: {"enable_thinking"}; DashScope does not read it

Qwen's own parameters take precedence. What has no counterpart is left out and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from qproxy.wire.dialects.request_draft import RequestDraft
from qproxy.wire.events import JSON

Translation: TypeAlias = Iterator[tuple[str, JSON | None]]
"""Qwen's parameters with their values; None for a path that has no counterpart."""
_SAME = ("enable_thinking", "thinking_budget", "preserve_thinking", "clear_thinking", "reasoning_effort")
_SWITCHES = {"enabled": True, "disabled": False, "adaptive": True, "auto": True, "between_tools": True}


def thinking_params(draft: RequestDraft) -> bool:
    """Replace other APIs' parameters about thinking by Qwen's."""
    names = [name for name in _SPELLINGS if name in draft.params]
    if draft.family == "open" and "chat_template_kwargs" in names:
        names.remove("chat_template_kwargs")
    own = {name for name in _SAME if name in draft.params}
    for name in names:
        value = draft.params.pop(name)
        for param, meaning in _SPELLINGS[name](value):
            if meaning is None:
                draft.ignore(param)
            elif param not in own:
                draft.params[param] = meaning
            elif draft.params[param] != meaning:
                draft.ignore(name)
    return bool(names)


def _is_count(value: JSON) -> bool:
    return type(value) is int and value > 0


def _thinking(value: JSON) -> Translation:
    fields = value if isinstance(value, dict) else {"type": value}
    switch = fields.get("type")
    switch = _SWITCHES.get(switch) if isinstance(switch, str) else switch
    if isinstance(switch, bool):
        yield "enable_thinking", switch
        if switch and _is_count(fields.get("budget_tokens")):
            yield "thinking_budget", fields["budget_tokens"]
    else:
        yield "thinking", None
    for name in fields.keys() - {"type", "budget_tokens"}:
        yield f"thinking.{name:.60}", None


def _reasoning(value: JSON) -> Translation:
    if isinstance(value, bool | str):
        yield from _think(value, "reasoning")
        return
    if not isinstance(value, dict):
        yield "reasoning", None
        return
    for name, setting in value.items():
        if setting is None:
            continue
        if name == "enabled" and isinstance(setting, bool):
            yield "enable_thinking", setting
        elif name == "effort" and isinstance(setting, str):
            yield "reasoning_effort", setting
        elif name == "max_tokens" and _is_count(setting):
            yield "enable_thinking", True
            yield "thinking_budget", setting
        elif not (name == "exclude" and setting is False):
            yield f"reasoning.{name:.60}", None


def _think(value: JSON, name: str = "think") -> Translation:
    if isinstance(value, bool):
        yield "enable_thinking", value
    elif isinstance(value, str):
        yield "reasoning_effort", value
    else:
        yield name, None


def _template_kwargs(value: JSON) -> Translation:
    if not isinstance(value, dict):
        yield "chat_template_kwargs", None
        return
    for name, setting in value.items():
        if name == "thinking" and isinstance(setting, bool):  # in DeepSeek's templates
            yield "enable_thinking", setting
        elif name in _SAME and setting is not None:
            yield name, setting
        else:
            yield f"chat_template_kwargs.{name:.60}", None


_SPELLINGS: dict[str, Callable[[JSON], Translation]] = {
    "thinking": _thinking,
    "reasoning": _reasoning,
    "think": _think,
    "chat_template_kwargs": _template_kwargs,
}
