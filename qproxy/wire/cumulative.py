"""Servers that send everything so far in each event: pass on only the new end.

`CumulativeText` is for a model that is known to do so, because a model may well repeat itself.
`IncrementalOrCumulative` is for DashScope's native API, where a stream is all snapshots or all increments
without announcing which: the first ambiguous text is held until the next one decides. Calls need no help
here: `tool_calls.assembler` detects repetitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from qproxy.wire.events import ChoiceFinished, Event, ReasoningDelta, StreamFailed, TextDelta


class CumulativeText:
    """A stage that passes on the new end of cumulative text; text that repeats nothing is new as a whole."""

    def __init__(self, repairs: Counter[str]) -> None:
        self._repairs = repairs
        self._sofar: dict[tuple[type, int], _SoFar] = {}

    def feed(self, item: Event) -> Iterator[Event]:
        if not isinstance(item, TextDelta | ReasoningDelta):
            yield item
            return
        before = self._sofar.setdefault((type(item), item.choice), _SoFar())
        new = before.new_end(item.text)
        if len(new) < len(item.text):
            self._repairs["text_snapshot"] += 1
            item = replace(item, text=new)
        if item.text:
            yield item

    def close(self) -> Iterator[Event]:
        return iter(())


class _SoFar:
    """The text so far; a delta costs its own length."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0

    def new_end(self, text: str) -> str:
        """Return the part of `text` that is new if it repeats everything so far, else all of it."""
        if len(text) >= self._size > 0:
            self._pieces = ["".join(self._pieces)]
            if text.startswith(self._pieces[0]):
                text = text[self._size :]
        self._pieces.append(text)
        self._size += len(text)
        return text


class _TextState:
    """The state of one text of a stream that may be either: what was passed on, and what is held."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0
        self.held_back = ""

    @property
    def emitted(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def is_decided(self, text: str) -> bool | None:
        """Return whether `text` shows that the stream sends snapshots; None while it could be either."""
        if not self._size:
            return None
        if not text.startswith(self.held_back or self.emitted):
            return False
        return True if self.held_back else None

    def feed(self, text: str, snapshots: bool | None) -> str:
        if snapshots is None:
            if self._size:
                self.held_back = text
                return ""
            return self._say(text)
        if not snapshots:
            text, self.held_back = self.held_back + text, ""
            return text
        self.held_back = ""
        repeats = len(text) >= self._size and text.startswith(self.emitted)
        return self._say(text[self._size :] if repeats else text)

    def _say(self, new: str) -> str:
        self._pieces.append(new)
        self._size += len(new)
        return new

    def end(self, snapshots: bool) -> str:
        held, self.held_back = self.held_back, ""
        return held[self._size :] if snapshots and held else held


class IncrementalOrCumulative:
    """A stage for either kind of stream; `request` is the kind assumed if the stream ends undecided."""

    def __init__(self, *, request: bool) -> None:
        self._undecided = request
        self._snapshots: bool | None = None
        """Whether the stream sends snapshots, decided by any one of its texts; None while undecided."""
        self._texts: dict[tuple[type[TextDelta] | type[ReasoningDelta], int], _TextState] = {}

    def feed(self, item: Event) -> Iterator[Event]:
        if isinstance(item, TextDelta | ReasoningDelta):
            sofar = self._texts.setdefault((type(item), item.choice), _TextState())
            if self._snapshots is None:
                self._snapshots = sofar.is_decided(item.text)
            text = sofar.feed(item.text, self._snapshots)
            if text:
                yield replace(item, text=text)
            return
        if isinstance(item, ChoiceFinished | StreamFailed):
            yield from self.close()
        yield item

    def close(self) -> Iterator[Event]:
        snapshots = not self._undecided if self._snapshots is None else self._snapshots
        for (kind, choice), sofar in self._texts.items():
            text = sofar.end(snapshots)
            if text:
                yield kind(text, choice)
