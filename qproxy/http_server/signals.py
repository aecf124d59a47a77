"""The signals that end a serving process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import trio


async def wait_for_signal(stop: trio.Event, notify: Callable[[str], None]) -> None:
    """Set `stop` at the first SIGINT or SIGTERM; a second one ends the program at once."""
    signaled = False  # `stop` may also be set without a signal, after which the first signal must not exit
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            if signaled:
                notify("Quitting now.")
                # Whatever blocks a graceful shutdown would block an exception too.
                os._exit(128 + number)
            signaled = True
            notify("Shutting down: waiting for in-flight requests. Press Ctrl+C again to quit now.")
            stop.set()
