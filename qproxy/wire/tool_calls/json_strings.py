"""JSON in a `TextBuffer`: find the end of a string or a value, and decode strings as they come.

Models write JSON with raw control characters in strings; those are read literally, and `ControlCharEscaper`
makes valid JSON of them on the way out.
"""

from __future__ import annotations

import re

from qproxy.wire import json_codec
from qproxy.wire.tool_calls.json_state import JSONState
from qproxy.wire.tool_calls.text_buffer import WINDOW, ParseSteps, TextBuffer

MAX_HEAD = 64 * 1024
"""Characters held while a call has no name yet; a longer one is text."""
MAX_WHITESPACE = 256
"""Whitespace characters searched for a brace."""
UNITS = re.compile(r'(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
"""The inside of a JSON string up to its end, or to an incomplete escape."""
_QUOTE = re.compile(r'["\\]')
_MARKS = re.compile(r'\\.|["\x00-\x1f]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_PARTIAL_ESCAPE = re.compile(r"(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z")


def string_end(source: TextBuffer, offset: int) -> ParseSteps[int]:
    """Return the offset after the JSON string at `offset`; -1 if there is no string, or no end."""
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


def value_end(source: TextBuffer, offset: int, limit: int = MAX_HEAD) -> ParseSteps[int]:
    """Return the offset after the JSON value at `offset`; -1 if it breaks, does not end, or is too long."""
    state, last = JSONState(), offset + limit
    while True:
        offset += state.read_until_end(source.take_chunk(offset, min(offset + WINDOW, last)))
        if state.is_complete:
            return offset
        if state.is_broken or offset == last:
            return -1
        if offset == len(source) and not (yield from source.has_more()):
            return -1


def decode_string(literal: str) -> str:
    """Return the text of a JSON string literal; empty if it is not one."""
    try:
        return str(json_codec.loads_lenient(literal))
    except ValueError:
        return ""


class ControlCharEscaper:
    """Escapes raw control characters inside the strings of a JSON text."""

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
    """A decoder of one JSON string as it comes; the source begins after the opening quote."""

    def __init__(self) -> None:
        self.finished = False
        self.is_broken = False
        """Whether an unknown escape came: the rest of the source is not a string."""

    def read(self, source: TextBuffer) -> str:
        """Return the certain part of the string; its closing quote is consumed."""
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
            size -= 6  # the second half of a surrogate pair is still to come
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


def strip_extra_brace(text: str) -> str:
    """Return the text without the call's closing brace and the whitespace around it (MAX_WHITESPACE)."""
    end = _strip_whitespace(len(text), text)
    if text[end - 1 : end] == "}":
        end = _strip_whitespace(end - 1, text)
    return text[:end]


def _strip_whitespace(end: int, text: str) -> int:
    return max(end - MAX_WHITESPACE, 0) + len(text[max(end - MAX_WHITESPACE, 0) : end].rstrip())
