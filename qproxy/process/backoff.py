"""Delays between restarts of a worker: none after a long run, exponential after short ones."""

from __future__ import annotations

HEALTHY_SECONDS = 30.0
"""Run time, in seconds, that resets the delay."""
FIRST = 0.5
MAX_PAUSE = 30.0


class RestartBackoff:
    """The restart delay of one worker."""

    def __init__(self) -> None:
        self._short = 0

    def delay_after(self, uptime: float) -> float:
        """Return the seconds to wait after a run of `uptime` seconds."""
        if uptime >= HEALTHY_SECONDS:
            self._short = 0
            return 0.0
        self._short += 1
        return float(min(MAX_PAUSE, FIRST * 2 ** min(self._short - 1, 10)))
