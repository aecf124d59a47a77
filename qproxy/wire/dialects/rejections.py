"""Rejected requests that a rule would have changed, by the upstream's message.

Each row maps words of a message to rules that are off by default where the request went. The request is sent
once more with those of them that change it; if it is accepted, they are learned for the account and model.

Sources: chat templates of Qwen3.5 and newer; messages of vLLM, SGLang, llama.cpp, LM Studio and DashScope.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from qproxy.wire.dialects.error_mapping import CONTEXT_EXCEEDED
from qproxy.wire.errors import UpstreamError

FORCED_TOOL = "forced_tool_refused"
"""The rule for a server that does not force a tool while the model thinks."""


class Rejection(NamedTuple):
    """One row of the table."""

    message: str
    """A pattern of the message in lower case."""
    rules: tuple[str, ...]


REJECTIONS = (
    Rejection(
        r"system.{0,80}(at the beginning|must be first|must be the first|only the first|come first)"
        r"|only the first.{0,60}system|(multiple|more than one|duplicate) system",
        ("leading_system", "system_reminder"),
    ),
    Rejection(
        r"no user (query|message)|(at least one|must contain a|missing a) user (query|message)",
        ("user_message",),
    ),
    Rejection(
        r"(unexpected|unknown|invalid|unsupported|unrecognized).{0,40}\brole\b"
        r"|\brole\b.{0,80}(developer|function|not supported|is invalid)|developer.{0,80}\brole\b",
        ("developer_role", "function_role"),
    ),
    Rejection(
        r"tool_call_id|followed by tool messages|(preceding|preceeding|previous) message with"
        r"|tool_calls.{0,80}(followed|response)",
        ("unanswered_calls", "orphan_results"),
    ),
    Rejection(
        r"content.{0,80}(null|none|string|required|cannot be empty)|expected string.{0,40}content",
        ("null_content", "tool_content"),
    ),
    Rejection(r"(image|multimodal|part).{0,80}\btool\b|\btool\b.{0,80}(image|multimodal)", ("tool_content",)),
    Rejection(r"\A(?!.*thinking).*tool_choice", ("named_tool",)),
    Rejection(r"\A(?=.*tool_choice).*thinking", (FORCED_TOOL,)),
    Rejection(r"max_completion_tokens", ("one_output_limit",)),
    Rejection(r"temperature", ("temperature",)),
    Rejection(r"\btop_p\b", ("top_p",)),
    Rejection(r"\bseed\b", ("seed",)),
    Rejection(r"top_logprobs", ("top_logprobs",)),
    Rejection(r"enable_search|search_options|tool_stream|\bpartial\b", ("hosted_params",)),
    Rejection(r"contain the word.{0,8}json", ("json_keyword",)),
)
_COMPILED = tuple(re.compile(row.message, re.DOTALL) for row in REJECTIONS)
STATUSES = (400, 422)
SERVER_STATUSES = (500, 502)
"""What llama.cpp and others answer where a chat template fails."""
OTHER_CAUSES = ("content_filter", CONTEXT_EXCEEDED)
"""Codes of rejections that are not about the form of a request, whatever words they repeat."""


def rules_after(error: UpstreamError) -> tuple[str, ...]:
    """Return the rules that would have changed what the upstream rejected, if any."""
    is_template = error.server_responded and error.status in SERVER_STATUSES
    if error.code in OTHER_CAUSES or not (is_template or error.status in STATUSES):
        return ()
    text = error.message.lower()
    found = [
        rule
        for row, pattern in zip(REJECTIONS, _COMPILED, strict=True)
        if pattern.search(text)
        for rule in row.rules
    ]
    return tuple(dict.fromkeys(found))
