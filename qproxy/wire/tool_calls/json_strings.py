"""Pieces of JSON text in a `Source`: where a string or a value ends, and strings decoded as they come.

What models write is JSON but for raw control characters in strings; those are read as what they are, and `Escaper`
makes valid JSON of them on the way out.
"""

from __future__ import annotations

import re

from qproxy.wire import json_codec as jsontext
from qproxy.wire.tool_calls.json_state import JSONState
from qproxy.wire.tool_calls.text_buffer import WINDOW, Reading, Source

MAX_HEAD = 64 * 1024
"""Characters that are held while a call has no name yet; more are text."""
UNITS = re.compile(r'(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
"""The inside of a JSON string up to its end, or to an escape that is not whole."""
_QUOTE = re.compile(r'["\\]')
_MARKS = re.compile(r'\\.|["\x00-\x1f]', re.DOTALL)
_HALF = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_ESCAPE_BEGUN = re.compile(r"(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z")


def string_end(source: Source, offset: int) -> Reading[int]:
    """Offset after the JSON string that begins at `offset`; -1 when none does, or when it does not end."""
    start = offset
    if not (yield from source.has(offset + 1)) or not source.starts('"', offset):
        return -1
    offset += 1
    while True:
        offset = yield from source.until(_QUOTE, offset, MAX_HEAD)
        if offset < 0 or offset - start > MAX_HEAD:
            return -1
        if source.starts('"', offset):
            return offset + 1
        offset += 2


def value_end(source: Source, offset: int) -> Reading[int]:
    """Offset after the JSON value that begins at `offset`; -1 when it breaks, does not end, or is too long."""
    state, last = JSONState(), offset + MAX_HEAD
    while True:
        offset += state.read(source.piece(offset, min(offset + WINDOW, last)))
        if state.complete:
            return offset
        if state.broken or offset == last:
            return -1
        if offset == len(source) and not (yield from source.more()):
            return -1


def decoded(literal: str) -> str:
    """What a JSON string literal says; nothing when it is none."""
    try:
        return str(jsontext.loads_leniently(literal))
    except ValueError:
        return ""


class Escaper:
    """Raw control characters inside the strings of a JSON text become escapes, as JSON wants them."""

    def __init__(self) -> None:
        self._in_string = False
        self._backslash = ""

    def feed(self, text: str) -> str:
        text, self._backslash = self._backslash + text, ""
        if (len(text) - len(text.rstrip("\\"))) % 2:
            text, self._backslash = text[:-1], "\\"
        return _MARKS.sub(self._escaped, text)

    def _escaped(self, match: re.Match[str]) -> str:
        mark = match[0]
        if mark == '"':
            self._in_string = not self._in_string
        elif len(mark) == 1 and self._in_string:
            return jsontext.quote(mark)[1:-1]
        return mark

    def close(self) -> str:
        held, self._backslash = self._backslash, ""
        return held


class Decoding:
    """The inside of one JSON string, decoded as it comes; the source begins after its opening quote."""

    def __init__(self) -> None:
        self.over = False
        self.broken = False
        """An escape that there is not: what is left in the source is no string."""

    def read(self, source: Source) -> str:
        """What is certain of the string; its closing quote is consumed."""
        out: list[str] = []
        size = -1
        while not self.over and len(source) != size:
            size = len(source)
            out.append(self._window(source))
        return "".join(out)

    def _window(self, source: Source) -> str:
        text = source.piece(0, WINDOW)
        match = UNITS.match(text)
        size = match.end() if match else 0
        half = _HALF.search(text, max(0, size - 6), size)
        if half and _ESCAPE_BEGUN.match(text, size) and not (source.ended and size == len(source)):
            size -= 6  # the other half of a character is still to come
        inside = decoded(f'"{source.take(size)}"')
        if source.starts('"'):
            source.take(1)
            self.over = True
        elif not half and len(source) and source.starts("\\") and not _ESCAPE_BEGUN.match(source.piece(0, 6)):
            self.broken = self.over = True
        return inside
