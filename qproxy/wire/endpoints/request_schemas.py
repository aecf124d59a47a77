"""What a request's body must look like, as JSON Schema, for the document that describes this server.

The schemas of single fields come from the checks themselves (`validation.properties`), so the document cannot promise
what the check refuses.  What is checked beyond that, field by field in code, is said here as far as JSON Schema can.
A row of `ENDPOINTS`, or a route that is no endpoint, names its own.
`model` may be missing where the operator has set `default_model`.
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


def _object(required: list[str], *parts: Mapping[str, JSON]) -> JSON:
    properties: dict[str, JSON] = {}
    for part in parts:
        properties.update(part)
    return {"type": "object", "required": required, "properties": properties}


CHAT: JSON = _object(
    ["messages"],
    {"model": NAME, "messages": {"type": "array", "minItems": 1, "items": MESSAGE}},
    {"tools": TOOLS, "tool_choice": CHOICE, "functions": TOOLS, "function_call": CHOICE},
    validation.properties(chat.FIELDS),
)
COMPLETIONS: JSON = _object(
    ["prompt"],
    {"model": NAME, "prompt": {"type": ["string", "array"], "items": {"type": "string"}, "minItems": 1}},
    validation.properties(completions.FIELDS),
)
EMBEDDINGS: JSON = _object(
    ["model", "input"],
    {"model": NAME, "input": {"type": ["string", "array"], "items": NAME, "minItems": 1}},
    validation.properties(embeddings.FIELDS),
)
RESPONSES: JSON = _object(
    ["input"],
    {"model": NAME, "input": {"type": ["string", "array"], "items": {"type": "object"}}},
    {"tools": TOOLS, "tool_choice": CHOICE},
    validation.properties(request.FIELDS),
)
