"""Text that arrives in pieces, for parsers written as generators.

A parser yields whenever it cannot decide without more text. `TextBuffer` holds the text that has come and is
not consumed; offsets are relative to its start. So a parser sees only *what the text is*, never how it was
cut, and its result is the same for any cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
ParseSteps: TypeAlias = Generator[None, None, T]
"""A running parser: yields for more text, returns its result."""

MAX_WHITESPACE = 64 * 1024
"""Maximum length of a run of whitespace that is searched."""
MAX_MARKER = 32
"""Maximum length of a match of `read_until`'s pattern, above any marker's."""
COPY_THRESHOLD = 4096
"""Characters copied when more text comes; a longer text is kept in pieces."""
WINDOW = 8192
"""Characters that a JSON parser looks at in one step."""
NO_LIMIT = 1 << 60
_VISIBLE = re.compile(r"[^ \t\r\n]")


class TextBuffer:
    """The text that has come and is not consumed.

    A long text is kept in pieces: a waiting parser looks only at its end, and pays only for that.
    """

    __slots__ = ("_chunks", "_position", "_size", "_text", "is_ended", "truncated")

    def __init__(self, text: str = "", *, ended: bool = False) -> None:
        self._text = text
        self._position = 0
        self._chunks: list[str] = []
        self._size = len(text)
        self.is_ended = ended
        """Whether no more text will come."""
        self.truncated = False
        """Whether it ended early: out of tokens, or a broken connection."""

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
        """Consume and return `size` characters."""
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
        """Return the text from an offset on, joined from the end."""
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
        """Return the offset of the first match that begins within `limit` characters of `start`, or -1."""
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
        """Wait until there is more text than now; return False at the end."""
        size = len(self)
        while len(self) == size:
            if self.is_ended:
                return False
            yield
        return True

    def starts_with(self, size: int) -> ParseSteps[bool]:
        """Wait until there are at least `size` characters; return False if there never will be."""
        while len(self) < size:
            if not (yield from self.has_more()):
                return False
        return True

    def match_any(self, literals: tuple[str, ...], offset: int = 0) -> ParseSteps[str | None]:
        """Return the literal at `offset`, once that is certain."""
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
        """Return the offset of the next character that is not whitespace; the text's length at its end.

        In a run longer than MAX_WHITESPACE it is the offset of a whitespace character.
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
        """Return the offset of the first match that begins within `limit` characters of `offset`, or -1.

        `may` returns whether the text before it can still lead to a match.
        """
        position, last = offset, offset + limit
        while True:
            found = self.find(pattern, position, last - position)
            if found >= 0:
                return found if found <= last else -1
            size = len(self)
            position = max(offset, size - MAX_MARKER)  # a match may have begun
            if position > last or (may is not None and not may(self.take_chunk(offset, last))):
                return -1
            if not (yield from self.has_more()):
                return -1
