"""Servers that send everything so far in each event, instead of what is new: the new end of each is passed on.

DashScope's native API does so unless it is asked for increments; for other servers it is a model's profile,
because a model may well say the same thing twice.  Calls need no help here: `structured` knows repetitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from qproxy.wire.events import Event, Reasoning, Text


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
