"""`thinking` and `output_config.effort` as the equivalent parameters of a Qwen server.

    thinking                          parameters
    absent                            none (the model's default); an effort is passed
    disabled                          enable_thinking false; an effort is dropped
    enabled, budget_tokens N          enable_thinking true, thinking_budget N
    adaptive, between_tools           the effort, which the dialect's rules translate; without one
                                      enable_thinking true

Anthropic counts a budget within max_tokens: one that leaves no room for an answer is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qproxy.wire.endpoints import validation
from qproxy.wire.events import JSON

TYPES = ("enabled", "disabled", "adaptive", "between_tools")


@dataclass(frozen=True, slots=True)
class Thinking:
    """The effort of a model's thinking, and whether the client gets the text."""

    params: dict[str, JSON]
    omits_text: bool = False
    """The client wants the blocks without their text."""
    wants_summary: bool = False
    """The client asks for a summary in place of the reasoning."""
    ignored: tuple[str, ...] = ()


def parse_thinking(fields: Mapping[str, JSON], turn_effort: JSON = None) -> Thinking:
    """Parse the thinking configuration; `turn_effort` overrides its effort. Raises RequestError that names
    the invalid field."""
    thinking = fields.get("thinking") or {}
    effort = turn_effort or (fields.get("output_config") or {}).get("effort")
    if effort is not None:
        validation.string(effort, "output_config.effort")
    kind = thinking.get("type")
    if kind is not None:
        validation.string(kind, "thinking.type")
    efforts = {} if effort is None else {"reasoning_effort": effort}
    omits_text, summary = thinking.get("display") == "omitted", thinking.get("display") == "summarized"
    if kind == "disabled":
        return Thinking({"enable_thinking": False})
    if kind == "enabled":
        return Thinking(_budget(thinking.get("budget_tokens"), fields.get("max_tokens")), omits_text, summary)
    if kind in TYPES:
        return Thinking(efforts or {"enable_thinking": True}, omits_text, summary)
    return Thinking(efforts, omits_text, summary, ("thinking",) if thinking else ())


def _budget(value: JSON, max_tokens: JSON) -> dict[str, JSON]:
    params: dict[str, JSON] = {"enable_thinking": True}
    if value is not None:
        budget = validation.integer(1)(value, "thinking.budget_tokens")
        if not isinstance(max_tokens, int) or budget < max_tokens:
            params["thinking_budget"] = budget
    return params
