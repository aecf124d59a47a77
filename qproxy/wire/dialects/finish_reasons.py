"""The finish reasons of upstreams, as one table: each is normal, an error, or unknown, which is an error too.

Sources: OpenAI, DashScope and Anthropic references; vLLM, SGLang, TGI and llama.cpp; OpenRouter's `error`.
"""

from __future__ import annotations

from typing import NamedTuple

from qproxy.wire import json_codec, storable
from qproxy.wire.dialects import deltas
from qproxy.wire.dialects.error_mapping import error_from_event
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.events import JSON, ChoiceFinished, StreamFailed

_GROUPS = {
    "stop": ("stop", "eos", "eos_token", "end_turn", "stop_sequence"),
    "length": (
        "length", "max_tokens", "max_new_tokens", "max_output_tokens", "max_completion_tokens", "max_length",
        "model_length", "context_length", "context_length_exceeded", "model_context_window_exceeded",
    ),
    "tool_calls": ("tool_calls", "tool_call", "tool_use", "function_call", "function_calls"),
    "content_filter": (
        "content_filter", "content_filtered", "safety", "sensitive", "refusal", "recitation", "blocklist",
        "prohibited_content", "spii",
    ),
}  # fmt: skip
FINISH_REASONS = {name: reason for reason, names in _GROUPS.items() for name in names}
"""OpenAI's finish reason by an upstream's, in lower case."""


class _Failure(NamedTuple):
    """The error of a finish reason."""

    status: int = 502
    code: str = "upstream_error"
    retry: RetryHint = RetryHint.ONCE


FAILING_REASONS = {
    **dict.fromkeys(
        ("abort", "aborted", "cancel", "cancelled", "canceled", "error", "error_finish", "failed", "failure",
         "internal_error", "model_error", "network_error", "server_error"),
        _Failure(),
    ),
    **dict.fromkeys(("timeout", "timed_out"), _Failure(504, "upstream_timeout", RetryHint.NEVER)),
    **dict.fromkeys(
        ("insufficient_system_resource", "overloaded"), _Failure(503, "overloaded", RetryHint.SOON)
    ),
}  # fmt: skip
"""The error by an upstream's finish reason that reports a failure."""
UNFINISHED = ("", "null")
"""Reasons that some servers send while they generate; they are an end only if nothing follows."""


def parse_reason(value: JSON) -> str:
    """Return a finish reason of another type as text; SGLang's own is an object with a `type`."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        return str(value["type"])
    return json_codec.dumps(value).decode()


def finish_event(reason: str, choice: int, matched: str | None = None) -> ChoiceFinished | StreamFailed:
    """Return the end of a choice, by the stop sequence `matched` if any, or the error of a failing or unknown
    reason."""
    name = reason.strip().lower()
    if name in FINISH_REASONS:
        return ChoiceFinished(FINISH_REASONS[name], choice, matched)
    shown = storable.storable_text(reason[:100])
    failure = FAILING_REASONS.get(name)
    if failure is None:
        message = f"The upstream ended the response with an unknown finish_reason: {shown!r}."
        return StreamFailed(UpstreamError(message, code="upstream_invalid_response"))
    message = f"The upstream aborted the response (finish_reason {shown!r})."
    error = UpstreamError(message, status=failure.status, code=failure.code, retry=failure.retry)
    return StreamFailed(error)


def choice_failure(choice: dict[str, JSON], delta: JSON, plan: str) -> StreamFailed | None:
    """Return the failure of a choice with an `error`, its own or (at its end) its delta's; else None."""
    failure = choice.get("error")
    if failure is None and choice.get("finish_reason") is not None and isinstance(delta, dict):
        failure = delta.get("error")
    error = error_from_event({"error": failure}, None, plan=plan) if failure else None
    return None if error is None else StreamFailed(error)


def error_finish(delta: JSON, plan: str) -> StreamFailed:
    """Return the failure of `finish_reason: "error_finish"`: its content is the error's text, or JSON."""
    text = deltas.parse_text(delta.get("content")) if isinstance(delta, dict) else ""
    message = "The upstream aborted the response with an error."
    try:
        data = json_codec.loads(text)
    except ValueError:
        data = {"error": {"message": text or message}}
    return StreamFailed(
        error_from_event(data, None, plan=plan) or UpstreamError(storable.storable_text(text) or message)
    )
