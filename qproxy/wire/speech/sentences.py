"""A text in parts that a model accepts, cut where a speaker would pause.

Ends of sentences come first, then of clauses, then blanks; a longer word is cut where it must be. The parts
joined are the text.
"""

from __future__ import annotations

import re

_PAUSES = (
    re.compile(r"(?:[.!?…]+[\"'”’)\]]*(?=\s)|[。！？；][”’」』）]*|\n)\s*"),
    re.compile(r"(?:[,;:](?=\s)|[，、：])\s*"),
    re.compile(r"\s+"),
)


def split_text(text: str, limit: int) -> list[str]:
    """Return the text in parts of at most `limit` characters."""
    parts = []
    start = 0
    while len(text) - start > limit:
        end = start + _last_pause(text[start : start + limit + 1], limit)
        parts.append(text[start:end])
        start = end
    parts.append(text[start:])
    return [part for part in parts if part.strip()]


def _last_pause(window: str, limit: int) -> int:
    """Return where to cut a window that is one character longer than the limit."""
    for pause in _PAUSES:
        ends = [match.end() for match in pause.finditer(window) if match.end() <= limit]
        if ends:
            return ends[-1]
    return limit
