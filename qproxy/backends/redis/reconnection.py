"""The renewal of a connection: pauses that grow, by chance, so that many processes do not return at once.

A connection that did not last long does not shorten the pause. Each event is logged once meanwhile.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import trio

from qproxy.backends.redis.errors import RedisError

FIRST_PAUSE = 0.05
MAX_PAUSE = 2.0
log = logging.getLogger("qproxy.backends")


class Reconnection:
    """The attempts of one connection."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def __repr__(self) -> str:
        return f"<Reconnection {len(self._logged)} events logged>"

    async def run(self, serve: Callable[[], Awaitable[None]], on_error: Callable[[RedisError], None]) -> None:
        """Serve until cancelled. `serve` connects, and raises a RedisError when the connection has ended."""
        pause = FIRST_PAUSE
        while True:
            started = trio.current_time()
            try:
                await serve()
            except RedisError as error:
                on_error(error)
            if trio.current_time() - started > 2 * MAX_PAUSE:
                pause = FIRST_PAUSE
                self._logged.clear()
            await trio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(MAX_PAUSE, 2 * pause)

    def log(self, level: int, event: str) -> None:
        """Log an event, once until a connection has lasted."""
        if event not in self._logged:
            self._logged.add(event)
            log.log(level, "shared state: %s", event)
