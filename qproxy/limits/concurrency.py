"""Limits the requests that are served concurrently.

A request acquires a slot before it is relayed and releases it with its last byte. Without a free slot it
waits in a bounded queue, briefly: a client that gets "overloaded" after a second can retry elsewhere, one
that waits a minute cannot. Health checks need no slot.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from qproxy.wire.errors import OverloadedError


class ConcurrencyLimiter:
    """A number of slots, and a short queue for them."""

    def __init__(self, slots: int, *, max_queue_size: int, queue_timeout: float) -> None:
        self._slots = trio.CapacityLimiter(slots)
        self._max_queue_size = max_queue_size
        self._queue_timeout = queue_timeout
        self.rejected = 0
        """Requests rejected since the start."""

    def __repr__(self) -> str:
        return f"<ConcurrencyLimiter {self.in_use}/{self.slots} in use, {self.queue_size} waiting>"

    @property
    def slots(self) -> int:
        return int(self._slots.total_tokens)

    @property
    def in_use(self) -> int:
        return self._slots.borrowed_tokens

    @property
    def queue_size(self) -> int:
        return self._slots.statistics().tasks_waiting

    async def acquire(self) -> Callable[[], None]:
        """Acquire a slot, and return the function that releases it. Raises OverloadedError when none is free
        in time."""
        borrower = object()
        if self._slots.available_tokens > 0 and not self.queue_size:
            self._slots.acquire_on_behalf_of_nowait(borrower)
            return lambda: self._slots.release_on_behalf_of(borrower)
        if self.queue_size < self._max_queue_size:
            with trio.move_on_after(self._queue_timeout):
                await self._slots.acquire_on_behalf_of(borrower)
                return lambda: self._slots.release_on_behalf_of(borrower)
        self.rejected += 1
        raise OverloadedError("The server is at its concurrent request limit (max_requests).", retry_after=1)
