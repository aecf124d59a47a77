"""Keys shared by all turns of one conversation.

`affinity_key` chooses the account, whose prompt cache the conversation has filled: by the client's own id of
the session or of the cached prompt if it sends one, which holds even if a client rewrites its first messages.
`prefix_keys` finds the account that a conversation has moved to (`accounts.prompt_homes`).
"""

from __future__ import annotations

import hashlib

from qproxy.wire.events import JSON, Turn

AFFINITY_CHARACTERS = 2000


def affinity_key(turn: Turn) -> str:
    """Return the key of a turn's conversation for the choice of an account; "" for none."""
    session = turn.session or turn.params.get("prompt_cache_key")
    if isinstance(session, str) and session:
        text = session[:AFFINITY_CHARACTERS].encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=8).hexdigest()
    return prompt_key(turn)


def prompt_key(turn: Turn) -> str:
    """Return a key from a conversation's messages up to the user's first; "" for none."""
    if not turn.messages:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for message in turn.messages[:4]:
        digest.update(_first_messages(message.get("content")).encode("utf-8", "surrogatepass"))
        if message.get("role") == "user":
            break
    return digest.hexdigest()


def prefix_keys(turn: Turn) -> list[bytes]:
    """Return a key of each beginning of a conversation, the longest last; a named session has one."""
    session = turn.session or turn.params.get("prompt_cache_key")
    if isinstance(session, str) and session:
        return [affinity_key(turn).encode()]
    digest, keys = hashlib.blake2b(digest_size=8), []
    for message in turn.messages:
        text = f"{message.get('role')}:{_first_messages(message.get('content'))}"
        digest.update(text.encode("utf-8", "surrogatepass"))
        keys.append(digest.digest())
    return keys


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
