"""How many requests are served at once.

A request takes a place before it goes to a model and gives it back with its last byte.  When all are taken it waits in
line, for a moment and if the line is short: a client that hears "overloaded" after a second can do something about
it, one that waits a minute cannot.  Health is answered without a place.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from qproxy.wire.errors import Overloaded


class Admission:
    """A number of places, and a short line before them."""

    def __init__(self, places: int = 1000, *, line: int = 100, patience: float = 1.0) -> None:
        self._places = trio.CapacityLimiter(places)
        self._line = line
        self._patience = patience
        self.limits = (places, line, patience)
        self.refused = 0
        """Since the start."""

    def __repr__(self) -> str:
        return f"<Admission {self.taken}/{self._places.total_tokens} taken, {self.waiting} waiting>"

    @property
    def taken(self) -> int:
        return self._places.borrowed_tokens

    @property
    def waiting(self) -> int:
        return self._places.statistics().tasks_waiting

    async def enter(self) -> Callable[[], None]:
        """Take a place; returns what gives it back.  Overloaded when none is free in time."""
        place = object()
        if self._places.available_tokens > 0 and not self.waiting:
            self._places.acquire_on_behalf_of_nowait(place)
            return lambda: self._places.release_on_behalf_of(place)
        if self.waiting < self._line:
            with trio.move_on_after(self._patience):
                await self._places.acquire_on_behalf_of(place)
                return lambda: self._places.release_on_behalf_of(place)
        self.refused += 1
        raise Overloaded("The server has as many requests as it may have at once.", retry_after=1)
