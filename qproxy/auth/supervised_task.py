"""A background task that ends with its server and at no other time.

A bare task in a nursery of the app would, when it fails, take every other one and the app's own end with it, or be
gone after one line of log.  A supervised one is started again, after a pause that grows while it keeps failing; the
failure is logged with its traceback and counted.  (Erlang's one_for_one, without the limit: a server that cannot
refresh one account still serves the others.)
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import trio

FIRST_PAUSE, MAX_PAUSE = 1.0, 60.0
HEALTHY_AFTER = 30.0
"""Seconds after which a run counts as healthy, and its failure as the first one."""
log = logging.getLogger("qproxy.auth")


class SupervisedTask:
    """A task and how it has been doing."""

    def __init__(
        self, name: str, task: Callable[[], Awaitable[None]], *, jitter: Callable[[], float] = random.random
    ) -> None:
        self.name = name
        self._task = task
        self._jitter = jitter
        self.crashes = 0
        """Since the start."""
        self.failures = 0
        """In a row."""

    def __repr__(self) -> str:
        return f"<Supervised {self.name}, {self.crashes} crashes>"

    async def run(self) -> None:
        """Run the task until cancelled."""
        while True:
            began = trio.current_time()
            try:
                await self._task()
                error: Exception = RuntimeError("the task has returned")
            except Exception as raised:  # a group of exceptions too; a cancellation passes
                error = raised
            await trio.sleep(self._restart_delay(error, trio.current_time() - began))

    def _restart_delay(self, error: Exception, ran: float) -> float:
        self.crashes += 1
        self.failures = 1 if ran >= HEALTHY_AFTER else self.failures + 1
        pause = min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures - 1, 10)) * (0.5 + self._jitter() / 2)
        log.error("%s has crashed; it runs again in %.1f s", self.name, pause, exc_info=error)
        return pause
