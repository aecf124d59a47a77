"""Requests with the fields of `POST /v1/responses` and another result: a compaction alone, a token count.

OpenAPI `CompactResponseMethodPublicBody`, `TokenCountsBody`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.responses.input_items import TRIGGER
from qproxy.wire.endpoints.responses.request import decode, request_of
from qproxy.wire.events import JSON, Turn


def decode_compaction(body: JSON, **arguments: Any) -> Turn:
    """Return the turn of a request for a compaction alone; arguments as `decode`."""
    fields = validation.body(body)
    entries = fields.get("input")
    if entries is None:
        if fields.get("previous_response_id") is None and fields.get("conversation") is None:
            validation.missing("input")
        entries = []
    if isinstance(entries, str):
        entries = [{"role": "user", "content": entries}]
    trigger = {"type": TRIGGER}
    entries = [*entries, trigger] if isinstance(entries, list) else entries
    turn = decode({**fields, "input": entries, "stream": False, "store": False}, **arguments)
    request = request_of(turn)
    messages = [
        item
        for item in (*arguments.get("before", ()), *request.items)
        if item["type"] == "message" and item["role"] != "assistant"
    ]
    return replace(turn, endpoint_state=replace(request, messages=messages))


def decode_count(body: JSON, **arguments: Any) -> Turn:
    """Return the turn of a request whose input is only counted; arguments as `decode`."""
    fields = validation.body(body)
    entries = [] if fields.get("input") is None else fields["input"]
    return decode({**fields, "input": entries}, **{"id": f"resp_{'0' * 24}", "created": 0, **arguments})
