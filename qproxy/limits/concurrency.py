"""How many requests are served at once.

A request takes a place before it goes to a model and gives it back with its last byte.  When all are taken it waits in
line, for a moment and if the line is short: a client that hears "overloaded" after a second can do something about
it, one that waits a minute cannot.  Health is answered without a place.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from qproxy.wire.errors import OverloadedError


class ConcurrencyLimiter:
    """A number of places, and a short line before them."""

    def __init__(self, places: int = 1000, *, line: int = 100, patience: float = 1.0) -> None:
        self._slots = trio.CapacityLimiter(places)
        self._queue = line
        self._queue_timeout = patience
        self.limits = (places, line, patience)
        self.rejected = 0
        """Since the start."""

    def __repr__(self) -> str:
        return f"<Admission {self.in_use}/{self._slots.total_tokens} taken, {self.queue_size} waiting>"

    @property
    def in_use(self) -> int:
        return self._slots.borrowed_tokens

    @property
    def queue_size(self) -> int:
        return self._slots.statistics().tasks_waiting

    async def acquire(self) -> Callable[[], None]:
        """Take a place; returns what gives it back.  Overloaded when none is free in time."""
        place = object()
        if self._slots.available_tokens > 0 and not self.queue_size:
            self._slots.acquire_on_behalf_of_nowait(place)
            return lambda: self._slots.release_on_behalf_of(place)
        if self.queue_size < self._queue:
            with trio.move_on_after(self._queue_timeout):
                await self._slots.acquire_on_behalf_of(place)
                return lambda: self._slots.release_on_behalf_of(place)
        self.rejected += 1
        raise OverloadedError("The server has as many requests as it may have at once.", retry_after=1)
