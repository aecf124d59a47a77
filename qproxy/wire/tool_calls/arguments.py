"""The arguments of one structured call: accumulate deltas and return the new part of each.

Servers send increments; some replay what they sent, some send everything so far each time, without announcing
it. A delta is appended unless it repeats all that came before. A repeating delta is a repetition if appending
it would be invalid (`{"a"` after `{"a"`), or if the server has repeated itself before; it is appended if only
that makes JSON (`{"a": 1}}` after `{"a": `). An ambiguous delta is held until the next one, or the end,
decides.

Everything after the end of the JSON text is a replay. Nothing is repaired: clients validate, and models
learn.
"""

from __future__ import annotations

import re
from collections import Counter

from qproxy.wire.tool_calls.json_state import JSONState

_JSON_STARTS = re.compile(r'\\.|["{}\[\]]', re.DOTALL)


class ArgumentsAccumulator:
    """The arguments of one call so far; a delta costs its own length, however many came before."""

    __slots__ = ("_json", "_pieces", "_repairs", "_undecided", "cumulative", "size")

    def __init__(self, repairs: Counter[str]) -> None:
        self._repairs = repairs
        self._json = JSONState()
        self._pieces: list[str] = []
        self._undecided = ""
        """A delta that may or may not be a repetition."""
        self.size = 0
        self.cumulative = False
        """Whether the server repeats everything so far."""

    def __repr__(self) -> str:
        return f"<Received {self.size} characters, {self._json!r}>"

    @property
    def text(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @property
    def is_complete(self) -> bool:
        return self._json.is_complete

    @property
    def is_empty(self) -> bool:
        """Return whether only whitespace has come so far."""
        return self._json.empty and not self._undecided

    @property
    def truncate(self) -> bool:
        """Return whether the arguments stop in the middle; text that is not JSON is judged by its
        brackets."""
        if not self._json.is_broken:
            return not self._json.is_complete and not self._json.empty
        depth, in_string = 0, False
        for mark in _JSON_STARTS.findall(self.text):
            if mark == '"':
                in_string = not in_string
            elif not in_string and len(mark) == 1:
                depth += 1 if mark in "{[" else -1
        return in_string or depth > 0

    def add(self, piece: str) -> str:
        """Return the part of `piece` that is new: all of it, its end, or nothing (yet)."""
        if self._undecided:
            return self._decide(piece)
        if self._json.is_complete:
            if piece.strip():
                self._repairs["arguments_replayed"] += 1
            return ""
        if 1 < len(piece) >= self.size > 0 and piece.startswith(self.text):
            return self._repetition(piece)
        return self.append(piece)

    def continues(self, piece: str) -> bool:
        """Append a delta if it can only continue the open string, so that it neither repeats nor ends
        anything.
        """
        if not 0 < len(piece) < self.size or self._undecided or not self._json.inside(piece):
            return False
        self._pieces.append(piece)
        self.size += len(piece)
        return True

    def append(self, piece: str) -> str:
        """Append a delta unchanged."""
        if piece:
            self._pieces.append(piece)
            self.size += len(piece)
            self._json.feed(piece)
        return piece

    def _repetition(self, piece: str) -> str:
        """Return the new part of a delta that begins with everything so far."""
        if self.cumulative or not self._json.accepts(piece):
            return self._new_end(piece)
        if not JSONState().feed(piece) or self._json.completes(piece):
            return self.append(piece)
        self._undecided = piece
        return ""

    def _new_end(self, piece: str) -> str:
        self._repairs["arguments_snapshot" if len(piece) > self.size else "arguments_replayed"] += 1
        self.cumulative = self.cumulative or len(piece) > self.size
        return self.append(piece[self.size :])

    def _decide(self, piece: str) -> str:
        held, self._undecided = self._undecided, ""
        alone = JSONState()
        alone.feed(held)
        repeated = piece.startswith(held) or (
            not self._json.accepts(held + piece) and alone.accepts(piece) and not alone.is_complete
        )
        new = self._new_end(held) if repeated else self.append(held)
        return new + self.add(piece)

    def close(self) -> str:
        """Return the held delta's new part: it is a repetition if that alone makes complete JSON."""
        held, self._undecided = self._undecided, ""
        if not held:
            return ""
        return self._new_end(held) if JSONState().completes(held) else self.append(held)
