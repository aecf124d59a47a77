"""A key shared by all turns of one conversation."""

from __future__ import annotations

import hashlib

from qproxy.wire.events import JSON, Turn

AFFINITY_CHARACTERS = 2000


def affinity_key(turn: Turn) -> str:
    """Return a key shared by all turns of one conversation, from its messages up to the user's first; "" for
    none."""
    if not turn.messages:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for message in turn.messages[:4]:
        digest.update(_first_messages(message.get("content")).encode("utf-8", "surrogatepass"))
        if message.get("role") == "user":
            break
    return digest.hexdigest()


def _first_messages(content: JSON) -> str:
    """Return the first characters of a message and of each of its parts; its images may be megabytes."""
    if isinstance(content, list):
        return "".join(
            _first_messages(value)
            for part in content[:4]
            if isinstance(part, dict)
            for key, value in part.items()
            if key != "cache_control"  # it moves from turn to turn
        )
    if isinstance(content, dict):
        return "".join(map(_first_messages, content.values()))
    return content[:AFFINITY_CHARACTERS] if isinstance(content, str) else str(content)[:AFFINITY_CHARACTERS]
