"""Usage in Anthropic's words: input tokens exclude those read from the cache or written to it.

Qwen's `prompt_tokens` include both. Where the upstream reported nothing, an estimate stands in, since clients
rely on a number (Cline and Roo read input tokens only in `message_start`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qproxy.wire.events import Usage
from qproxy.wire.token_ratios import TokenEstimate


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return Anthropic's `Usage` for the upstream's counts."""
    read, written = usage.cached_tokens, sum(usage.cache_writes)
    counts: dict[str, Any] = {
        "input_tokens": max(0, usage.prompt_tokens - read - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return counts


def final_usage(usage: Usage | None, estimate: TokenEstimate, sent_bytes: int) -> dict[str, Any]:
    """Return the usage at the end of a response with so many bytes of text.

    What its server did not report, or reported as nothing although there was some, is estimated.
    """
    reported = usage or Usage()
    prompt = reported.prompt_tokens or estimate.prompt
    completion = reported.completion_tokens or estimate.text_tokens(sent_bytes)
    return usage_object(replace(reported, prompt_tokens=prompt, completion_tokens=completion))
