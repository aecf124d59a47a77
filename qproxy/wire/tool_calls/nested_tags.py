"""The tags of an example in one line of a value: a file about calls holds the syntax that ends the value.

A tag whose closing tag is not in its line may be a mere mention, and is forgotten with the line.
"""

from __future__ import annotations

from qproxy.wire.tool_calls.function_tags import END_PARAMETER, PARAMETERS
from qproxy.wire.tool_calls.function_tags import OPENERS as FUNCTIONS

OPENERS = {**FUNCTIONS, **dict.fromkeys(PARAMETERS, END_PARAMETER)}
TAGS = (*OPENERS, *dict.fromkeys(OPENERS.values()))
MAX_DEPTH = 64
"""Open tags that are remembered; a tag beyond them is a mere mention."""


class NestedTags:
    """The tags in a line of a value that were opened and not closed, innermost last."""

    def __init__(self) -> None:
        self._open: list[str] = []

    def open(self, tag: str) -> None:
        """Remember an opening tag."""
        if len(self._open) < MAX_DEPTH:
            self._open.append(OPENERS[tag])

    def closes(self, tag: str) -> bool:
        """Return whether a closing tag belongs to an open one, and forget that one and those within it."""
        if tag not in self._open:
            return False
        while self._open.pop() != tag:
            pass
        return True

    def end_line(self) -> None:
        self._open.clear()
