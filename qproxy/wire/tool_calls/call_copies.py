"""Calls that came twice: a second call is held while it may be a copy of the first, and dropped if it is.

Some servers replay a structured call under its own id; some send a call as text and as a structured call; and
a model may write a call in its reasoning and then make it. The two texts of the arguments may differ in
whitespace and escapes, so they are compared in a normal form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qproxy.wire.tool_calls.arguments import ArgumentsAccumulator

_TOKEN = re.compile(r'\\u[0-9a-fA-F]{4}|\\.|[^"\\ \t\r\n]++|[ \t\r\n]++|"|\\', re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/"}
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
            if number in self._forms:
                differs = not self._forms[number].startswith(new, start)
            else:
                self._forms[number] = NormalForm().feed(original.text)
                differs = not self._forms[number].startswith("".join(self._text))
            if differs:
                self._excluded.add(number)
        return len(self._excluded) < len(self._originals)

    def matches(self) -> list[int]:
        """Return the numbers of the earlier calls with the same arguments, once these are complete."""
        text = "".join(self._text) or "{}"
        return [
            number
            for number, original in enumerate(self._originals)
            if number not in self._excluded and (NormalForm().feed(original.text) or "{}") == text
        ]
