"""Keep-alive timers: one task per connection, where stock Hypercorn starts and cancels one per request.

A request does not wake that task: it only records whether the connection is idle, and the task checks the
record when the timeout would expire.
"""

from __future__ import annotations

import random
from typing import Any

import trio

AGE_JITTER = 0.1
"""The share of its age by which a connection's retirement varies, so that they do not all close together."""


def retirement_time(age: float) -> float:
    """Return the time when a connection opened now reaches an age, ± `AGE_JITTER` (Trio's clock)."""
    return trio.current_time() + age * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)


class KeepAliveTimer:
    """A timer that closes a connection after its idle timeout, or when it is idle during shutdown.

    `restart` and `stop` are the methods that Hypercorn calls.
    """

    def __init__(self, context: Any, timeout: float) -> None:
        self._terminated = context.terminated
        self._timeout = timeout
        self._is_idle = False
        self._until = 0.0
        """The time when the idle timeout expires (Trio's clock)."""
        self._ended = False
        self._scope: trio.CancelScope | None = None
        """The cancel scope of the task's wait."""
        self._last: trio.Event | None = None
        """Set when the connection becomes idle during shutdown."""

    def __repr__(self) -> str:
        return f"<KeepAliveTimer{f' until {self._until:.0f}' if self._is_idle else ''}>"

    def set(self, idle: bool) -> None:
        """Record whether the connection is idle; the timeout restarts only when it becomes idle after a
        request."""
        if idle and not self._is_idle:
            self._until = trio.current_time() + self._timeout
        self._is_idle = idle
        if idle and self._last is not None:
            self._last.set()

    async def restart(self, task_group: Any, action: Any) -> None:
        """Start the timer of a new connection, which `action` closes."""
        self.set(True)
        task_group.spawn(self._watch, action)

    async def stop(self) -> None:
        """Record the start of a request."""
        self.set(False)

    def end(self) -> None:
        """End the timer's task, since the connection is closed."""
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
        """Return whether to close the connection, since a request may have arrived at the last moment."""
        late = trio.current_time() >= self._until
        return self._is_idle and (late or bool(self._terminated.is_set()))
