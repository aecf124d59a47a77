"""Text that arrives in pieces, for readers written as generators.

A reader is a generator that yields whenever it cannot decide without more text.  `Source` holds what has come and
has not been consumed; offsets are relative to its start.  A reader therefore looks at *what the text is*, never at
how it was cut, and its result is the same for any cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]
"""A reader under way: yields for more text, returns its result."""

MAX_BLANK = 64 * 1024
"""Longest run of white space that is looked through."""
LONGEST = 16
"""Longest text that a pattern for `until` may match, and longer than any marker."""
MUCH = 4096
"""Characters that are copied when more comes; a longer text is kept in pieces."""
WINDOW = 8192
"""Characters that a reader of JSON looks at in one go."""
NO_LIMIT = 1 << 60
_VISIBLE = re.compile(r"[^ \t\r\n]")


class Source:
    """What has come and has not been consumed.

    While much is held, what comes is kept in pieces: who waits looks at the end only, and pays for no more than that.
    """

    __slots__ = ("_at", "_pieces", "_size", "_text", "cut", "ended")

    def __init__(self, text: str = "", *, ended: bool = False) -> None:
        self._text = text
        self._at = 0
        self._pieces: list[str] = []
        self._size = len(text)
        self.ended = ended
        """No more will come."""
        self.cut = False
        """It ended before the writer was done: out of tokens, or a broken connection."""

    def __repr__(self) -> str:
        return f"<Source {len(self)} characters{', ended' if self.ended else ''}>"

    def __len__(self) -> int:
        return self._size

    def push(self, text: str) -> None:
        self._size += len(text)
        if self._pieces or len(self._text) - self._at > MUCH:
            self._pieces.append(text)
        else:
            self._text = self._text[self._at :] + text
            self._at = 0

    def take(self, size: int) -> str:
        """Consume `size` characters."""
        if self._pieces and self._at + size > len(self._text):
            self._text = self._from(0)
            self._at, self._pieces = 0, []
        start = self._at
        self._at = min(start + size, len(self._text))
        self._size -= self._at - start
        return self._text[start : self._at]

    def piece(self, start: int, end: int | None = None) -> str:
        at = self._at
        if not self._pieces or (end is not None and at + end <= len(self._text)):
            return self._text[at + start : None if end is None else at + end]
        return self._from(start)[: None if end is None else max(0, end - start)]

    def _from(self, start: int) -> str:
        """The text from an offset on, put together from the end."""
        at, pieces = self._size, []
        for piece in reversed(self._pieces):
            if at <= start:
                break
            pieces.append(piece)
            at -= len(piece)
        if at > start:
            pieces.append(self._text[self._at + start :])
            at = start
        return "".join(reversed(pieces))[start - at :]

    def find(self, pattern: re.Pattern[str], start: int = 0, limit: int = NO_LIMIT) -> int:
        """Offset of the first match that begins within `limit` characters of `start`, or -1."""
        text, base = self._text, self._at
        if self._pieces:
            before = min(start, 1)  # a pattern may look at the character before it
            text, base = self._from(start - before), before - start
        begin = base + start
        match = pattern.search(text, begin, min(len(text), begin + limit + LONGEST))
        return match.start() - base if match else -1

    def starts(self, literal: str, offset: int = 0) -> bool:
        if not self._pieces:
            return self._text.startswith(literal, self._at + offset)
        return self.piece(offset, offset + len(literal)) == literal

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
            rest = self.piece(offset, offset + LONGEST)
            if not any(len(rest) < len(literal) and literal.startswith(rest) for literal in literals):
                return None
            if not (yield from self.more()):
                return None

    def visible(self, offset: int = 0) -> Reading[int]:
        """Offset of the next character that is not white space; the length of the text when there is none.

        In a run of white space that is too long to be looked through it is a blank's.
        """
        last, position = offset + MAX_BLANK, offset
        while True:
            found = self.find(_VISIBLE, position)
            if found < 0:
                position = len(self)
            if found > last or position > last:
                return last
            if found >= 0:
                return found
            if not (yield from self.more()):
                return position

    def until(
        self, pattern: re.Pattern[str], offset: int, limit: int, may: Callable[[str], bool] | None = None
    ) -> Reading[int]:
        """Offset of the first match that begins within `limit` characters of `offset`; -1 when there is none.

        `may` says of the text before it whether there is still a point in waiting for one.
        """
        position, last = offset, offset + limit
        while True:
            found = self.find(pattern, position, last - position)
            if found >= 0:
                return found if found <= last else -1
            size = len(self)
            position = max(offset, size - LONGEST)  # what is looked for may have begun
            if position > last or (may is not None and not may(self.piece(offset, last))):
                return -1
            if not (yield from self.more()):
                return -1
