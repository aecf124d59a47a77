"""When a worker that died begins anew: at once after a long life, ever later after short ones."""

from __future__ import annotations

HEALTHY_SECONDS = 30.0
"""Seconds of a life after which the death before it is forgotten."""
FIRST = 0.5
MAX_PAUSE = 30.0


class RestartBackoff:
    """Of one worker.  No clock: whoever asks says how long it lived."""

    def __init__(self) -> None:
        self._short = 0

    def delay_after(self, lived: float) -> float:
        """Seconds to wait after a life of so many."""
        if lived >= HEALTHY_SECONDS:
            self._short = 0
            return 0.0
        self._short += 1
        return float(min(MAX_PAUSE, FIRST * 2 ** min(self._short - 1, 10)))
