"""The system prompt, and system messages in mid-conversation.

Claude Code's billing block is dropped: it stands first and differs between conversations, so that no prefix
cache would ever hit.

A system message after the first user message becomes a user message in `<system-reminder>`, as Claude Code
itself writes it for older models: Qwen's servers want one system message, first, and moving it there would
change the beginning of every later prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from qproxy.wire.endpoints.anthropic.content_blocks import MARKER, BlockReader, text_part
from qproxy.wire.events import JSON
from qproxy.wire.system_reminder import as_reminder

BILLING = "x-anthropic-billing-"


def system_content(contents: Sequence[tuple[JSON, str]], reader: BlockReader) -> JSON:
    """Join contents, each with its path, into the content of one system message; None for none.

    The result is a list of parts where one has a cache marker, else one text.
    """
    parts = []
    for content, path in contents:
        for number, block in enumerate(reader.blocks(content, path)):
            text = reader.text(block, f"{path}[{number}]")
            if isinstance(content, str):
                text = _without_billing(text)
            if text and not text.lstrip().startswith(BILLING):
                marked = bool(block.get("cache_control"))
                parts.append({**text_part(text), "cache_control": MARKER} if marked else text_part(text))
    if any("cache_control" in part for part in parts):
        return parts
    return "\n\n".join(part["text"] for part in parts) or None


def reminder(content: JSON, path: str, reader: BlockReader) -> dict[str, JSON] | None:
    """Return the user message that replaces a later system message; None for an empty one."""
    blocks = reader.blocks(content, path)
    texts = [reader.text(block, f"{path}[{number}]") for number, block in enumerate(blocks)]
    text = "\n\n".join(text for text in texts if text)
    return {"role": "user", "content": as_reminder(text)} if text else None


def _without_billing(text: str) -> str:
    """Remove the billing line from the beginning of a prompt that is one string."""
    if not text.lstrip().startswith(BILLING):
        return text
    return text.lstrip().partition("\n")[2].lstrip("\n")
