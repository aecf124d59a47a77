"""The end of the server around the app, as the app sees it.

Whatever serves the app (Hypercorn's worker, `in_process`) announces a `Shutdown` before it starts the app's lifespan:
an event that is set when no new connection is taken, and the seconds for which it then waits for running requests.
The app says how many it wants, and ends what still runs shortly before they are over.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

import trio

from qproxy.server.in_flight import InFlightRequests

FAREWELL_SECONDS = 2.0
"""For requests whose time is up to be told so."""


class Shutdown:
    """When the server stops, and how long it waits for requests."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.grace = 0.0
        """Seconds; those of the app, once it has said how many it wants."""

    def __repr__(self) -> str:
        return f"<Shutdown{' begun' if self.begun.is_set() else ''}, {self.grace:g} s>"


current_shutdown: ContextVar[Shutdown | None] = ContextVar("qproxy.shutdown", default=None)
"""The shutdown of the server that this task belongs to; None where the server says nothing of its end."""


class Draining(Protocol):
    """What is told of the end: the parts of a server."""

    draining: bool
    lives: InFlightRequests


async def drain(state: Draining, graceful_timeout: float) -> None:
    """Wait for the shutdown; give running requests their time, and end the rest with an error."""
    shutdown = current_shutdown.get()
    if shutdown is None:
        return
    await shutdown.begun.wait()
    state.draining = True
    await trio.sleep(graceful_timeout)
    state.lives.end()
