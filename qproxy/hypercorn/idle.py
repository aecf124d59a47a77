"""The end of idle connections: one task for the whole connection, where stock starts and cancels one for every request."""

from __future__ import annotations

import math
from typing import Any

import trio


class Idle:
    """Ends a connection that has been idle for too long, or that is idle when the server stops.

    `restart` and `stop` are what stock calls its timer by.
    """

    def __init__(self, context: Any, timeout: float) -> None:
        self._terminated = context.terminated
        self._timeout = timeout
        self._deadline = math.inf
        self._scope: trio.CancelScope | None = None
        self._idle = trio.Event()
        self._connection = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<Idle until {self._deadline:.0f}>"

    def set(self, idle: bool) -> None:
        """Count from now, or not at all."""
        self._deadline = trio.current_time() + self._timeout if idle else math.inf
        if self._scope is not None:
            self._scope.deadline = self._deadline
        if idle:
            self._idle.set()
        elif self._idle.is_set():
            self._idle = trio.Event()

    async def restart(self, task_group: Any, action: Any) -> None:
        """Begin, with the connection; `action` closes it."""
        self.set(True)
        task_group.spawn(self._watch, action)

    async def stop(self) -> None:
        """A request has begun."""
        self.set(False)

    def end(self) -> None:
        """The connection is over: there is nothing to wait for, and who waits for this task waits for nothing."""
        self._connection.cancel()

    async def _watch(self, action: Any) -> None:
        with self._connection:
            while not self._over():
                with trio.CancelScope(deadline=self._deadline) as self._scope:
                    await self._terminated.wait()
                    await self._idle.wait()
            await action()

    def _over(self) -> bool:
        """Asked when the wait has ended: a request may have come at the last moment."""
        late = trio.current_time() >= self._deadline
        return self._idle.is_set() and (late or bool(self._terminated.is_set()))
