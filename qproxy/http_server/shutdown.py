"""The shutdown of the server around the app, as the app sees it.

The server (Hypercorn's worker, `in_process`) sets `current_shutdown` before it starts the app's lifespan: an
event that is set when no new connection is accepted, and the seconds for which the server then waits for
requests in flight. The app sets these seconds, and ends the remaining requests shortly before they have
passed.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

import trio

ERROR_DELIVERY_SECONDS = 2.0
"""Seconds for ended requests to send their errors."""


class Shutdown:
    """The shutdown event of a server, and the seconds that it waits for requests in flight."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.timeout = 0.0
        """Seconds; set by the app."""

    def __repr__(self) -> str:
        return f"<Shutdown{' started' if self.started.is_set() else ''}, {self.timeout:g} s>"


current_shutdown: ContextVar[Shutdown | None] = ContextVar("qproxy.shutdown", default=None)
"""The shutdown of the server that this task belongs to; None if the server has no such protocol."""


class InFlight(Protocol):
    """The requests in flight, which can be ended together."""

    def drain(self) -> None: ...

    def end(self) -> None: ...


async def drain(in_flight: InFlight, graceful_timeout: float) -> None:
    """Wait for the shutdown and the graceful timeout, then end the remaining requests with an error."""
    shutdown = current_shutdown.get()
    if shutdown is None:
        return
    await shutdown.started.wait()
    in_flight.drain()
    await trio.sleep(graceful_timeout)
    in_flight.end()
