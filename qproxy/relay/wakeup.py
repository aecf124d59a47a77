"""The wait of an event stream for a task of the request's nursery, with a time limit and an interruption."""

from __future__ import annotations

import trio

from qproxy.transport import ReceiveTimeout


class Wakeup:
    """Lets one task wait until another one has something for it."""

    def __init__(self) -> None:
        self._ready = trio.Event()
        self._waiter: trio.CancelScope | None = None

    def set(self) -> None:
        """Wake the waiting task."""
        self._ready.set()

    def interrupt(self) -> None:
        """Make the waiting task, if any, raise ReceiveTimeout."""
        if self._waiter is not None:
            self._waiter.cancel()

    async def wait(self, until: float) -> None:
        """Wait for the next `set`. Raises ReceiveTimeout at `until`."""
        self._ready = trio.Event()
        with trio.CancelScope(deadline=until) as self._waiter:
            try:
                await self._ready.wait()
                return
            finally:
                self._waiter = None
        raise ReceiveTimeout
