"""JSON Schemas of request bodies for the OpenAPI document.

The schemas of single fields come from the checks themselves (`validation.properties`), so the document and
the checks agree. Checks made in code beyond that are described here as far as JSON Schema can express them.
A row of `ENDPOINTS`, or another route, names its schema. `model` is optional if `default_model` is set.
"""

from __future__ import annotations

from collections.abc import Mapping

from qproxy.wire.endpoints import (
    chat,
    chat_messages,
    completions,
    embeddings,
    validation,
)
from qproxy.wire.endpoints.responses import request
from qproxy.wire.events import JSON

NAME: JSON = {"type": "string", "minLength": 1}
CONTENT: JSON = {"type": ["string", "array", "null"], "items": {"type": "object"}}
MESSAGE: JSON = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": sorted(chat_messages.ROLES)},
        "content": CONTENT,
        "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
        "tool_call_id": {"type": ["string", "null"]},
        "name": {"type": ["string", "null"]},
    },
}
TOOLS: JSON = {"type": ["array", "null"], "items": {"type": "object"}}
CHOICE: JSON = {"type": ["string", "object", "null"]}


def object_schema(required: list[str], *parts: Mapping[str, JSON]) -> JSON:
    properties: dict[str, JSON] = {}
    for part in parts:
        properties.update(part)
    return {"type": "object", "required": required, "properties": properties}


CHAT: JSON = object_schema(
    ["messages"],
    {"model": NAME, "messages": {"type": "array", "minItems": 1, "items": MESSAGE}},
    {"tools": TOOLS, "tool_choice": CHOICE, "functions": TOOLS, "function_call": CHOICE},
    validation.properties(chat.FIELDS),
)
COMPLETIONS: JSON = object_schema(
    ["prompt"],
    {"model": NAME, "prompt": {"type": ["string", "array"], "items": {"type": "string"}, "minItems": 1}},
    validation.properties(completions.FIELDS),
)
EMBEDDINGS: JSON = object_schema(
    ["model"],
    {
        "model": NAME,
        "input": {
            "type": ["string", "array", "object"],
            "items": {"type": ["string", "object", "array"]},
            "minItems": 1,
        },
        "messages": {"type": "array", "items": {"type": "object"}},
    },
    validation.properties(embeddings.FIELDS),
)
RESPONSES: JSON = object_schema(
    ["input"],
    {"model": NAME, "input": {"type": ["string", "array"], "items": {"type": "object"}}},
    {"tools": TOOLS, "tool_choice": CHOICE},
    validation.properties(request.FIELDS),
)
_INPUT = {name: kind for name, kind in RESPONSES["properties"].items() if name not in ("stream", "store")}
INPUT_TOKENS: JSON = {**RESPONSES, "required": [], "properties": _INPUT}
COMPACTION: JSON = INPUT_TOKENS
"""The input of both may be that of `previous_response_id`."""
