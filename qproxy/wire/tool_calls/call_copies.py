"""Calls that came twice: a second call is held while it may be a copy of the first, and dropped if it is.

Some servers replay a structured call under its own id; some send a call as text and as a structured call; and
a model may write a call in its reasoning and then make it. The two texts of the arguments may differ in
whitespace and escapes, so they are compared in a normal form; that only the order of their keys differs shows
once both are complete.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qproxy.wire import json_codec
from qproxy.wire.events import JSON
from qproxy.wire.tool_calls.arguments import ArgumentsAccumulator

_TOKEN = re.compile(r'\\u[0-9a-fA-F]{4}|\\.|[^"\\ \t\r\n]++|[ \t\r\n]++|"|\\', re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/"}
MAX_REORDERED = 64 * 1024
"""Characters of arguments that are held to see whether they are the same in another order."""
_PARTIAL_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")


class NormalForm:
    """JSON text without whitespace outside of strings, and with as few escapes as possible; fed in pieces."""

    def __init__(self) -> None:
        self._in_string = False
        self._partial = ""

    def feed(self, text: str) -> str:
        """Return the certain normal form of more text; a character beyond the BMP becomes two surrogates."""
        text, self._partial = self._partial + text, ""
        partial = _PARTIAL_ESCAPE.search(text, max(0, len(text) - 5))
        if partial and not self._is_escaped(text, partial.start()):
            text, self._partial = text[: partial.start()], partial[0]
        return "".join([self._token(token) for token in _TOKEN.findall(text)])

    @staticmethod
    def _is_escaped(text: str, position: int) -> bool:
        """Return whether the backslash at `position` is itself escaped."""
        before = text[:position]
        return (len(before) - len(before.rstrip("\\"))) % 2 == 1

    def _token(self, token: str) -> str:
        if token == '"':
            self._in_string = not self._in_string
            return token
        if not self._in_string:
            return token.strip(" \t\r\n")
        if token[0] != "\\":
            return token if token.isascii() else _as_utf16_units(token)
        if token[1:2] == "u" and len(token) == 6:
            char = chr(int(token[2:], 16))
            return "\\" + char if char in '"\\' else char
        return _ESCAPES.get(token[1:], token)


def _as_utf16_units(text: str) -> str:
    if max(text) <= "\uffff":
        return text
    data = text.encode("utf-16-le", "surrogatepass")
    return "".join([chr(int.from_bytes(data[at : at + 2], "little")) for at in range(0, len(data), 2)])


class CopyCheck:
    """The comparison of a call's arguments, as they come, with those of earlier calls that it may repeat."""

    def __init__(self, originals: Sequence[ArgumentsAccumulator]) -> None:
        self._originals = originals
        self._forms: dict[int, str] = {}
        """The normal forms of originals that were complete when they were compared."""
        self._excluded: set[int] = set()
        self._reordered: set[int] = set()
        """Originals whose keys are in another order, if they are the same."""
        self._form = NormalForm()
        self._text: list[str] = []
        self._size = 0

    def feed(self, text: str) -> bool:
        """Return whether the call, with more of its arguments, may still be a copy."""
        new, start = self._form.feed(text), self._size
        self._text.append(new)
        self._size += len(new)
        for number, original in enumerate(self._originals):
            if number in self._excluded or not original.is_complete:
                continue
            if number in self._reordered:
                differs = self._size > len(self._forms[number])
            elif number in self._forms:
                differs = not self._forms[number].startswith(new, start)
            else:
                self._forms[number] = NormalForm().feed(original.text)
                differs = not self._forms[number].startswith("".join(self._text))
            if differs and number not in self._reordered and self._may_be_reordered(number):
                self._reordered.add(number)
            elif differs:
                self._excluded.add(number)
        return len(self._excluded) < len(self._originals)

    def _may_be_reordered(self, number: int) -> bool:
        """Return whether the first difference from an original is in a key, so that the order may differ."""
        form, text = self._forms[number], "".join(self._text)
        fits = len(text) <= len(form) <= MAX_REORDERED
        if not fits:
            return False
        pairs = enumerate(zip(form, text, strict=False))
        end = next((position for position, (one, other) in pairs if one != other), len(text))
        return _ends_in_key(text[:end])

    def matches(self) -> list[int]:
        """Return the numbers of the earlier calls with the same arguments, once these are complete."""
        text = "".join(self._text) or "{}"
        return [
            number
            for number, original in enumerate(self._originals)
            if number not in self._excluded
            and self._is_same(number, NormalForm().feed(original.text) or "{}", text)
        ]

    def _is_same(self, number: int, form: str, text: str) -> bool:
        if number not in self._reordered:
            return form == text
        try:
            return _equal(json_codec.loads(form), json_codec.loads(text))
        except ValueError:
            return False


def _ends_in_key(text: str) -> bool:
    """Return whether JSON text in normal form ends where an object's key may stand, or in one."""
    containers: list[str] = []
    before, in_string, is_key, escaped = "", False, False, False
    for char in text:
        if in_string:
            in_string = escaped or char != '"'
            escaped = not escaped and char == "\\"
        elif char == '"':
            in_string, is_key = True, containers[-1:] == ["{"] and before in "{,"
        elif char in "{[":
            containers.append(char)
        elif char in "}]" and containers:
            containers.pop()
        before = char
    return is_key if in_string else containers[-1:] == ["{"] and before in "{,"


def _equal(one: JSON, other: JSON) -> bool:
    """Return whether two values are the same but for the order of keys; 1, 1.0 and true differ."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
