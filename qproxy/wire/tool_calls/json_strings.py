"""Pieces of JSON text in a `TextBuffer`: where a string or a value ends, and strings decoded as they come.

What models write is JSON but for raw control characters in strings; those are read as what they are, and `ControlCharEscaper`
makes valid JSON of them on the way out.
"""

from __future__ import annotations

import re

from qproxy.wire import json_codec
from qproxy.wire.tool_calls.json_state import JSONState
from qproxy.wire.tool_calls.text_buffer import WINDOW, ParseSteps, TextBuffer

MAX_HEAD = 64 * 1024
"""Characters that are held while a call has no name yet; more are text."""
UNITS = re.compile(r'(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
"""The inside of a JSON string up to its end, or to an escape that is not whole."""
_QUOTE = re.compile(r'["\\]')
_MARKS = re.compile(r'\\.|["\x00-\x1f]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_PARTIAL_ESCAPE = re.compile(r"(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z")


def string_end(source: TextBuffer, offset: int) -> ParseSteps[int]:
    """Offset after the JSON string that begins at `offset`; -1 when none does, or when it does not end."""
    start = offset
    if not (yield from source.starts_with(offset + 1)) or not source.may_start_with('"', offset):
        return -1
    offset += 1
    while True:
        offset = yield from source.read_until(_QUOTE, offset, MAX_HEAD)
        if offset < 0 or offset - start > MAX_HEAD:
            return -1
        if source.may_start_with('"', offset):
            return offset + 1
        offset += 2


def value_end(source: TextBuffer, offset: int) -> ParseSteps[int]:
    """Offset after the JSON value that begins at `offset`; -1 when it breaks, does not end, or is too long."""
    state, last = JSONState(), offset + MAX_HEAD
    while True:
        offset += state.read_until_end(source.take_chunk(offset, min(offset + WINDOW, last)))
        if state.is_complete:
            return offset
        if state.is_broken or offset == last:
            return -1
        if offset == len(source) and not (yield from source.has_more()):
            return -1


def decode_string(literal: str) -> str:
    """What a JSON string literal says; nothing when it is none."""
    try:
        return str(json_codec.loads_lenient(literal))
    except ValueError:
        return ""


class ControlCharEscaper:
    """Raw control characters inside the strings of a JSON text become escapes, as JSON wants them."""

    def __init__(self) -> None:
        self._in_string = False
        self._backslash = ""

    def feed(self, text: str) -> str:
        text, self._backslash = self._backslash + text, ""
        if (len(text) - len(text.rstrip("\\"))) % 2:
            text, self._backslash = text[:-1], "\\"
        return _MARKS.sub(self._escape, text)

    def _escape(self, match: re.Match[str]) -> str:
        mark = match[0]
        if mark == '"':
            self._in_string = not self._in_string
        elif len(mark) == 1 and self._in_string:
            return json_codec.quote(mark)[1:-1]
        return mark

    def close(self) -> str:
        held, self._backslash = self._backslash, ""
        return held


class StringDecoder:
    """The inside of one JSON string, decoded as it comes; the source begins after its opening quote."""

    def __init__(self) -> None:
        self.finished = False
        self.is_broken = False
        """An escape that there is not: what is left in the source is no string."""

    def read(self, source: TextBuffer) -> str:
        """What is certain of the string; its closing quote is consumed."""
        out: list[str] = []
        size = -1
        while not self.finished and len(source) != size:
            size = len(source)
            out.append(self._window(source))
        return "".join(out)

    def _window(self, source: TextBuffer) -> str:
        text = source.take_chunk(0, WINDOW)
        match = UNITS.match(text)
        size = match.end() if match else 0
        half = _SURROGATE.search(text, max(0, size - 6), size)
        if half and _PARTIAL_ESCAPE.match(text, size) and not (source.is_ended and size == len(source)):
            size -= 6  # the other half of a character is still to come
        inside = decode_string(f'"{source.consume(size)}"')
        if source.may_start_with('"'):
            source.consume(1)
            self.finished = True
        elif (
            not half
            and len(source)
            and source.may_start_with("\\")
            and not _PARTIAL_ESCAPE.match(source.take_chunk(0, 6))
        ):
            self.is_broken = self.finished = True
        return inside
