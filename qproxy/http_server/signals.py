"""The signals that end a serving process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import trio


async def wait_for_signal(stop: trio.Event, notify: Callable[[str], None]) -> None:
    """Set `stop` at the first SIGINT or SIGTERM; a second one ends the program at once."""
    signaled = False  # `stop` may be set from elsewhere too, and then the first signal is still the first
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            if signaled:
                notify("Stopping at once.")
                # Whatever is in the way of an orderly end is in the way of an exception too.
                os._exit(128 + number)
            signaled = True
            notify("Stopping: running requests may end; once more to stop at once.")
            stop.set()
