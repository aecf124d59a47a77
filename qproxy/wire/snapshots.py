"""Servers that send everything so far in each event, instead of what is new: the new end of each is passed on.

`Snapshots` is for a model that is known to do so, because a model may well say the same thing twice.  `Either` is
for DashScope's native API, where a stream is all snapshots or all increments and nobody says which: the first text
that could be both is held until the next one tells.  Calls need no help here: `toolcalls.structured` knows
repetitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from qproxy.wire.events import Event, Finish, Reasoning, Text


class Snapshots:
    """The stage.  Text that does not begin with everything so far is new as a whole."""

    def __init__(self, repairs: Counter[str]) -> None:
        self._repairs = repairs
        self._sofar: dict[tuple[type, int], str] = {}

    def feed(self, item: Event) -> Iterator[Event]:
        if not isinstance(item, Text | Reasoning):
            yield item
            return
        key = type(item), item.choice
        before = self._sofar.get(key, "")
        if before and item.text.startswith(before):
            self._repairs["text_snapshot"] += 1
            self._sofar[key] = item.text
            item = replace(item, text=item.text[len(before) :])
        else:
            self._sofar[key] = before + item.text
        if item.text:
            yield item

    def close(self) -> Iterator[Event]:
        return iter(())


class _Unknown:
    """One text of a stream that may be either: what has been passed on, and what is held."""

    def __init__(self) -> None:
        self.said = ""
        self.held = ""
        self.snapshots: bool | None = None

    def feed(self, text: str) -> str:
        if self.snapshots is None and self.said:
            known = self.held or self.said
            if not text.startswith(known):
                self.snapshots = False
                text, self.held = self.held + text, ""
            elif not self.held:
                self.held = text
                return ""
            else:
                self.snapshots, self.held = True, ""
        if self.snapshots:
            new = text[len(self.said) :] if text.startswith(self.said) else text
            self.said = text if text.startswith(self.said) else self.said + text
            return new
        self.said += text if self.snapshots is None else ""
        return text

    def end(self, snapshots: bool) -> str:
        held, self.held = self.held, ""
        return held[len(self.said) :] if snapshots and held else held


class Either:
    """The stage.  `asked` says what a stream is that ends before it has told: increments where they were asked for."""

    def __init__(self, *, asked: bool) -> None:
        self._asked = asked
        self._texts: dict[tuple[type[Text] | type[Reasoning], int], _Unknown] = {}

    def feed(self, item: Event) -> Iterator[Event]:
        if isinstance(item, Text | Reasoning):
            text = self._texts.setdefault((type(item), item.choice), _Unknown()).feed(item.text)
            if text:
                yield replace(item, text=text)
            return
        if isinstance(item, Finish):
            yield from self.close()
        yield item

    def close(self) -> Iterator[Event]:
        for (kind, choice), unknown in self._texts.items():
            text = unknown.end(not self._asked)
            if text:
                yield kind(text, choice)
