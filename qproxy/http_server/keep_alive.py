"""The end of idle connections: one task for the whole connection, where stock starts and cancels one for every request.

A request costs that task nothing: it is told when the connection is idle and when it is not, and looks for itself, at
the latest when the time would be over.
"""

from __future__ import annotations

import random
from typing import Any

import trio

AGE_JITTER = 0.1
"""Connections that began together do not end together."""


def retirement_time(age: float) -> float:
    """When a connection that begins now has the given age, give or take a tenth (Trio's clock)."""
    return trio.current_time() + age * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)


class KeepAliveTimer:
    """Ends a connection that has been idle for too long, or that is idle when the server stops.

    `restart` and `stop` are what stock calls its timer by.
    """

    def __init__(self, context: Any, timeout: float) -> None:
        self._terminated = context.terminated
        self._timeout = timeout
        self._is_idle = False
        self._until = 0.0
        """When it will have been idle for too long."""
        self._ended = False
        self._scope: trio.CancelScope | None = None
        """The wait of its task."""
        self._last: trio.Event | None = None
        """When the server stops: set once the connection is idle."""

    def __repr__(self) -> str:
        return f"<Idle until {self._until:.0f}>" if self._is_idle else "<Idle, not now>"

    def set(self, idle: bool) -> None:
        """Count from now, or not at all.  One that is idle already counts on: only a request begins the time anew."""
        if idle and not self._is_idle:
            self._until = trio.current_time() + self._timeout
        self._is_idle = idle
        if idle and self._last is not None:
            self._last.set()

    async def restart(self, task_group: Any, action: Any) -> None:
        """Begin, with the connection; `action` closes it."""
        self.set(True)
        task_group.spawn(self._watch, action)

    async def stop(self) -> None:
        """A request has begun."""
        self.set(False)

    def end(self) -> None:
        """The connection is over: there is nothing to wait for, and who waits for this task waits for nothing."""
        self._ended = True
        if self._scope is not None:
            self._scope.cancel()

    async def _watch(self, action: Any) -> None:
        while not self._ended and not self._expire():
            look = self._until if self._is_idle else trio.current_time() + self._timeout
            with trio.CancelScope(deadline=look) as self._scope:
                await self._terminated.wait()
                while not self._is_idle:
                    self._last = trio.Event()
                    await self._last.wait()
        if not self._ended:
            await action()

    def _expire(self) -> bool:
        """Asked when the wait has ended: a request may have come at the last moment."""
        late = trio.current_time() >= self._until
        return self._is_idle and (late or bool(self._terminated.is_set()))
