"""System messages in mid-conversation as user messages, marked as Claude Code marks them for models without
such a role.

Qwen's servers want one system message, first, and moving a later one there would change the beginning of
every later prompt, so that no prefix cache would hit.
"""

from __future__ import annotations

OPENING = "<system-reminder>"
CLOSING = "</system-reminder>"


def as_reminder(text: str) -> str:
    """Return the text of a system message as that of a user message; one that is marked already is
    unchanged."""
    return text if text.lstrip().startswith(OPENING) else f"{OPENING}\n{text}\n{CLOSING}"
