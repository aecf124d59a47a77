"""Patterns of models' names: `*` for any characters, `#` for a digit, `{version}` for a version (`4`, `3.8`,
`2_5`).

Names come from clients, so matching takes linear time: between two `*` nothing repeats without a bound, and
the leftmost match of a piece decides.
"""

from __future__ import annotations

import re

_VERSION = r"(?P<version>[0-9]{1,3}(?:[._][0-9]{1,3})?)"


class NamePattern:
    """One pattern, in lower case."""

    def __init__(self, text: str) -> None:
        *pieces, last = [_piece(piece) for piece in text.split("*")]
        self._text = text
        self._pieces = [re.compile(piece) for piece in (*pieces, rf"{last}\Z")]

    def __repr__(self) -> str:
        return f"<NamePattern {self._text}>"

    def match(self, name: str) -> str | None:
        """Return the version in the name, "" without one, or None if the name does not match."""
        start, version = 0, ""
        for number, piece in enumerate(self._pieces):
            found = piece.search(name, start) if number else piece.match(name)
            if found is None:
                return None
            start, version = found.end(), found.groupdict().get("version") or version
        return version


def _piece(text: str) -> str:
    """Return a regular expression for the characters between two `*`."""
    return re.escape(text).replace(r"\#", "[0-9]").replace(re.escape("{version}"), _VERSION)
