"""The response object and its parts: usage, errors, ids, pages of items.

An item's id contains the id of its response (`msg_` and the response's digits and a number), so
that a reference to an item leads to the stored response without an index of items.

OpenAPI `Response`, `ResponseUsage`, `ResponseError`, `ResponseItemList`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from qproxy.wire.endpoints import validation
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.events import JSON, Turn, Usage
from qproxy.wire.token_estimate import text_bytes
from qproxy.wire.token_ratios import TokenEstimate

PREFIXES = {
    "message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc",
    "function_call_output": "fco", "custom_tool_call_output": "ctco", "mcp_call": "mcp",
    "compaction": "cmp", "configuration_update": "cfg", "additional_tools": "at", "tool_search_output": "tso",
    "local_shell_call": "lsh", "local_shell_call_output": "lsho", "shell_call": "sh",
    "shell_call_output": "sho", "apply_patch_call": "apc", "apply_patch_call_output": "apco",
    "computer_call": "cu", "computer_call_output": "cuo", "program": "prog", "program_output": "progo",
    "web_search_call": "ws", "mcp_list_tools": "mcpl", "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
}  # fmt: skip
REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""`incomplete_details.reason` by finish reason."""
SERVER_TOOLS = "qproxy"
"""The `server_label` of this server's tools that do not come from an MCP server."""
MAX_PAGE = 100
_RESPONSE = re.compile(r"resp_([0-9a-f]{8})[0-9a-f]{16}\Z")
_ITEM = re.compile(r"[a-z]+_([0-9a-f]{24})i?[0-9]{4,}\Z")


def output_id(kind: str, response: str, number: int) -> str:
    return f"{PREFIXES[kind]}_{response.removeprefix('resp_')}{number:04d}"


def input_id(kind: str, response: str, number: int) -> str:
    return f"{PREFIXES[kind]}_{response.removeprefix('resp_')}i{number:04d}"


def response_of(item: str) -> str | None:
    """Return the id of an item's response; None for an id that qproxy did not create."""
    match = _ITEM.match(item)
    return f"resp_{match[1]}" if match else None


def response_root(response: str) -> str | None:
    """Return the digits that the ids of a conversation's responses begin with; None for another's id."""
    match = _RESPONSE.match(response)
    return match[1] if match else None


def response_object(
    turn: Turn,
    echo: dict[str, JSON],
    status: str,
    output: Sequence[JSON] = (),
    *,
    usage: Usage | None = None,
    reason: str | None = None,
    error: QproxyError | None = None,
) -> dict[str, JSON]:
    """Return the response object; `reason` is the finish reason of an incomplete one."""
    return {
        "id": turn.id,
        "object": "response",
        "created_at": turn.created,
        "status": status,
        "error": None if error is None else error_object(error),
        "incomplete_details": {"reason": REASONS[reason]} if reason in REASONS else None,
        "model": turn.model,
        "output": list(output),
        "usage": None if usage is None else usage_object(usage),
        **echo,
    }


def is_active(response: Mapping[str, JSON]) -> bool:
    """Return whether a response is still generated."""
    return response["status"] in ("queued", "in_progress")


def with_error(response: Mapping[str, JSON], error: QproxyError) -> dict[str, JSON]:
    """Return a response as failed."""
    return {**response, "status": "failed", "error": error_object(error)}


def usage_object(usage: Usage) -> dict[str, JSON]:
    """Return `ResponseUsage`, with the details that it defines."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": _count(usage.prompt_details.get("cached_tokens")),
            "cache_write_tokens": sum(usage.cache_writes),
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {
            "reasoning_tokens": _count(usage.completion_details.get("reasoning_tokens")),
        },
        "total_tokens": usage.total_tokens,
    }


def estimated_usage(estimate: TokenEstimate, output: Sequence[JSON]) -> Usage:
    """Return the estimated usage of a response with these items, for an upstream that reports none."""
    answered = estimate.text_tokens(sum(text_bytes(text) for item in output for text in _texts(item)))
    return Usage(estimate.prompt, answered, estimate.prompt + answered)


def _texts(item: dict[str, JSON]) -> Iterator[str]:
    """Yield the texts of an output item that the model wrote."""
    yield item.get("arguments") or item.get("input") or ""
    for part in (*item.get("content", ()), *item.get("summary", ())):
        yield part.get("text") or part.get("refusal") or ""


def _count(value: JSON) -> int:
    return value if type(value) is int else 0


def error_object(error: QproxyError) -> dict[str, JSON]:
    """Return `ResponseError`: its codes are a closed list, so qproxy's code stands in `type`."""
    code = {429: "rate_limit_exceeded", 400: "invalid_prompt"}.get(error.status, "server_error")
    return {"code": code, "message": error.message, "type": error.code or error.type, "param": error.param}


def list_page(
    items: Sequence[JSON], *, limit: str | None = None, after: str | None = None, order: str | None = None
) -> dict[str, JSON]:
    """Return a page of items, newest first by default; the parameters are those of the query."""
    size = _limit(limit)
    if validation.one_of(("asc", "desc"))(order or "desc", "order") == "desc":
        items = items[::-1]
    ids = [item["id"] for item in items]
    if after is not None:
        if after not in ids:
            message = f"Unknown item {after[:100]!r} in 'after'."
            raise RequestError(message, param="after", code="invalid_value")
        items = items[ids.index(after) + 1 :]
    shown = list(items[:size])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": len(items) > size,
    }


def starting_after(text: str | None) -> int:
    """Return the query parameter as the number of the last event that the client has; -1 without it."""
    if text is None:
        return -1
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        validation.wrong_value("starting_after", f"expected a sequence number, but got {text[:40]!r}.")
    return int(text)


def _limit(text: str | None) -> int:
    if text is None:
        return 20
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_PAGE:
        validation.wrong_value("limit", f"expected an integer from 1 to {MAX_PAGE}, but got {text[:40]!r}.")
    return int(text)
