"""Text that arrives in pieces, for readers written as generators.

A reader is a generator that yields whenever it cannot decide without more text.  `Source` holds what has come and
has not been consumed; offsets are relative to its start.  A reader therefore looks at *what the text is*, never at
how it was cut, and its result is the same for any cut.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]
"""A reader under way: yields for more text, returns its result."""

MAX_BLANK = 64 * 1024
"""Longest run of white space that is looked through."""
LONGEST = 16
"""Longest text that a pattern for `until` may match."""
_VISIBLE = re.compile(r"[^ \t\r\n]")


class Source:
    """What has come and has not been consumed."""

    __slots__ = ("_at", "_text", "cut", "ended")

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self.ended = False
        """No more will come."""
        self.cut = False
        """It ended before the writer was done: out of tokens, or a broken connection."""

    def __repr__(self) -> str:
        return f"<Source {len(self)} characters{', ended' if self.ended else ''}>"

    def __len__(self) -> int:
        return len(self._text) - self._at

    def push(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def take(self, size: int) -> str:
        """Consume `size` characters."""
        start = self._at
        self._at = min(start + size, len(self._text))
        return self._text[start : self._at]

    def piece(self, start: int, end: int | None = None) -> str:
        return self._text[self._at + start : None if end is None else self._at + end]

    def find(self, pattern: re.Pattern[str], start: int = 0) -> int:
        """Offset of the first match, or -1."""
        match = pattern.search(self._text, self._at + start)
        return match.start() - self._at if match else -1

    def starts(self, literal: str, offset: int = 0) -> bool:
        return self._text.startswith(literal, self._at + offset)

    def more(self) -> Reading[bool]:
        """Wait until there is more text than now; False at the end."""
        size = len(self)
        while len(self) == size:
            if self.ended:
                return False
            yield
        return True

    def has(self, size: int) -> Reading[bool]:
        """Wait until there are at least `size` characters; False when there never will be."""
        while len(self) < size:
            if not (yield from self.more()):
                return False
        return True

    def which(self, literals: tuple[str, ...], offset: int = 0) -> Reading[str | None]:
        """The literal that stands at `offset`, once that is certain."""
        while True:
            for literal in literals:
                if self.starts(literal, offset):
                    return literal
            rest = self.piece(offset)
            if not any(len(rest) < len(literal) and literal.startswith(rest) for literal in literals):
                return None
            if not (yield from self.more()):
                return None

    def visible(self, offset: int = 0) -> Reading[int]:
        """Offset of the next character that is not white space; the length of the text when there is none."""
        start = offset
        while True:
            found = self.find(_VISIBLE, offset)
            if found >= 0:
                return found
            offset = len(self)
            if offset - start > MAX_BLANK or not (yield from self.more()):
                return offset

    def until(self, pattern: re.Pattern[str], offset: int, limit: int) -> Reading[int]:
        """Offset of the first match after `offset`; -1 when the text ends or `limit` characters pass before it."""
        position = offset
        while True:
            found = self.find(pattern, position)
            if found >= 0:
                return found
            size = len(self)
            position = max(offset, size - LONGEST)  # what is looked for may have begun
            if size - offset > limit or not (yield from self.more()):
                return -1
