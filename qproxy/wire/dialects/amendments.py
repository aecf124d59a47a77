"""Requests amended after a 400, from the message of the upstream, for one more attempt.

An amendment applies to one request; an account remembers rules instead (`rejections`). The client
gets a note of the change.
"""

from __future__ import annotations

import re
from dataclasses import replace

from qproxy.wire.dialects import effort, message_rules
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON, Turn

_TTL = re.compile(r"\bttl\b")


def amend_after_error(error: UpstreamError, turn: Turn, *, keep_thinking: bool = False) -> Turn | None:
    """Return the turn amended after a 400; None if its message is no help.

    `keep_thinking`: where a forced tool and thinking exclude each other, the force goes.
    """
    if error.status != 400:
        return None
    params: dict[str, JSON] = dict(turn.params)
    if "encrypted_content" in error.message:
        messages = message_rules.without_ciphertext(turn.messages)
        return None if messages is turn.messages else replace(turn, messages=messages)
    text = error.message.lower()
    if "tool_choice" in text and "thinking" in text:
        if keep_thinking:
            return None if turn.tool_choice == "auto" else replace(turn, tool_choice="auto")
        _stop_thinking(params)
    elif "reasoning_effort" in text and "reasoning_effort" in params:
        _amend_effort(text, params)
    elif "thinking_budget" in text and "thinking_budget" in params:
        del params["thinking_budget"]
    elif _TTL.search(text):
        return _without_ttls(turn)
    elif error.param == "max_tokens":
        _amend_limits(error.message, params)
    elif error.param == "enable_thinking":
        _amend_switch("true" in text, params)
    return None if params == turn.params else replace(turn, params=params)


def changes(before: Turn, after: Turn) -> tuple[str, ...]:
    """Return a note for the client that names what was amended."""
    params = {*before.params, *after.params}
    names = sorted(name for name in params if before.params.get(name) != after.params.get(name))
    names += ["tool_choice"] if before.tool_choice != after.tool_choice else []
    if before.messages is not after.messages:
        is_cache = message_rules.breakpoint_ttls(before.messages) == after.messages
        names.append("prompt_cache_breakpoint" if is_cache else "encrypted_content")
    return (f"changed after the upstream refused it: {' '.join(names)}",) if names else ()


def _stop_thinking(params: dict[str, JSON]) -> None:
    params["enable_thinking"] = False
    params.pop("thinking_budget", None)
    params.pop("reasoning_effort", None)


def _without_ttls(turn: Turn) -> Turn | None:
    """Return the turn without times to live for the context cache; None if it has none."""
    messages, options = message_rules.breakpoint_ttls(turn.messages), turn.params.get("prompt_cache_options")
    if not isinstance(options, dict) or "ttl" not in options:
        return None if messages is turn.messages else replace(turn, messages=messages)
    kept = {name: options[name] for name in options if name != "ttl"}
    return replace(turn, messages=messages, params={**turn.params, "prompt_cache_options": kept})


def _amend_effort(text: str, params: dict[str, JSON]) -> None:
    """Drop the budget beside an effort, or set the nearest of the efforts that the server names."""
    if "thinking_budget" in text and "thinking_budget" in params:
        del params["thinking_budget"]
        return
    nearest = effort.nearest_word(params.pop("reasoning_effort"), text)
    if nearest is not None:
        params["reasoning_effort"] = nearest


def _amend_limits(message: str, params: dict[str, JSON]) -> None:
    limit = message_rules.allowed_maximum(message)
    for name in ("max_tokens", "max_completion_tokens"):
        if limit is not None and isinstance(params.get(name), int) and params[name] > limit:
            params[name] = limit


def _amend_switch(must_think: bool, params: dict[str, JSON]) -> None:
    if params.get("enable_thinking") is True and not must_think:
        params["enable_thinking"] = False
    elif must_think and params.get("enable_thinking") is not True:
        params["enable_thinking"] = True
        params.pop("reasoning_effort", None)
