"""Text that arrives in pieces, for readers written as generators.

A reader is a generator that yields whenever it cannot decide without more text.  `TextBuffer` holds what has come and
has not been consumed; offsets are relative to its start.  A reader therefore looks at *what the text is*, never at
how it was cut, and its result is the same for any cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
ParseSteps: TypeAlias = Generator[None, None, T]
"""A reader under way: yields for more text, returns its result."""

MAX_WHITESPACE = 64 * 1024
"""Longest run of white space that is looked through."""
MAX_MARKER = 16
"""Longest text that a pattern for `until` may match, and longer than any marker."""
COPY_THRESHOLD = 4096
"""Characters that are copied when more comes; a longer text is kept in pieces."""
WINDOW = 8192
"""Characters that a reader of JSON looks at in one go."""
NO_LIMIT = 1 << 60
_VISIBLE = re.compile(r"[^ \t\r\n]")


class TextBuffer:
    """What has come and has not been consumed.

    While much is held, what comes is kept in pieces: who waits looks at the end only, and pays for no more than that.
    """

    __slots__ = ("_chunks", "_position", "_size", "_text", "is_ended", "truncated")

    def __init__(self, text: str = "", *, ended: bool = False) -> None:
        self._text = text
        self._position = 0
        self._chunks: list[str] = []
        self._size = len(text)
        self.is_ended = ended
        """No more will come."""
        self.truncated = False
        """It ended before the writer was done: out of tokens, or a broken connection."""

    def __repr__(self) -> str:
        return f"<Source {len(self)} characters{', ended' if self.is_ended else ''}>"

    def __len__(self) -> int:
        return self._size

    def push(self, text: str) -> None:
        self._size += len(text)
        if self._chunks or len(self._text) - self._position > COPY_THRESHOLD:
            self._chunks.append(text)
        else:
            self._text = self._text[self._position :] + text
            self._position = 0

    def consume(self, size: int) -> str:
        """Consume `size` characters."""
        if self._chunks and self._position + size > len(self._text):
            self._text = self._from(0)
            self._position, self._chunks = 0, []
        start = self._position
        self._position = min(start + size, len(self._text))
        self._size -= self._position - start
        return self._text[start : self._position]

    def take_chunk(self, start: int, end: int | None = None) -> str:
        at = self._position
        if not self._chunks or (end is not None and at + end <= len(self._text)):
            return self._text[at + start : None if end is None else at + end]
        return self._from(start)[: None if end is None else max(0, end - start)]

    def _from(self, start: int) -> str:
        """The text from an offset on, put together from the end."""
        at, pieces = self._size, []
        for piece in reversed(self._chunks):
            if at <= start:
                break
            pieces.append(piece)
            at -= len(piece)
        if at > start:
            pieces.append(self._text[self._position + start :])
            at = start
        return "".join(reversed(pieces))[start - at :]

    def find(self, pattern: re.Pattern[str], start: int = 0, limit: int = NO_LIMIT) -> int:
        """Offset of the first match that begins within `limit` characters of `start`, or -1."""
        text, base = self._text, self._position
        if self._chunks:
            before = min(start, 1)  # a pattern may look at the character before it
            text, base = self._from(start - before), before - start
        begin = base + start
        match = pattern.search(text, begin, min(len(text), begin + limit + MAX_MARKER))
        return match.start() - base if match else -1

    def may_start_with(self, literal: str, offset: int = 0) -> bool:
        if not self._chunks:
            return self._text.startswith(literal, self._position + offset)
        return self.take_chunk(offset, offset + len(literal)) == literal

    def has_more(self) -> ParseSteps[bool]:
        """Wait until there is more text than now; False at the end."""
        size = len(self)
        while len(self) == size:
            if self.is_ended:
                return False
            yield
        return True

    def starts_with(self, size: int) -> ParseSteps[bool]:
        """Wait until there are at least `size` characters; False when there never will be."""
        while len(self) < size:
            if not (yield from self.has_more()):
                return False
        return True

    def match_any(self, literals: tuple[str, ...], offset: int = 0) -> ParseSteps[str | None]:
        """The literal that stands at `offset`, once that is certain."""
        while True:
            for literal in literals:
                if self.may_start_with(literal, offset):
                    return literal
            rest = self.take_chunk(offset, offset + MAX_MARKER)
            if not any(len(rest) < len(literal) and literal.startswith(rest) for literal in literals):
                return None
            if not (yield from self.has_more()):
                return None

    def visible(self, offset: int = 0) -> ParseSteps[int]:
        """Offset of the next character that is not white space; the length of the text when there is none.

        In a run of white space that is too long to be looked through it is a blank's.
        """
        last, position = offset + MAX_WHITESPACE, offset
        while True:
            found = self.find(_VISIBLE, position)
            if found < 0:
                position = len(self)
            if found > last or position > last:
                return last
            if found >= 0:
                return found
            if not (yield from self.has_more()):
                return position

    def read_until(
        self, pattern: re.Pattern[str], offset: int, limit: int, may: Callable[[str], bool] | None = None
    ) -> ParseSteps[int]:
        """Offset of the first match that begins within `limit` characters of `offset`; -1 when there is none.

        `may` says of the text before it whether there is still a point in waiting for one.
        """
        position, last = offset, offset + limit
        while True:
            found = self.find(pattern, position, last - position)
            if found >= 0:
                return found if found <= last else -1
            size = len(self)
            position = max(offset, size - MAX_MARKER)  # what is looked for may have begun
            if position > last or (may is not None and not may(self.take_chunk(offset, last))):
                return -1
            if not (yield from self.has_more()):
                return -1
