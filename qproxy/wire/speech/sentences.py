"""A text in parts that a model accepts, cut where a speaker would pause.

Ends of sentences come first, then of clauses, then blanks; a longer word is cut where it must be. The parts
joined are the text.
"""

from __future__ import annotations

import re

_PAUSES = (
    re.compile(r"""[.!?…]["'”’)\]]?(?=\s)|[。！？；][”’」』）]?|\n"""),
    re.compile(r"[,;:](?=\s)|[，、：]"),
    re.compile(r"\s"),
)
"""Ends of sentences, of clauses and of words; blanks after them belong to them."""
_BLANKS = re.compile(r"\s*+")


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
        ends = (_end_of_blanks(window, match.end()) for match in pause.finditer(window))
        fitting = [end for end in ends if end <= limit]
        if fitting:
            return fitting[-1]
    return limit


def _end_of_blanks(text: str, position: int) -> int:
    """Return where the blanks from a position on end."""
    blanks = _BLANKS.match(text, position)
    return position if blanks is None else blanks.end()
