"""An incremental automaton over a JSON text: is it complete, and can a given text continue it?

RFC 8259, with two exceptions for models that change no structure: raw control characters inside strings are
accepted, and numbers are not validated. The inside of a string is skipped with one regular expression, so
long arguments are cheap.
"""

from __future__ import annotations

import re

_STRING_RUN = re.compile(r'[^"\\]*')
_SPACE = " \t\r\n"
_NUMBER = frozenset("+-0123456789.eE")
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}


class JSONState:
    """The state of a JSON text that is fed in pieces."""

    __slots__ = ("_expect", "_in_key", "_literal", "_stack", "empty")

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._expect = "value"
        self._in_key = False
        self._literal = ""
        self.empty = True
        """Whether only whitespace has come so far."""

    def __repr__(self) -> str:
        return f"<JSONState {''.join(self._stack)} expects {self._expect}>"

    def copy(self) -> JSONState:
        other = JSONState()
        other._stack = self._stack[:]
        other._expect, other._in_key = self._expect, self._in_key
        other._literal, other.empty = self._literal, self.empty
        return other

    @property
    def is_complete(self) -> bool:
        """Return whether a whole object or array (or string, or literal) has been read."""
        return self._expect == "nothing"

    @property
    def is_broken(self) -> bool:
        """Return whether something came that cannot be JSON."""
        return self._expect == "broken"

    @property
    def in_string(self) -> bool:
        return self._expect in ("string", "escape")

    def inside(self, text: str) -> bool:
        """Return whether `text` lies wholly within the open string, so that it changes nothing."""
        return self._expect == "string" and '"' not in text and "\\" not in text

    def accepts(self, text: str) -> bool:
        """Return whether `text` could follow."""
        return self.copy().feed(text)

    def completes(self, text: str) -> bool:
        """Return whether `text` would end the value."""
        after = self.copy()
        return after.feed(text) and after.is_complete

    def feed(self, text: str) -> bool:
        """Read on; return False (and stay broken) if `text` cannot follow."""
        if self.inside(text):
            return True
        end = self.read_until_end(text)
        if end < len(text) and self._expect == "nothing" and not text[end:].strip(_SPACE):
            return True
        if end < len(text):
            self._expect = "broken"
        return self._expect != "broken"

    def read_until_end(self, text: str, position: int = 0) -> int:
        """Read on from `position` to the value's end; return where the reading stopped.

        That is after the value's last character (`is_complete`), at a character that cannot follow
        (`is_broken`), or at the end of the text.
        """
        end = len(text)
        while position < end:
            if self._expect == "string":
                position = _STRING_RUN.match(text, position).end()  # type: ignore[union-attr]
                if position < end:
                    self._in_string(text[position])
                    position += 1
            elif self._expect == "nothing":
                return position
            elif self._step(text[position]):
                position += 1
            else:
                if self._expect != "nothing":
                    self._expect = "broken"
                return position
        return position

    def _in_string(self, char: str) -> None:
        if char == "\\":
            self._expect = "escape"
        elif self._in_key:
            self._in_key, self._expect = False, "colon"
        else:
            self._end_value()

    def _end_value(self) -> None:
        self._expect = "comma" if self._stack else "nothing"

    def _step(self, char: str) -> bool:
        expect = self._expect
        if expect == "escape":
            self._expect = "string"
            return True
        if expect == "literal":
            if char != self._literal[:1]:
                return False
            self._literal = self._literal[1:]
            if not self._literal:
                self._end_value()
            return True
        if expect == "number":
            if char in _NUMBER:
                return True
            self._end_value()
            expect = self._expect
        if char in _SPACE:
            return expect != "broken"
        self.empty = False
        if expect in ("value", "value or ]"):
            return self._value(char, expect)
        if expect in ("key", "key or }"):
            return self._key(char, expect)
        if expect == "colon" and char == ":":
            self._expect = "value"
            return True
        return expect == "comma" and self._comma(char)

    def _value(self, char: str, expect: str) -> bool:
        if char == '"':
            self._expect = "string"
        elif char == "{":
            self._stack.append("}")
            self._expect = "key or }"
        elif char == "[":
            self._stack.append("]")
            self._expect = "value or ]"
        elif char == "]" and expect == "value or ]":
            self._close()
        elif char in _LITERALS:
            self._literal, self._expect = _LITERALS[char], "literal"
        elif char == "-" or char.isdecimal():
            self._expect = "number"
        else:
            return False
        return True

    def _key(self, char: str, expect: str) -> bool:
        if char == '"':
            self._in_key, self._expect = True, "string"
        elif char == "}" and expect == "key or }":
            self._close()
        else:
            return False
        return True

    def _comma(self, char: str) -> bool:
        if char == ",":
            self._expect = "key" if self._stack[-1] == "}" else "value"
            return True
        if char == self._stack[-1]:
            self._close()
            return True
        return False

    def _close(self) -> None:
        self._stack.pop()
        self._end_value()
