"""`tool_result` blocks as chat's tool messages.

The content is one string, its blocks joined; images make it a list of parts, which a dialect's rule moves
where its servers look. Chat has no flag for an error, so the text gets a prefix unless it mentions one
itself.
"""

from __future__ import annotations

import re

from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.anthropic import tool_ids
from qproxy.wire.endpoints.anthropic.content_blocks import MARKER, BlockReader, text_part
from qproxy.wire.events import JSON

_MENTIONS_ERROR = re.compile(r"error|fail", re.IGNORECASE)


def tool_message(block: JSON, path: str, reader: BlockReader) -> dict[str, JSON]:
    """Return the tool message of a result. Raises RequestError that names the invalid field."""
    if block.get("tool_use_id") is None:
        validation.missing(f"{path}.tool_use_id")
    id = tool_ids.upstream_id(validation.string(block["tool_use_id"], f"{path}.tool_use_id"))
    message = {"role": "tool", "tool_call_id": id, "content": _content(block, path, reader)}
    return {**message, "cache_control": MARKER} if block.get("cache_control") else message


def _content(block: JSON, path: str, reader: BlockReader) -> JSON:
    value = block.get("content")
    blocks = [] if value is None else reader.blocks(value, f"{path}.content")
    parts = [reader.part(inner, f"{path}.content[{number}]") for number, inner in enumerate(blocks)]
    text = "\n\n".join(part["text"] for part in parts if part.get("text"))
    if block.get("is_error") is True and not _MENTIONS_ERROR.search(text):
        text = f"Error: {text}" if text else "Error"
    images = [part for part in parts if "text" not in part]
    if not images:
        return text
    return [text_part(text), *images] if text else images
