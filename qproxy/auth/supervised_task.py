"""A background task that is restarted when it crashes.

A plain task in the app's nursery would cancel all others when it fails. A supervised one is restarted after a
delay that grows while it keeps failing; each failure is logged with its traceback and counted. (Erlang's
one_for_one without a limit: a server that cannot refresh one account still serves the others.)
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import trio

FIRST_PAUSE, MAX_PAUSE = 1.0, 60.0
HEALTHY_AFTER = 30.0
"""Seconds after which a run counts as healthy and its failure as the first one."""
log = logging.getLogger("qproxy.auth")


class SupervisedTask:
    """A supervised task and its failures."""

    def __init__(
        self, name: str, task: Callable[[], Awaitable[None]], *, jitter: Callable[[], float] = random.random
    ) -> None:
        self.name = name
        self._task = task
        self._jitter = jitter
        self.crashes = 0
        """Failures since the start."""
        self.failures = 0
        """Consecutive failures."""

    def __repr__(self) -> str:
        return f"<SupervisedTask {self.name}, {self.crashes} crashes>"

    async def run(self) -> None:
        """Run the task until cancelled."""
        while True:
            began = trio.current_time()
            try:
                await self._task()
                error: Exception = RuntimeError("the task has returned")
            except Exception as raised:  # exception groups too, but not a cancellation
                error = raised
            await trio.sleep(self._restart_delay(error, trio.current_time() - began))

    def _restart_delay(self, error: Exception, ran: float) -> float:
        self.crashes += 1
        self.failures = 1 if ran >= HEALTHY_AFTER else self.failures + 1
        pause = min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures - 1, 10)) * (0.5 + self._jitter() / 2)
        log.error("%s crashed, restarting in %.1f s", self.name, pause, exc_info=error)
        return pause
